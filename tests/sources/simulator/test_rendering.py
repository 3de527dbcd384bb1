"""Pictures of a style: always fresh, always telling of the style; and the styles behind them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sources.simulator.rendering import SILHOUETTES, render
from sources.simulator.styles import CATEGORIES, near_styles, sample_styles


def pixels(files: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(file)), np.float32) for file in files]) / 255.0


def test_pictures_have_the_size_asked_for_and_differ_every_time() -> None:
    styles = sample_styles(3, np.random.default_rng(0)).take(np.array([0, 0, 1]))
    drawn = pixels(render(styles, np.random.default_rng(1), pixels=48))
    assert drawn.shape == (3, 48, 48, 3)
    assert np.abs(drawn[0] - drawn[1]).mean() > 0.01


def test_the_same_seed_draws_the_same_files_in_any_number_of_batches() -> None:
    styles = sample_styles(70, np.random.default_rng(0))
    once, again = (render(styles, np.random.default_rng(1), pixels=32) for _ in range(2))
    assert once == again
    assert len(once) == 70


def test_the_middle_of_a_picture_tells_the_colour() -> None:
    styles = sample_styles(400, np.random.default_rng(0))
    rows = np.flatnonzero(
        (styles.pattern == 0) & (styles.category == CATEGORIES.index("cushion")) & (styles.material == 0)
    )
    middle = pixels(render(styles.take(rows), np.random.default_rng(1), clutter=0.0))[:, 28:36, 28:36].mean(axis=(1, 2))
    reddest = np.minimum(styles.hue[rows], 1 - styles.hue[rows]) < 0.1
    assert reddest.any()
    assert (middle[reddest].argmax(axis=1) == 0).all()


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_silhouette_is_a_bounded_thing(name: str) -> None:
    axis = np.linspace(-2.0, 2.0, 81, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    for proportion in (0.0, 0.5, 1.0):
        for detail in (0.0, 1.0):
            shape = (np.full((1, 1, 1), proportion), np.full((1, 1, 1), detail))
            inside = SILHOUETTES[name](u[None], v[None], *shape)[0] < 0
            assert 0.02 < inside.mean() < 0.4
            assert not inside[[0, -1]].any()
            assert not inside[:, [0, -1]].any()


def test_latent_vectors_are_unit_and_near_styles_are_near() -> None:
    rng = np.random.default_rng(0)
    styles = sample_styles(200, rng)
    vectors, near = styles.vectors(), near_styles(styles, rng).vectors()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    own = (vectors * near).sum(axis=1)
    others = (vectors * np.roll(near, 1, axis=0)).sum(axis=1)
    assert own.mean() > 0.9 > 0.5 > others.mean()


def test_brands_share_a_signature() -> None:
    rng = np.random.default_rng(0)
    signature = sample_styles(1, rng).take(np.zeros(500, np.int64))
    styles = sample_styles(500, rng, signatures=signature)
    assert (styles.pattern == signature.pattern).mean() > 0.5
    assert len(np.unique(styles.category)) == len(CATEGORIES)


def test_words_name_the_style() -> None:
    styles = sample_styles(50, np.random.default_rng(0))
    words = styles.words()
    assert [CATEGORIES.index(word) for word in words["category"]] == styles.category.tolist()
    red = [row for row in range(50) if abs(styles.hue[row]) < 0.04]
    assert all(words["colour"][row].endswith("red") for row in red)
