from __future__ import annotations

import numpy as np
import pytest

from models.retrieval import hit_rates, nearest, pixel_vectors, ranks


def unit(rng: np.random.Generator, rows: int, width: int = 8) -> np.ndarray:
    found = rng.standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_ranks_agree_with_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    queries, pool, positives = unit(rng, 40), unit(rng, 90), rng.integers(90, size=40)
    slow = []
    for query, positive in zip(queries, positives, strict=True):
        scores = pool @ query
        slow.append(min(1 + int((scores > scores[positive]).sum()), 51))
    assert ranks(queries, pool, positives, deepest=50).tolist() == slow


def test_ties_count_against_us() -> None:
    pool = np.repeat(unit(np.random.default_rng(0), 1), 30, axis=0)
    assert ranks(pool[:1], pool, np.array([0]), deepest=50).tolist() == [30]
    assert ranks(pool[:1], pool, np.array([17]), deepest=10).tolist() == [11]


def test_nearest_is_exact_in_every_chunk_and_stops_at_the_pool() -> None:
    rng = np.random.default_rng(1)
    queries, pool = unit(rng, 2_500, 4), unit(rng, 7, 4)
    found = nearest(queries, pool, 10)
    assert found.rows.shape == (2_500, 7)
    np.testing.assert_array_equal(found.rows[:, 0], (queries @ pool.T).argmax(1))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    with pytest.raises(ValueError, match="expected vectors of one length"):
        nearest(queries, pool[:, :3], 1)


def test_hit_rates_count_places_up_to_the_cutoff() -> None:
    rates = hit_rates(np.array([1, 2, 10, 11, 51]))
    assert [rate.value for rate in rates] == [0.2, 0.6, 0.8]
    assert all(rate.low <= rate.value <= rate.high for rate in rates)


def test_purchases_of_one_query_are_one_draw_of_the_bootstrap() -> None:
    place = np.repeat(np.where(np.arange(50) % 2, 1, 99), 20)
    apart = hit_rates(place, cutoffs=(1,))[0]
    together = hit_rates(place, np.repeat(np.arange(50), 20), cutoffs=(1,))[0]
    assert apart.value == together.value == 0.5
    assert together.high - together.low > 3 * (apart.high - apart.low)  # sqrt(20) in the limit


def test_pixel_vectors_ignore_brightness_and_survive_a_flat_picture() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 100, (4, 4, 3)).astype(np.uint8)
    flat = np.full((4, 4, 3), 9, np.uint8)
    vectors = pixel_vectors([picture, picture + 50, flat, flat + 1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_array_equal(vectors[2], vectors[3])
