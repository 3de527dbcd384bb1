"""What a click model is worth: AUC, GAUC, log loss, calibration, and whether two models differ.

Pure functions over parallel arrays, one element an impression. A metric that is undefined (one class only, no click) is
NaN, never a made-up number. Each is tested against a slow twin or scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Metric = Literal["auc", "gauc", "log_loss"]


@dataclass(frozen=True, slots=True)
class ClickMetrics:
    """The metrics of one model on one set of impressions.

    Attributes:
        gauc: AUC within each user, averaged with impressions as weights.
        gauc_users: users that count in it: those with a clicked and an unclicked impression.
        gauc_users_left_out: users with one class only, who have no AUC.
        calibration: predicted clicks / observed clicks; 1 is calibrated on average.
    """

    impressions: int
    clicks: int
    auc: float
    gauc: float
    gauc_users: int
    gauc_users_left_out: int
    log_loss: float
    calibration: float

    def as_json(self) -> dict[str, Any]:
        """The fields by name; an undefined metric is None, since JSON has no NaN."""
        values: dict[str, Any] = asdict(self)
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with its bootstrap interval: `low <= difference <= high` in most draws."""

    difference: float
    low: float
    high: float


class UserAucs(NamedTuple):
    """AUC [U] and impressions [U] of each user, users in sorted order; NaN for a user with one class only."""

    auc: Floats
    impressions: Floats


def click_metrics(
    clicked: ArrayLike, scores: ArrayLike, users: ArrayLike, *, segment: ArrayLike | None = None
) -> ClickMetrics:
    """All metrics of scores against clicks, or of the impressions where `segment` [n] is true.

    Args:
        clicked: bool [n].   scores: probabilities [n].   users: user of each impression [n].
    """
    labels, values, of_user = _parallel(clicked, scores, users)
    if segment is not None:
        chosen = np.asarray(segment, bool)
        labels, values, of_user = labels[chosen], values[chosen], of_user[chosen]
    by_user = user_aucs(labels, values, of_user)
    counted = int(np.sum(~np.isnan(by_user.auc)))
    return ClickMetrics(
        impressions=len(labels),
        clicks=int(labels.sum()),
        auc=auc(labels, values),
        gauc=gauc(labels, values, of_user),
        gauc_users=counted,
        gauc_users_left_out=len(by_user.auc) - counted,
        log_loss=log_loss(labels, values),
        calibration=calibration(labels, values),
    )


def auc(clicked: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The probability that a clicked impression scores above an unclicked one; a tie counts one half.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    labels, values = _parallel(clicked, scores)
    weight = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    return _Ranking(labels, values).auc(weight)


def user_aucs(clicked: ArrayLike, scores: ArrayLike, users: ArrayLike) -> UserAucs:
    """The AUC and the impressions of every user, without a loop over users."""
    labels, values, of_user = _parallel(clicked, scores, users)
    if not len(labels):
        return UserAucs(np.zeros(0), np.zeros(0))
    _, user = np.unique(of_user, return_inverse=True)
    order = np.lexsort((values, user))
    user, values, labels = user[order], values[order], labels[order]
    ties = _starts(user[1:] != user[:-1], values[1:] != values[:-1])
    positive, negative = np.add.reduceat(labels, ties), np.add.reduceat(1.0 - labels, ties)
    starts = np.flatnonzero(_first_of_each(user[ties]))  # first tie group of each user
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[starts], np.diff(starts, append=len(ties)))  # negatives of the same user below the group
    wins = np.add.reduceat(positive * (below + negative / 2), starts)
    pairs = np.add.reduceat(positive, starts) * np.add.reduceat(negative, starts)
    with np.errstate(invalid="ignore"):
        return UserAucs(wins / pairs, np.bincount(user).astype(np.float64))


def gauc(clicked: ArrayLike, scores: ArrayLike, users: ArrayLike) -> float:
    """AUC within each user, averaged with impressions as weights; users with one class only are left out."""
    by_user = user_aucs(clicked, scores, users)
    return _weighted_mean(by_user.auc, by_user.impressions)


def log_loss(clicked: ArrayLike, scores: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; lower is better."""
    labels, values = _parallel(clicked, scores)
    return float(np.mean(_losses(labels, values))) if len(labels) else math.nan


def calibration(clicked: ArrayLike, scores: ArrayLike) -> float:
    """Predicted clicks / observed clicks."""
    labels, values = _parallel(clicked, scores)
    return float(values.sum() / labels.sum()) if labels.sum() else math.nan


def paired_bootstrap(
    clicked: ArrayLike,
    scores: ArrayLike,
    baseline: ArrayLike,
    users: ArrayLike,
    *,
    metric: Metric = "auc",
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How much `scores` exceed `baseline` in a metric, with a percentile interval over resampled users.

    Users and not impressions are drawn, since the impressions of one user depend on each other. Both models see the
    same draws. A draw in which the metric is undefined is left out.
    """
    labels, first, of_user = _parallel(clicked, scores, users)
    _, second = _parallel(clicked, baseline)
    names, user = np.unique(of_user, return_inverse=True)
    measures = [_resampled(metric, labels, values, user) for values in (first, second)]
    once = np.ones(len(names))
    rng = np.random.default_rng(seed)
    differences = np.empty(samples)
    for draw in range(samples):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        differences[draw] = measures[0](times) - measures[1](times)
    defined = differences[~np.isnan(differences)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else (math.nan, math.nan)
    return Interval(measures[0](once) - measures[1](once), float(low), float(high))


class _Ranking:
    """Impressions in order of score, sorted once, so that the AUC of any weights costs one pass."""

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self.order = np.argsort(scores, kind="stable")
        self.labels = labels[self.order]
        ranked = scores[self.order]
        self.ties = _starts(ranked[1:] != ranked[:-1]) if len(ranked) else np.zeros(0, np.int64)

    def auc(self, weights: Floats) -> float:
        """The AUC of the impressions counted `weights` [n] times each."""
        if not len(self.labels):
            return math.nan
        weights = weights[self.order]
        positive = np.add.reduceat(weights * self.labels, self.ties)
        negative = np.add.reduceat(weights * (1.0 - self.labels), self.ties)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative
        return float(np.sum(positive * (below + negative / 2)) / pairs) if pairs else math.nan


def _resampled(metric: Metric, labels: Floats, scores: Floats, user: NDArray[np.int64]) -> Callable[[Floats], float]:
    """A function: how often each user was drawn [U] -> the metric."""
    if metric == "auc":
        ranking = _Ranking(labels, scores)
        return lambda times: ranking.auc(times[user])
    if metric == "gauc":
        by_user = user_aucs(labels, scores, user)
        return lambda times: _weighted_mean(by_user.auc, by_user.impressions * times)
    loss, count = np.bincount(user, _losses(labels, scores)), np.bincount(user)
    return lambda times: float(times @ loss / (times @ count))


def _losses(labels: Floats, scores: Floats) -> Floats:
    eps = np.finfo(np.float64).eps
    sure = np.clip(scores, eps, 1 - eps)
    return -(labels * np.log(sure) + (1 - labels) * np.log1p(-sure))


def _weighted_mean(values: Floats, weights: Floats) -> float:
    defined = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[defined], weights=weights[defined])) if defined.any() else math.nan


def _first_of_each(groups: NDArray[Any]) -> NDArray[np.bool_]:
    return np.concatenate([[True], groups[1:] != groups[:-1]])


def _starts(*changes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where a new group begins: at 0, and behind every place where something changed."""
    return np.concatenate([[0], np.flatnonzero(np.logical_or.reduce(changes)) + 1])


def _parallel(clicked: ArrayLike, *others: ArrayLike) -> tuple[NDArray[Any], ...]:
    """Labels as float64 and the rest as arrays of the same length; scores must be numbers."""
    labels = np.asarray(clicked, np.float64)
    rest = tuple(np.asarray(other) for other in others)
    if any(array.shape != labels.shape for array in rest) or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and the others {[array.shape for array in rest]} must be parallel [n]")
    if np.isnan(rest[0].astype(np.float64)).any():
        raise ValueError("scores hold NaN: the model or a feature is broken")
    return labels, rest[0].astype(np.float64), *rest[1:]
