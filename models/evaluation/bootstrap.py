"""Ratios of sums with their bootstrap intervals: rows that depend on each other are drawn together.

Hit rates, precision, paired differences and the share of a gap are all a sum over a sum. So there is one kernel: sums
by cluster, drawn again and again, every column by the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moonlake.arrays import Float64s, Int64s

DRAWS = 1_000
DRAWS_AT_ONCE = 50
COUNTS_AT_ONCE = 4_000_000
"""Numbers in a block of draws, at most: 32 MB."""
LEVEL = 0.95
NORMAL = 1.96
"""Standard errors that LEVEL is, of a normal figure."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The same of a figure whose standard error is known with 1 to 9 degrees of freedom."""


class Estimate(NamedTuple):
    """A figure and its 95% interval; NaN where it is undefined."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The figure and its interval in brackets, each number in the format asked for.

        >>> f"{Estimate(0.25, 0.2, 0.3):+.2f}"
        '+0.25 [+0.20, +0.30]'
        """
        value, low, high = (format(one, spec) for one in self)
        return f"{value} [{low}, {high}]"

    def as_json(self) -> list[float | None]:
        """Value, low and high; what is undefined is None, since JSON has no NaN."""
        return [None if np.isnan(one) else one for one in self]


@dataclass(frozen=True, slots=True)
class Rate:
    """An estimate at a cutoff over queries, flat, as the JSON of `evaluate encoder` has it."""

    cutoff: int
    value: float
    low: float
    high: float

    @property
    def estimate(self) -> Estimate:
        """The figure without its cutoff."""
        return Estimate(self.value, self.low, self.high)


def rates(cutoffs: Sequence[int], drawn: Float64s) -> list[Rate]:
    """The figure at each cutoff of what `ratios` gave, one column a cutoff."""
    return [Rate(cutoff, *one) for cutoff, one in zip(cutoffs, estimates(drawn), strict=True)]


def ratios(numerators: Float64s, denominators: Float64s, clusters: NDArray[Any], *, seed: int = 0) -> Float64s:
    """float64 [1 + DRAWS, M], sum(numerators) / sum(denominators) by column: first of all rows, then of each draw.

    A draw takes as many clusters as there are, with replacement, and all their rows.

    Args:
        numerators, denominators: float64 [T, M]; denominators may be [T, 1].
        clusters: [T], equal for rows that are not independent.
    """
    if not len(clusters):
        raise ValueError("no row to measure on")
    _, cluster = np.unique(clusters, return_inverse=True)
    above, below = _sums(numerators, cluster), _sums(denominators, cluster)
    both = np.concatenate([above, below], axis=1)
    whole = np.concatenate([both.sum(0, keepdims=True), *(times @ both for times in drawn_times(len(both), seed=seed))])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = whole[:, : above.shape[1]] / whole[:, above.shape[1] :]
    return np.where(np.isfinite(found), found, np.nan)


def drawn_times(clusters: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[Float64s]:
    """Counts of each cluster in each draw: blocks of float64 [some draws, clusters], `draws` rows in all.

    A draw takes as many clusters as there are, with replacement. The same seed gives the same draws to everything.
    """
    rng = np.random.default_rng(seed)
    step = max(1, min(DRAWS_AT_ONCE, COUNTS_AT_ONCE // clusters))
    for at in range(0, draws, step):
        drawn = rng.integers(clusters, size=(min(step, draws - at), clusters))
        yield np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(np.float64)


def estimates(drawn: Float64s) -> list[Estimate]:
    """The figure and interval of each column of what `ratios` gave; a draw in which it is undefined is left out."""
    return [_estimate(column[0], column[1:]) for column in drawn.T]


def over_runs(drawn: Float64s, *, seed: int = 0) -> Estimate:
    """The mean of columns that are runs of one thing with several seeds, its interval over runs and clusters.

    One run says nothing of how runs differ: its interval is over clusters alone.

    Args: drawn: float64 [1 + DRAWS, S], from `ratios`.
    """
    found = means_over_runs(drawn, seed=seed)
    return _estimate(found[0], found[1:])


def means_over_runs(drawn: Float64s, *, seed: int = 0, degrees: int | None = None) -> Float64s:
    """float64 [1 + DRAWS]: the mean over runs, and draws of it that spread as it does over runs and clusters.

    The runs share their clusters, so a draw is the mean of the runs under one draw of clusters, and a normal deviation
    for the runs beside it. How far runs lie apart is partly due to the clusters that were measured, which the first
    part has already: that share is taken off the second (the variance of a crossed design). With few runs their spread
    is hardly known, so it is widened as Student's t is. Runs alone give the t interval; coverage is tested.

    Two things with equally many runs have the deviations of runs in the same places: their difference is of pairs.

    Args: degrees: of freedom of the spread of runs: S - 1, or more where a difference pools that of several things.
    """
    runs = drawn.shape[1]
    means = drawn.mean(1)
    if runs == 1:
        return means
    apart = drawn[0] - means[0]
    spread = float(apart @ apart) / (runs - 1)
    defined = (drawn[1:] - means[1:, None])[~np.isnan(means[1:])]
    of_clusters = float(defined.var(0).sum()) / (runs - 1) if len(defined) else 0.0
    own = math.sqrt(max(0.0, 1 - of_clusters / spread)) if spread > 0 else 0.0
    normal = np.random.default_rng([seed, runs]).normal(size=(len(drawn) - 1, runs)) / math.sqrt(runs * (runs - 1))
    means[1:] += own * _student(degrees or runs - 1) / NORMAL * (normal @ apart)
    return means


def paired_difference(
    places_a: ArrayLike,
    places_b: ArrayLike,
    clusters: NDArray[Any],
    cutoff: int,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Hit rate of `a` minus that of `b` at a cutoff, on the same trials.

    Args:
        places_a, places_b: int64 [T], or [S, T] of S runs each; run s of one is compared with run s of the other.
        clusters: [T], equal for trials of one query.
        weights: [T]; None for all alike.
    """
    first, second = (np.atleast_2d(places) <= cutoff for places in (places_a, places_b))  # [S, T]
    weight = _weights(weights, len(clusters))
    drawn = ratios((first.astype(np.float64) - second).T * weight, weight, clusters, seed=seed)
    return over_runs(drawn, seed=seed)


def gap_closed(
    places: ArrayLike,
    floor: ArrayLike,
    ceiling: ArrayLike,
    clusters: NDArray[Any],
    cutoff: int,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """(model - floor) / (ceiling - floor) of hit rates at a cutoff, on the same trials: 0 is the floor, 1 the ceiling.

    Args:
        places: int64 [T], or [S, T] of S runs.   floor, ceiling: int64 [T].
        clusters, weights: as in `paired_difference`.
    """
    model, lowest, highest = (np.atleast_2d(rows) <= cutoff for rows in (places, floor, ceiling))
    weight = _weights(weights, len(clusters))
    gained = (model.astype(np.float64) - lowest).T * weight  # [T, S]
    gap = np.broadcast_to((highest.astype(np.float64) - lowest).T * weight, gained.shape)
    return over_runs(ratios(gained, gap, clusters, seed=seed), seed=seed)


def _student(degrees: int) -> float:
    """The 97.5% quantile of Student's t; beyond the table by its expansion, right to 0.1%."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    return NORMAL + (NORMAL + NORMAL**3) / (4 * degrees) + 2.82 / degrees**2


def _weights(weights: ArrayLike | None, count: int) -> Float64s:
    """float64 [T, 1]."""
    return (np.ones(count) if weights is None else np.asarray(weights, np.float64))[:, None]


def _sums(values: Float64s, cluster: Int64s) -> Float64s:
    """float64 [C, M]: sums of rows by cluster."""
    return np.stack([np.bincount(cluster, weights=column) for column in values.T], axis=1)


def _estimate(value: float, draws: Float64s) -> Estimate:
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Estimate(float(value), np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))
