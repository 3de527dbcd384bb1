from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.ranking import UNFOUND, nearest, pixel_vectors, ranks


def unit(rng: np.random.Generator, rows: int, width: int = 8) -> np.ndarray:
    found = rng.standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def slow_rank(query: np.ndarray, pool: np.ndarray, positive: int, own: int) -> int:
    """The place of the positive when everything that can be found is sorted, ties before it."""
    scores = sorted((float(query @ row), at != positive) for at, row in enumerate(pool) if at != own)
    return [is_other for _, is_other in scores[::-1]].index(False) + 1


def test_ranks_agree_with_a_full_sort_with_and_without_the_query_in_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.evaluation.ranking.SCORES_AT_ONCE", 700)  # several blocks
    rng = np.random.default_rng(0)
    queries, pool, query_rows = unit(rng, 20), unit(rng, 90), rng.integers(20, size=40)
    positives, own = rng.integers(45, size=40), rng.integers(45, 90, size=40)
    own[::2] = -1
    slow = [
        slow_rank(queries[query], pool, positive, left_out)
        for query, positive, left_out in zip(query_rows, positives, own, strict=True)
    ]
    assert ranks(queries, pool, query_rows, positives, own).tolist() == slow
    everything = [slow_rank(queries[one], pool, two, -1) for one, two in zip(query_rows, positives, strict=True)]
    assert ranks(queries, pool, query_rows, positives).tolist() == everything != slow


def test_ties_count_against_us() -> None:
    pool = np.repeat(unit(np.random.default_rng(0), 1), 30, axis=0)
    assert ranks(pool[:1], pool, np.array([0, 0]), np.array([0, 17])).tolist() == [30, 30]


def test_what_has_no_vector_is_not_found_and_stands_in_nobodys_way() -> None:
    queries = np.array([[1, 0], [0, 0], [-1, 0]], np.float32)
    pool = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    places = ranks(queries, pool, np.array([0, 1, 0, 2]), np.array([2, 0, 1, 0]))
    assert places.tolist() == [2, UNFOUND, UNFOUND, 2]  # the last scores -1: behind [0, 1], and not behind the zeros


def test_nearest_is_exact_in_every_chunk_and_stops_at_the_pool() -> None:
    rng = np.random.default_rng(1)
    queries, pool = unit(rng, 2_500, 4), unit(rng, 7, 4)
    found = nearest(queries, pool, 10)
    assert found.rows.shape == (2_500, 7)
    np.testing.assert_array_equal(found.rows[:, 0], (queries @ pool.T).argmax(1))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    with pytest.raises(ValueError, match="expected vectors of one length"):
        nearest(queries, pool[:, :3], 1)


def test_pixel_vectors_ignore_brightness_and_survive_a_flat_picture() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 100, (4, 4, 3)).astype(np.uint8)
    flat = np.full((4, 4, 3), 9, np.uint8)
    vectors = pixel_vectors([picture, picture + 50, flat, flat + 1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_array_equal(vectors[2], vectors[3])
