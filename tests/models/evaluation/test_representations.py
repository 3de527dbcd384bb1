from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from models.encoder.config import EncoderConfig
from models.evaluation.representations import DecodedContents, cut, embedder_vectors, lake_vectors, pixel_baseline
from moonlake.embeddings.contents import Content, content_of
from moonlake.errors import InputError, NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

Write = Callable[..., None]


def png(seed: int) -> bytes:
    picture = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictured(settings: Settings, write_rows: Write) -> Lake:
    """Pictures 0 and 1, and a file that is none."""
    files = [png(0), png(1), b"no picture"]
    rows = [{"image_id": stable_hash(str(at)), "image_bytes": file} for at, file in enumerate(files)]
    write_rows(settings, "product_images", rows)
    return Lake(settings)


def content(*images: int) -> Content:
    return content_of("t", [stable_hash(str(one)) for one in images])


class Mean:
    """An embedder of decoded pictures: the mean colour of the first, and how many there are."""

    config = EncoderConfig(image_height=16, image_width=16)

    def embed_pixels(
        self, texts: Sequence[str | None], image_rows: Sequence[np.ndarray], pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        first = [pixels[rows[0]].mean() if len(rows) else -1.0 for rows in image_rows]
        return np.stack([first, [len(rows) for rows in image_rows]], axis=1), np.ones(len(texts), bool)


def test_decoded_contents_serve_any_encoder_row_by_row(pictured: Lake) -> None:
    contents = [content(0, 1), content(1), content(2), content(1, 0)]
    vectors = DecodedContents.read(pictured, contents, Mean.config.image_size).vectors(Mean())
    means = [np.asarray(Image.open(io.BytesIO(png(seed)))).mean() for seed in (0, 1)]
    expected: list[list[float]] = [[means[0], 2], [means[1], 1], [-1, 0], [means[1], 2]]
    np.testing.assert_allclose(vectors(contents), np.array(expected))
    np.testing.assert_allclose(vectors(contents[::-1]), np.array(expected[::-1]))
    with pytest.raises(KeyError):
        vectors([content(0)])


def test_what_is_embedded_in_several_calls_stays_in_order(pictured: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [content(0, 1), content(), content(1, 9), content(1), content(0)]  # nobody has the picture 9
    whole = embedder_vectors(pictured, Mean())(contents)
    assert whole[:, 1].tolist() == [2, 0, 1, 1, 1]
    monkeypatch.setattr("models.evaluation.representations.CONTENTS_PER_CALL", 2)
    np.testing.assert_array_equal(embedder_vectors(pictured, Mean())(contents), whole)


def test_pixels_are_of_the_first_readable_picture(pictured: Lake) -> None:
    vectors = pixel_baseline(pictured)([content(0), content(2, 0), content(1), content(2), content()])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.9
    np.testing.assert_array_equal(vectors[3], vectors[4])  # flat, as all without a picture


def test_vectors_of_the_lake_come_row_by_row_from_one_space(settings: Settings, write_rows: Write) -> None:
    ids = [content_of(name, []) for name in ("a", "b")]
    rows = [
        {"content_id": one.content_id, "space_id": space * 32, "vector": [at, space == "0"]}
        for at, one in enumerate(ids)
        for space in "01"
    ]
    write_rows(settings, "embeddings", rows)
    lake = Lake(settings)
    np.testing.assert_array_equal(lake_vectors(lake, "0" * 32)([ids[1], ids[0], ids[1]]), [[1, 1], [0, 1], [1, 1]])
    with pytest.raises(NotFound, match="1 contents have no vector"):
        lake_vectors(lake, "0" * 32)([*ids, content_of("c", [])])


def test_a_prefix_has_unit_norm_again_and_zeros_stay_zeros() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 1], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(cut(vectors, 2), np.array([[0.6, 0.8], [0, 0], [0, 0]]), rtol=1e-6)
    with pytest.raises(InputError, match="prefix of 4"):
        cut(vectors, 4)
