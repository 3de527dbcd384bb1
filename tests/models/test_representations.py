from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from models.representations import cut, embedder_vectors, kept_files, lake_files, lake_vectors, pixel_baseline
from moonlake.contents import content_of, stable_hash
from moonlake.errors import InputError, NotFound
from moonlake.lake import Lake
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


def content(*images: int) -> object:
    return content_of("t", [stable_hash(str(one)) for one in images])


class Counting:
    """An embedder that sees how many files it gets, and how many texts."""

    def embed_readable(
        self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(text or ""), len(row)] for text, row in zip(texts, images, strict=True)]), np.ones(1)


@pytest.mark.parametrize("kept", [False, True])
def test_an_embedder_gets_text_and_files_row_by_row(
    pictured: Lake, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.representations.CONTENTS_PER_CALL", 2)
    contents = [content(0, 1), content(), content(1, 9)]  # nobody has the picture 9
    files = kept_files(pictured, contents) if kept else lake_files(pictured)
    assert embedder_vectors(files, Counting())(contents).tolist() == [[1, 2], [1, 0], [1, 1]]


def test_pixels_are_of_the_first_readable_picture(pictured: Lake) -> None:
    vectors = pixel_baseline(lake_files(pictured))([content(0), content(2, 0), content(1), content(2), content()])
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
    np.testing.assert_allclose(cut(vectors, 2), [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    with pytest.raises(InputError, match="prefix of 4"):
        cut(vectors, 4)
