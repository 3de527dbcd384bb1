"""Every metric against scikit-learn or a slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from models.metrics import auc, calibration, click_metrics, gauc, log_loss, paired_bootstrap, user_aucs


@pytest.fixture
def impressions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clicks, scores with many ties, and users of whom some have one class only."""
    rng = np.random.default_rng(1)
    users = np.array([f"u{k}" for k in rng.integers(0, 40, 600)])
    scores = np.round(rng.random(600), 1)
    return rng.random(600) < scores * 0.4, scores, users


def test_auc_is_scikit_learns_with_and_without_weights(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, _ = impressions
    weights = np.random.default_rng(2).integers(0, 4, len(scores))
    assert auc(clicked, scores) == pytest.approx(roc_auc_score(clicked, scores), abs=1e-12)
    expected = roc_auc_score(clicked, scores, sample_weight=weights)
    assert auc(clicked, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_gauc_is_a_loop_over_users(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, users = impressions
    users = np.where(np.arange(600) < 5, [f"alone{k}" for k in range(600)], users)  # users of one class
    total = weight = left_out = 0.0
    for user in np.unique(users):
        own = users == user
        if len(set(clicked[own])) == 1:
            left_out += 1
            continue
        total += own.sum() * roc_auc_score(clicked[own], scores[own])
        weight += own.sum()
    metrics = click_metrics(clicked, scores, users)
    assert metrics.gauc == pytest.approx(total / weight, abs=1e-12)
    assert metrics.gauc_users_left_out == left_out >= 5
    assert metrics.gauc_users + metrics.gauc_users_left_out == len(np.unique(users))


def test_gauc_ignores_what_differs_between_users_only() -> None:
    clicked, users = [0, 1, 0, 1], ["a", "a", "b", "b"]
    assert gauc(clicked, [0.1, 0.2, 0.8, 0.9], users) == 1.0
    assert auc(clicked, [0.1, 0.2, 0.8, 0.9]) == 0.75


def test_log_loss_is_scikit_learns_and_stays_finite_when_sure_and_wrong(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, _ = impressions
    inside = np.clip(scores, 0.01, 0.99)
    assert log_loss(clicked, inside) == pytest.approx(sklearn_log_loss(clicked, inside), abs=1e-12)
    assert math.isfinite(log_loss([1, 0], [0.0, 1.0]))


def test_calibration_is_predicted_over_observed_clicks() -> None:
    assert calibration([1, 0, 1, 0], [0.5, 0.5, 0.25, 0.25]) == 0.75


def test_undefined_metrics_are_nan_and_null_in_json() -> None:
    metrics = click_metrics([0, 0], [0.1, 0.2], ["a", "b"])
    assert all(math.isnan(value) for value in (metrics.auc, metrics.gauc, metrics.calibration))
    assert metrics.as_json()["auc"] is None
    assert click_metrics([], [], []).impressions == 0


def test_a_segment_is_measured_alone(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, users = impressions
    new = np.arange(600) % 3 == 0
    assert click_metrics(clicked, scores, users, segment=new) == click_metrics(clicked[new], scores[new], users[new])


@pytest.mark.parametrize("metric", ["auc", "gauc", "log_loss"])
def test_bootstrap_draws_agree_with_a_slow_twin(impressions: tuple[np.ndarray, ...], metric: str) -> None:
    clicked, scores, users = impressions
    scores = np.clip(scores, 0.05, 0.95)
    baseline = np.clip(np.random.default_rng(3).random(600), 0.05, 0.95)
    measure = {"auc": lambda c, s, _: auc(c, s), "gauc": gauc, "log_loss": lambda c, s, _: log_loss(c, s)}[metric]
    names = np.unique(users)
    rng = np.random.default_rng(7)
    slow = []
    for _ in range(50):
        rows, drawn = [], []
        for copy, user in enumerate(rng.integers(0, len(names), len(names))):
            own = np.flatnonzero(users == names[user])
            rows.append(own)
            drawn += [f"{user}-{copy}"] * len(own)
        rows, who = np.concatenate(rows), np.array(drawn)
        slow.append(measure(clicked[rows], scores[rows], who) - measure(clicked[rows], baseline[rows], who))
    interval = paired_bootstrap(clicked, scores, baseline, users, metric=metric, samples=50, seed=7)  # type: ignore[arg-type]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-9)
    assert interval.low <= interval.difference <= interval.high


def test_bootstrap_of_a_model_with_itself_is_zero(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, users = impressions
    interval = paired_bootstrap(clicked, scores, scores, users, samples=20)
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_arrays_that_are_not_parallel_or_hold_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="parallel"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match="NaN"):
        auc([0, 1], [0.5, float("nan")])


def test_user_aucs_of_nothing_is_nothing() -> None:
    assert len(user_aucs([], [], []).auc) == 0
