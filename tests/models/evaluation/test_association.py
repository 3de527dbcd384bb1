"""Quotients and slopes against theory, rank correlations against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr  # type: ignore[import-untyped]

from models.evaluation.association import CLEAR, correlation, kendall, midranks, quotient, slope
from models.evaluation.bootstrap import DRAWS, NORMAL, ratios


def drawn(value: float, error: float, seed: int) -> np.ndarray:
    """A figure and draws around it."""
    return np.concatenate([[value], value + error * np.random.default_rng(seed).normal(size=DRAWS)])


def test_a_quotient_ends_where_its_numerator_is_two_standard_errors_off() -> None:
    above, below = drawn(0.01, 0.004, 0), drawn(0.2, 0.05, 1)
    found = quotient(above, below)
    assert found is not None
    assert found.value == pytest.approx(0.05)
    for end in (found.low, found.high):
        rest = above - end * below
        assert abs(rest[0]) == pytest.approx(NORMAL * rest[1:].std(ddof=1))


def test_a_quotient_of_something_known_exactly_is_the_usual_interval() -> None:
    above, below = drawn(0.01, 0.004, 0), np.full(DRAWS + 1, 0.5)
    found = quotient(above, below)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * NORMAL * above[1:].std(ddof=1) / 0.5)


def test_nothing_is_divided_by_what_may_be_zero() -> None:
    assert quotient(drawn(1, 0.1, 0), drawn(CLEAR * 0.9, 1, 1)) is None
    assert quotient(drawn(1, 0.1, 0), drawn(-CLEAR * 1.2, 1, 1)) is not None
    assert quotient(drawn(1, 0.1, 0), np.zeros(DRAWS + 1)) is None
    assert quotient(drawn(1, 0.1, 0), np.full(DRAWS + 1, np.nan)) is None


def test_a_slope_of_exact_figures_is_least_squares() -> None:
    metric, gains = np.array([0.1, 0.3, 0.35, 0.6]), np.array([0.6, 0.61, 0.64, 0.65])
    found = slope(np.tile(metric, (DRAWS + 1, 1)), np.tile(gains, (DRAWS + 1, 1)))
    assert found == pytest.approx([np.polyfit(metric, gains, 1)[0]] * 3)


def test_a_metric_without_spread_has_no_slope() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(size=(DRAWS + 1, 4))
    assert slope(np.full((DRAWS + 1, 4), 0.3), gains) is None
    noise = 0.3 + 0.01 * rng.normal(size=4)
    assert slope(noise + 0.01 * rng.normal(size=(DRAWS + 1, 4)), gains) is None


def simulated(rng: np.random.Generator, truth: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Measurements of spaces whose true rates are `truth`: yes or no on each of so many rows."""
    hits = (rng.random((rows, len(truth))) < truth).astype(np.float64)
    return ratios(hits, np.ones((rows, 1)), np.arange(rows), seed=seed)


def test_a_known_slope_is_covered_at_the_nominal_rate_though_the_metric_is_noisy() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([0.20, 0.28, 0.33, 0.45, 0.50])
    covered, of_pair, slopes, flat = 0, [], [], []
    for _ in range(200):
        metric = simulated(rng, truth, 150, 1)
        gains = simulated(rng, 0.3 + 0.5 * truth, 400, 2)
        found = slope(metric, gains)
        if found is not None:
            covered += found.low <= 0.5 <= found.high
            slopes.append(found.value)
            flat.append(np.polyfit(metric[0], gains[0], 1)[0])
        rate = quotient(gains[:, 4] - gains[:, 0], metric[:, 4] - metric[:, 0])
        if rate is not None:
            of_pair.append(rate.low <= 0.5 <= rate.high)
    assert len(slopes) > 190
    assert 0.91 <= covered / len(slopes) <= 0.99
    assert 0.91 <= np.mean(of_pair) <= 0.99
    error = np.std(slopes) / np.sqrt(len(slopes))
    assert abs(np.mean(slopes) - 0.5) < 3 * error
    noise = 1 - truth.var() / (truth.var() + 0.8 * (truth * (1 - truth)).mean() / 150)  # flattens least squares
    assert np.mean(flat) / np.mean(slopes) == pytest.approx(1 - noise, abs=0.03)


def test_rank_correlations_are_scipys_with_ties() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 4, (30, 5)).astype(float), rng.integers(0, 4, (30, 5)).astype(float)
    rows = list(zip(first, second, strict=True))
    spearman = [spearmanr(x, y).statistic if len(set(x)) > 1 < len(set(y)) else np.nan for x, y in rows]
    tau = [kendalltau(x, y).statistic for x, y in rows]
    np.testing.assert_allclose(correlation(midranks(first), midranks(second)), spearman)
    np.testing.assert_allclose(kendall(first, second), tau)
    np.testing.assert_allclose(correlation(first, second)[0], np.corrcoef(first[0], second[0])[0, 1])


def test_a_missing_figure_has_no_correlation() -> None:
    first, second = np.array([[0.1, np.nan, 0.3]]), np.array([[0.1, 0.2, 0.3]])
    for found in (correlation(first, second), correlation(midranks(first), midranks(second)), kendall(first, second)):
        assert np.isnan(found).all()
