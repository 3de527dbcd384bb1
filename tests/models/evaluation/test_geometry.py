from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.geometry import alignment, effective_rank, geometry


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    found = rng.standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_figures_of_every_pair_agree_with_a_slow_twin() -> None:
    vectors = unit(np.random.default_rng(0), 30, 5)
    pairs = [(vectors[i], vectors[j]) for i in range(30) for j in range(i)]
    found = geometry(vectors)
    assert found.uniformity == pytest.approx(np.log(np.mean([np.exp(-2 * ((x - y) ** 2).sum()) for x, y in pairs])))
    assert found.mean_cosine == pytest.approx(np.mean([x @ y for x, y in pairs]), abs=1e-6)
    assert found.alignment is None
    assert (found.vectors, found.dimension, found.missing, found.duplicates) == (30, 5, 0, 0)


def test_random_pairs_of_many_vectors_agree_with_theory() -> None:
    found = geometry(unit(np.random.default_rng(1), 2_000, 64))
    assert found.mean_cosine == pytest.approx(0, abs=0.002)
    assert found.uniformity == pytest.approx(-4 + 8 / 64, abs=0.01)  # log of the mean of exp(-4 + 4 cos), cos ~ 1/64
    assert found.effective_rank == pytest.approx(64, rel=0.05)


def test_a_collapsed_space_shows() -> None:
    one = unit(np.random.default_rng(2), 1, 8)
    found = geometry(np.repeat(one, 20, axis=0))
    assert found.uniformity == pytest.approx(0, abs=1e-6)
    assert (found.duplicates, found.mean_cosine) == pytest.approx((1, 1))
    assert found.effective_rank == pytest.approx(1, abs=1e-3)


def test_the_effective_rank_counts_directions_that_are_used_alike() -> None:
    assert effective_rank(np.eye(7)[[0, 1, 2, 3] * 5]) == pytest.approx(4)


def test_norms_are_of_the_vectors_as_given_and_rows_of_zeros_are_left_out() -> None:
    vectors = np.array([[2, 0], [0, 1], [0, 0], [0, 1]], np.float32)
    found = geometry(vectors)
    assert (found.vectors, found.missing) == (3, 1)
    assert (found.norm, found.largest_norm_error) == pytest.approx((4 / 3, 1))
    assert found.duplicates == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least two"):
        geometry(vectors[[1, 2]])


def test_alignment_is_the_mean_squared_distance_of_pairs_that_have_both() -> None:
    first, second = np.array([[1, 0], [1, 0], [0, 0]], np.float32), np.array([[1, 0], [-1, 0], [1, 0]], np.float32)
    assert alignment(first, second) == pytest.approx(2)
    assert alignment(first[2:], second[2:]) is None
    vectors = np.eye(2, dtype=np.float32)
    assert geometry(vectors, pairs=(first, second)).alignment == pytest.approx(2)
