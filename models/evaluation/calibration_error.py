"""Calibration error: predicted click probabilities beside observed clicks, by bins of score and in one figure.

Bins are of equal mass: their edges are the quantiles of the scores, so that each holds the same share of the
impressions. Bins of equal width would leave nearly all impressions in the first one, for most click probabilities are
small. Equal scores stand in one bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moonlake.arrays import Float64s, Int64s

BINS = 20


class Reliability(NamedTuple):
    """Predicted and observed clicks of each bin that is not empty, lowest scores first.

    Attributes:
        impressions: int64 [B].
        predicted, observed: float64 [B], mean score and share of clicks.
    """

    impressions: Int64s
    predicted: Float64s
    observed: Float64s


def equal_mass_bins(scores: ArrayLike, bins: int = BINS) -> Int64s:
    """int64 [n]: bin of each score, 0 to bins - 1; with many equal scores some bins are larger, and some empty."""
    values = np.asarray(scores, np.float64)
    if not len(values):
        return np.zeros(0, np.int64)
    return np.searchsorted(np.quantile(values, np.arange(1, bins) / bins), values, side="right")


def reliability(clicked: ArrayLike, scores: ArrayLike, bins: int = BINS) -> Reliability:
    """The reliability diagram of scores against clicks.

    >>> reliability([0, 0, 0, 1], [0.1, 0.1, 0.6, 0.8], bins=2).predicted.round(2).tolist()
    [0.1, 0.7]
    """
    labels, values = np.asarray(clicked, np.float64), np.asarray(scores, np.float64)
    bin_of = equal_mass_bins(values, bins)
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    predicted, observed = (np.bincount(bin_of, one, minlength=bins)[held] / count[held] for one in (values, labels))
    return Reliability(count[held], predicted, observed)


def calibration_error(clicked: ArrayLike, scores: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the mean over impressions of |predicted - observed| of their bin; NaN without any.

    0 is calibrated, but no finite sample gives 0: scores that are exactly right with click rate p come out at about
    sqrt(2 p (1 - p) bins / (pi n)). Compare models on the same impressions, and not with 0.

    Source:  Naeini, Cooper and Hauskrecht 2015; Nguyen and O'Connor 2015 for bins of equal mass.
    """
    found = reliability(clicked, scores, bins)
    if not len(found.impressions):
        return math.nan
    return float(np.average(np.abs(found.predicted - found.observed), weights=found.impressions))
