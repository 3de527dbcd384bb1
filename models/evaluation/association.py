"""Quotients, slopes and rank correlations of figures that were drawn, with intervals.

What is drawn is float64 [1 + DRAWS] or [1 + DRAWS, N]: the figure first, then its draws
(`models.evaluation.bootstrap`).
"""

from __future__ import annotations

import math

import numpy as np

from models.evaluation.bootstrap import NORMAL, Estimate
from moonlake.arrays import Float64s

CLEAR = 2.0
"""Standard errors that a figure must lie from zero before anything is divided by it."""
ROUNDING = 1e-14
"""What two sums of equal numbers may differ by."""


def quotient(above: Float64s, below: Float64s) -> Estimate | None:
    """above / below with Fieller's interval; None where `below` is under CLEAR standard errors from zero.

    Fieller's interval is bounded exactly where the denominator is clear of zero, and keeps its level there, which
    percentiles of the quotient do not.

    Args: above, below: float64 [1 + DRAWS], the figure and then its draws.
    """
    defined = ~np.isnan(above[1:]) & ~np.isnan(below[1:])
    if np.isnan(above[0]) or np.isnan(below[0]) or defined.sum() < 2:
        return None
    (high, joint), (_, low) = np.cov(above[1:][defined], below[1:][defined])
    if abs(below[0]) < max(CLEAR * math.sqrt(low), ROUNDING):
        return None
    scale = below[0] ** 2 - NORMAL**2 * low
    centre = (above[0] * below[0] - NORMAL**2 * joint) / scale
    reach = math.sqrt(max(centre**2 - (above[0] ** 2 - NORMAL**2 * high) / scale, 0.0))
    return Estimate(float(above[0] / below[0]), float(centre - reach), float(centre + reach))


def slope(metric: Float64s, gains: Float64s) -> Estimate | None:
    """Least squares of `gains` on `metric` across spaces; None where the metric has no clear spread.

    A metric that is measured with noise spreads more than it truly does, which flattens the line. What the draws spread
    more than the figures is the size of that noise, and is taken off.

    Args: metric, gains: float64 [1 + DRAWS, N].
    """
    x, y = (values - values.mean(1, keepdims=True) for values in (metric, gains))
    spread, joint = (x * x).mean(1), (x * y).mean(1)
    spread[0] -= max(float(np.nanmean(spread[1:])) - spread[0], 0.0)
    return quotient(joint, spread) if spread[0] > 0 else None


def correlation(first: Float64s, second: Float64s) -> Float64s:
    """Pearson's correlation of each row, float64 [R]; NaN where one of the two does not vary."""
    x, y = (values - values.mean(1, keepdims=True) for values in (first, second))
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(x), np.nan), where=size > 1e-15)


def midranks(values: Float64s) -> Float64s:
    """Ranks within each row, ties in the middle; a row that holds a NaN is NaN."""
    ranks = np.sign(values[:, :, None] - values[:, None, :]).sum(2)
    return np.asarray(ranks, np.float64)


def kendall(first: Float64s, second: Float64s) -> Float64s:
    """Kendall's tau-b of each row, float64 [R]: ties count for neither side."""
    above = np.triu_indices(first.shape[1], 1)
    x, y = (np.sign(values[:, :, None] - values[:, None, :])[:, above[0], above[1]] for values in (first, second))
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(x), np.nan), where=size > 0)
