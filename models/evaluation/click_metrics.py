"""Metrics of click models: AUC, GAUC, log loss, calibration, and whether two models differ.

Pure functions over parallel arrays, one element an impression. A metric that is undefined (one class only, no click) is
NaN, never a made-up number. Each is tested against a slow twin or scikit-learn.

Intervals come from draws of users and not of impressions, since the impressions of one user depend on each other. All
models and metrics see the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.evaluation.bootstrap import DRAWS, Estimate, drawn_times, over_runs
from models.evaluation.calibration_error import BINS, calibration_error, equal_mass_bins
from moonlake.arrays import Bools, Float64s, Int64s

Metric = Literal["auc", "gauc", "log_loss", "calibration", "calibration_error"]


@dataclass(frozen=True, slots=True)
class ClickMetrics:
    """The metrics of one model on one set of impressions.

    Attributes:
        gauc: AUC within each user, averaged with impressions as weights.
        gauc_users: users that count in it: those with a clicked and an unclicked impression.
        gauc_users_left_out: users with one class only, who have no AUC.
        calibration: predicted clicks / observed clicks; 1 is calibrated on average.
        calibration_error: `models.evaluation.calibration_error.calibration_error`, over bins of equal mass.
    """

    impressions: int
    clicks: int
    auc: float
    gauc: float
    gauc_users: int
    gauc_users_left_out: int
    log_loss: float
    calibration: float
    calibration_error: float

    def as_json(self) -> dict[str, Any]:
        """The fields by name; an undefined metric is None, since JSON has no NaN."""
        values: dict[str, Any] = asdict(self)
        return {name: None if math.isnan(value) else value for name, value in values.items()}


class UserAucs(NamedTuple):
    """AUC [U] and impressions [U] of each user, users in sorted order; NaN for a user with one class only."""

    auc: Float64s
    impressions: Float64s


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
        calibration_error=calibration_error(labels, values),
    )


def auc(clicked: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The probability that a clicked impression scores above an unclicked one; a tie counts one half.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    labels, values = _parallel(clicked, scores)
    weight = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    return _Ranking(labels, values, np.arange(len(labels))).auc(weight)


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


def drawn_metrics(
    clicked: ArrayLike,
    scores: ArrayLike,
    users: ArrayLike,
    metrics: Sequence[Metric] = ("auc",),
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[Metric, Float64s]:
    """float64 [1 + draws, M] by metric: first of all impressions, then of each draw of users; NaN where undefined.

    Args: scores: [M, n], of M models, or of several runs of them, on the same impressions.
    """
    labels, _, of_user = _parallel(clicked, clicked, users)
    tables = [_parallel(labels, one)[1] for one in np.atleast_2d(np.asarray(scores))]
    names, user = np.unique(of_user, return_inverse=True)
    if not len(names):
        raise ValueError("no impression to measure on")
    measures = {one: [_resampled(one, labels, values, user) for values in tables] for one in metrics}
    found: dict[Metric, list[Float64s]] = {one: [] for one in metrics}
    for times in (np.ones((1, len(names))), *drawn_times(len(names), draws=draws, seed=seed)):
        for one, of_models in measures.items():
            found[one].append(np.stack([measure(times) for measure in of_models], axis=1))
    return {one: np.concatenate(blocks) for one, blocks in found.items()}


def paired_bootstrap(
    clicked: ArrayLike,
    scores: ArrayLike,
    baseline: ArrayLike,
    users: ArrayLike,
    *,
    metric: Metric = "auc",
    samples: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The gain of `scores` over `baseline` in a metric, with a percentile interval over resampled users.

    A draw in which the metric is undefined is left out.
    """
    first, second = _parallel(clicked, scores)[1], _parallel(clicked, baseline)[1]
    found = drawn_metrics(clicked, np.stack([first, second]), users, [metric], draws=samples, seed=seed)[metric]
    differences = found[:, 0] - found[:, 1]
    defined = differences[1:][~np.isnan(differences[1:])]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else (math.nan, math.nan)
    return Estimate(float(differences[0]), float(low), float(high))


def gain_over_runs(
    clicked: ArrayLike,
    scores: ArrayLike,
    baselines: ArrayLike,
    users: ArrayLike,
    *,
    metric: Metric = "auc",
    seed: int = 0,
) -> Estimate:
    """The mean gain of one model's runs over another's, with its interval over runs and users.

    Args: scores, baselines: [S, n], run by run; run s of one is compared with run s of the other.
    """
    first, second = np.atleast_2d(np.asarray(scores)), np.atleast_2d(np.asarray(baselines))
    if first.shape != second.shape:
        raise ValueError(f"runs {first.shape} and {second.shape} cannot be paired: expected [S, n] of both")
    found = drawn_metrics(clicked, np.concatenate([first, second]), users, [metric], seed=seed)[metric]
    return over_runs(found[:, : len(first)] - found[:, len(first) :], seed=seed)


class _Ranking:
    """Impressions in order of score, sorted once, so that the AUC of any weights costs one pass.

    Args: weight_of: int64 [n], which weight an impression has.
    """

    def __init__(self, labels: Float64s, scores: Float64s, weight_of: Int64s) -> None:
        unclicked = np.flatnonzero(labels == 0)
        unclicked = unclicked[np.argsort(scores[unclicked], kind="stable")]
        clicked = np.flatnonzero(labels != 0)
        clicked = clicked[np.argsort(scores[clicked], kind="stable")]  # in order, for the sake of the cache
        self.unclicked, self.clicked = weight_of[unclicked], weight_of[clicked]
        self.below = np.searchsorted(scores[unclicked], scores[clicked], side="left")
        self.not_above = np.searchsorted(scores[unclicked], scores[clicked], side="right")
        self.under = np.zeros(len(unclicked) + 1)  # kept from draw to draw: fresh memory costs more than the sums

    def auc(self, weights: Float64s) -> float:
        """The AUC with the weights [W] that `weight_of` points to."""
        under, positive = self.under, weights[self.clicked]
        np.take(weights, self.unclicked, out=under[1:], mode="clip")
        np.cumsum(under[1:], out=under[1:])
        pairs = positive.sum() * under[-1]
        return float(positive @ (under[self.below] + under[self.not_above]) / (2 * pairs)) if pairs else math.nan


def _resampled(metric: Metric, labels: Float64s, scores: Float64s, user: Int64s) -> Callable[[Float64s], Float64s]:
    """A function: how often each user was taken, float64 [draws, U] -> the metric of each draw, float64 [draws]."""
    count = np.bincount(user).astype(np.float64)
    if metric == "auc":
        ranking = _Ranking(labels, scores, user)
        return lambda times: np.array([ranking.auc(one) for one in times])
    if metric == "gauc":
        by_user = user_aucs(labels, scores, user)
        weight = np.where(np.isnan(by_user.auc), 0.0, by_user.impressions)
        return lambda times: _quotient(times @ (np.nan_to_num(by_user.auc) * weight), times @ weight)
    if metric == "log_loss":
        loss = np.bincount(user, _losses(labels, scores))
        return lambda times: _quotient(times @ loss, times @ count)
    if metric == "calibration":
        predicted, observed = np.bincount(user, scores), np.bincount(user, labels)
        return lambda times: _quotient(times @ predicted, times @ observed)
    cell = user * BINS + equal_mass_bins(scores)  # the bins stay those of all impressions
    excess = np.bincount(cell, scores - labels, minlength=len(count) * BINS).reshape(-1, BINS)  # [U, BINS]
    return lambda times: _quotient(np.abs(times @ excess).sum(1), times @ count)


def _quotient(above: Float64s, below: Float64s) -> Float64s:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


def _losses(labels: Float64s, scores: Float64s) -> Float64s:
    eps = np.finfo(np.float64).eps
    sure = np.clip(scores, eps, 1 - eps)
    return -(labels * np.log(sure) + (1 - labels) * np.log1p(-sure))


def _weighted_mean(values: Float64s, weights: Float64s) -> float:
    defined = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[defined], weights=weights[defined])) if defined.any() else math.nan


def _first_of_each(groups: NDArray[Any]) -> Bools:
    return np.concatenate([[True], groups[1:] != groups[:-1]])


def _starts(*changes: Bools) -> Int64s:
    """Places where a new group begins: at 0, and behind every place where something changed."""
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
