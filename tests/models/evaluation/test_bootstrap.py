from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student  # type: ignore[import-untyped]

from models.evaluation.bootstrap import (
    DRAWS,
    DRAWS_AT_ONCE,
    Estimate,
    Rate,
    estimates,
    gap_closed,
    over_runs,
    paired_difference,
    ratios,
)


def test_a_draw_is_the_rows_of_clusters_drawn_with_replacement_the_same_for_every_column() -> None:
    rng = np.random.default_rng(0)
    clusters = np.array(["b", "a", "c", "a", "b", "a"])
    above, below = rng.random((6, 2)), rng.random((6, 1)) + 0.5
    found = ratios(above, below, clusters, seed=3)
    rows = [np.flatnonzero(clusters == name) for name in "abc"]
    again = np.random.default_rng(3)
    slow = [above.sum(0) / below.sum()]
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        for drawn in again.integers(3, size=(DRAWS_AT_ONCE, 3)):
            taken = np.concatenate([rows[cluster] for cluster in drawn])
            slow.append(above[taken].sum(0) / below[taken].sum())
    np.testing.assert_allclose(found, slow)


def test_the_interval_of_a_mean_is_what_theory_says() -> None:
    values = np.random.default_rng(1).random((4_000, 1)) < 0.3
    (found,) = estimates(ratios(values.astype(float), np.ones((4_000, 1)), np.arange(4_000)))
    error = 1.96 * np.sqrt(0.3 * 0.7 / 4_000)
    assert found.value == values.mean()
    assert found.high - found.low == pytest.approx(2 * error, rel=0.15)


def test_rows_of_one_cluster_are_one_draw() -> None:
    values = np.repeat(np.arange(50) % 2, 20).astype(float)[:, None]
    (apart,) = estimates(ratios(values, np.ones((1_000, 1)), np.arange(1_000)))
    (together,) = estimates(ratios(values, np.ones((1_000, 1)), np.repeat(np.arange(50), 20)))
    assert apart.value == together.value == 0.5
    assert together.high - together.low > 3 * (apart.high - apart.low)  # sqrt(20) in the limit


def test_a_column_that_most_draws_cannot_define_has_a_figure_from_the_others_and_none_without() -> None:
    above, below = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])
    half, nothing = estimates(ratios(above, below, np.arange(2)))
    assert half == (0.5, 0.5, 0.5)
    assert np.isnan(nothing).all()
    assert (half.as_json(), nothing.as_json()) == ([0.5] * 3, [None] * 3)


def test_no_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row"):
        ratios(np.empty((0, 1)), np.empty((0, 1)), np.empty(0))


def test_a_difference_is_taken_trial_by_trial() -> None:
    rng = np.random.default_rng(2)
    worse = rng.integers(1, 30, size=2_000)
    better = np.where(rng.random(2_000) < 0.05, 1, worse)
    clusters = np.arange(2_000)
    found = paired_difference(better, worse, clusters, 10)
    assert found.value == pytest.approx((better <= 10).mean() - (worse <= 10).mean())
    assert found.low > 0  # though either hit rate alone is known to +- 0.02 only
    assert found.high - found.low < 0.02
    assert paired_difference(worse, worse, clusters, 10) == (0, 0, 0)


def test_a_weight_counts_as_so_many_trials() -> None:
    places, other, clusters = np.array([1, 99, 1]), np.array([99, 99, 99]), np.array([0, 1, 2])
    assert paired_difference(places, other, clusters, 10, weights=[0.5, 2, 1]).value == pytest.approx(1.5 / 3.5)


def test_several_runs_are_drawn_too() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(1, 60, size=3_000)
    runs = np.stack([np.where(rng.random(3_000) < share, 1, base) for share in (0.0, 0.1, 0.2)])
    clusters, floor = np.arange(3_000), np.stack([base] * 3)
    together = paired_difference(runs, floor, clusters, 10)
    single = [paired_difference(run, base, clusters, 10) for run in runs]
    assert together.value == pytest.approx(np.mean([one.value for one in single]))
    assert together.low < 0 < single[2].value < together.high  # three runs so far apart say little
    same = paired_difference(np.stack([runs[1]] * 3), floor, clusters, 10)
    assert same == pytest.approx(single[1])  # runs that agree add nothing


@pytest.mark.parametrize("runs", [2, 3, 5, 40])
def test_runs_alone_have_the_t_interval(runs: int) -> None:
    values = np.random.default_rng(runs).normal(size=runs)
    found = over_runs(np.tile(values, (200_001, 1)))
    half = student.ppf(0.975, runs - 1) * values.std(ddof=1) / np.sqrt(runs)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02 * half)


def test_one_run_has_the_interval_of_its_clusters() -> None:
    drawn = np.random.default_rng(0).normal(size=(1 + DRAWS, 1))
    assert over_runs(drawn) == estimates(drawn)[0]


@pytest.mark.parametrize(("of_run", "of_cluster", "of_both"), [(0.0, 1.0, 3.0), (0.1, 1.0, 1.0), (0.5, 0.2, 0.2)])
def test_intervals_over_runs_cover_the_truth_whatever_it_is_that_varies(
    of_run: float, of_cluster: float, of_both: float
) -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        values = (
            of_run * rng.normal(size=3) + of_cluster * rng.normal(size=(80, 1)) + of_both * rng.normal(size=(80, 3))
        )
        found = over_runs(ratios(values, np.ones((80, 1)), np.arange(80), seed=int(rng.integers(1_000_000))))
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_share_of_a_gap_is_zero_at_the_floor_and_one_at_the_ceiling() -> None:
    rng = np.random.default_rng(4)
    floor, ceiling = rng.integers(1, 200, size=1_000), rng.integers(1, 20, size=1_000)
    model = np.where(np.arange(1_000) % 2, floor, ceiling)
    clusters = np.arange(1_000) // 2
    assert gap_closed(floor, floor, ceiling, clusters, 10) == (0, 0, 0)
    assert gap_closed(ceiling, floor, ceiling, clusters, 10) == (1, 1, 1)
    half = gap_closed(np.stack([model, model]), floor, ceiling, clusters, 10)
    hits = [(places <= 10).mean() for places in (model, floor, ceiling)]
    assert half.value == pytest.approx((hits[0] - hits[1]) / (hits[2] - hits[1]))
    assert half.low < 0.5 < half.high


def test_a_figure_is_written_with_its_interval_in_one_form() -> None:
    assert f"{Estimate(0.25, 0.2, 0.3):+.2f}" == "+0.25 [+0.20, +0.30]"
    assert f"{Estimate(0.25, math.nan, math.nan):.3f}" == "0.250 [nan, nan]"
    assert f"{Rate(10, 0.5, 0.4, 0.6).estimate:.1f}" == "0.5 [0.4, 0.6]"
    assert Estimate(0.25, math.nan, 0.3).as_json() == [0.25, None, 0.3]
