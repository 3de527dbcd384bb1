from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.encoder.config import Architecture, EncoderConfig, TinyConfig
from models.encoder.encoder import Encoder
from models.encoder.factory import new_encoder
from models.encoder.pictures import to_pixels
from models.inference import Embedder, Limits, _batches, _blocks
from moonlake.errors import InputError

CONFIG = EncoderConfig(
    tiny=TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    image_height=32,
    image_width=32,
    max_images=3,
    dimension=16,
    storage_type="float32",
)
SMALL = Limits(rows=4, pixel_bytes=5 * 3 * 32 * 32, batch_pixels=2 * 32 * 32, batch_tokens=20, feature_bytes=0)
"""Several blocks and batches of a few rows, and nothing kept from one block to the next."""
BROKEN = b"\x89PNG broken"


def file(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


FILES = [file(seed) for seed in range(6)]
TEXTS: list[str | None] = [
    "red shirt",
    None,
    "a mug that has a much longer title",
    "",
    "red shirt",
    "lamp",
    None,
    "lamp",
]
IMAGES = [FILES[:2], FILES[2:5], [], [FILES[0], BROKEN], FILES[:2], FILES[1:], [BROKEN], FILES[1:4]]
READABLE = [True] * 6 + [False, True]
DISTINCT_CONTENTS = 5
"""Readable ones: row 4 is row 0 again, and of row 5 only the first three images are read, as of row 7."""


@pytest.fixture(scope="module", params=["generative", "dual_flow"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    architecture: Architecture = request.param
    torch.manual_seed(0)
    return new_encoder(replace(CONFIG, architecture=architecture), [text for text in TEXTS if text]).eval()


def one_by_one(encoder: Encoder) -> np.ndarray:
    """The vectors of the readable rows by the plainest loop there is."""
    vectors = []
    for text, row in zip(TEXTS, IMAGES, strict=True):
        pixels = [to_pixels(one, CONFIG.image_size) for one in row[: CONFIG.max_images] if one != BROKEN]
        if text or pixels:
            with torch.no_grad():
                empty = np.zeros((0, 32, 32, 3), np.uint8)
                vectors.append(encoder(encoder.batch([text], [np.stack(pixels) if pixels else empty])).numpy()[0])
    return np.stack(vectors)


@contextmanager
def counting(module: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of what a module gives back, call by call."""
    rows: list[int] = []

    def count(_module: torch.nn.Module, _arguments: object, output: object) -> None:
        rows.append(len(output if isinstance(output, torch.Tensor) else output.last_hidden_state))  # type: ignore[attr-defined]

    hook = module.register_forward_hook(count)
    yield rows
    hook.remove()


@pytest.mark.parametrize("limits", [Limits(), SMALL, replace(SMALL, feature_bytes=1 << 20)])
def test_vectors_are_those_of_a_plain_loop_over_the_rows(encoder: Encoder, limits: Limits) -> None:
    vectors, readable = Embedder.of(encoder, limits=limits).embed_readable(TEXTS, IMAGES)
    assert readable.tolist() == READABLE
    np.testing.assert_allclose(vectors[readable], one_by_one(encoder), atol=1e-5)
    assert not vectors[~readable].any()


def test_a_content_and_a_picture_are_computed_once_however_often_they_come(encoder: Encoder) -> None:
    with counting(encoder) as contents, counting(encoder.backbone.tower()) as pictures:
        Embedder.of(encoder).embed_readable(TEXTS * 3, IMAGES * 3)
    assert sum(contents) == DISTINCT_CONTENTS
    assert sum(pictures) == len({one for row in IMAGES for one in row[:3]} - {BROKEN})


def test_a_picture_that_was_kept_is_not_computed_again_in_a_later_block(encoder: Encoder) -> None:
    counts = []
    for kept in (0, 1 << 20):
        with counting(encoder.backbone.tower()) as pictures:
            Embedder.of(encoder, limits=replace(SMALL, rows=1, feature_bytes=kept)).embed_readable(TEXTS, IMAGES)
        counts.append(sum(pictures))
    assert counts == [2 + 3 + 1 + 3, 5]


def test_no_batch_is_larger_than_the_limits(encoder: Encoder) -> None:
    with counting(encoder.backbone.tower()) as pictures:
        Embedder.of(encoder, limits=SMALL).embed_readable(TEXTS, IMAGES)
    assert max(pictures) <= 2


def test_pictures_that_were_decoded_before_give_the_same_vectors(encoder: Encoder) -> None:
    embedder = Embedder.of(encoder, limits=SMALL)
    pixels = np.stack([to_pixels(one, CONFIG.image_size) for one in FILES])
    rows = [np.array([FILES.index(one) for one in row if one != BROKEN], int) for row in IMAGES]
    vectors, readable = embedder.embed_pixels(TEXTS, rows, pixels)
    expected, expected_readable = embedder.embed_readable(TEXTS, IMAGES)
    np.testing.assert_array_equal(readable, expected_readable)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_nothing_to_embed_is_nothing(encoder: Encoder) -> None:
    vectors, readable = Embedder.of(encoder).embed_readable([], [])
    assert vectors.shape == (0, 16)
    assert readable.shape == (0,)


def test_bfloat16_gives_nearly_the_vectors_of_float32(encoder: Encoder) -> None:
    full, half = (
        Embedder.of(encoder, precision=one).embed_readable(TEXTS, IMAGES)[0] for one in ("float32", "bfloat16")
    )
    cosine = (full * half).sum(1)[READABLE] / np.linalg.norm(half[READABLE], axis=1)
    assert cosine.min() > 0.99
    assert not np.array_equal(full, half)


def test_an_encoder_that_was_never_saved_has_no_space(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="save it first"):
        _ = Embedder.of(encoder).space


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_limit_and_sorted(lengths: list[int], most: int) -> None:
    found = list(_batches(np.array(lengths, int), np.arange(len(lengths)), most))
    flat = [int(row) for batch in found for row in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[row] for row in flat] == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= most for batch in found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 10), st.integers(1, 12))
def test_blocks_hold_every_row_once_within_the_limits(counts: list[int], rows: int, images: int) -> None:
    blocks = _blocks([range(count) for count in counts], rows, images)
    assert [at for block in blocks for at in range(block.start, block.stop)] == list(range(len(counts)))
    for block in blocks:
        held = counts[block]
        assert 0 < len(held) <= rows
        assert len(held) == 1 or sum(held) <= images


@pytest.mark.parametrize("text", ["\U0001f469\u200d\U0001f680" * 333, "\ufdfa" * 1_000, "\u202e" * 1_000, "x" * 1_000])
def test_of_a_long_text_the_first_tokens_are_read_however_many_it_has(encoder: Encoder, text: str) -> None:
    (words,) = encoder.words([text])
    assert len(words) <= CONFIG.max_text_tokens
    embedder = Embedder.of(encoder)
    assert np.linalg.norm(embedder.embed([text], [[]])) == pytest.approx(1)
    assert (embedder.embed([text], [[]]) == embedder.embed([text + text], [[]])).all()


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1)])
def test_a_picture_of_any_proportions_is_read(encoder: Encoder, size: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.new("L", size, 100).save(out, "PNG")
    assert (to_pixels(out.getvalue(), CONFIG.image_size) == 100).all()
    assert np.linalg.norm(Embedder.of(encoder).embed([None], [[out.getvalue()]])) == pytest.approx(1)
