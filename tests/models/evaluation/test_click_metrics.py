"""Every metric against scikit-learn or a slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from models.evaluation.bootstrap import DRAWS, over_runs
from models.evaluation.calibration_error import BINS, calibration_error, equal_mass_bins, reliability
from models.evaluation.click_metrics import (
    Metric,
    auc,
    calibration,
    click_metrics,
    drawn_metrics,
    gain_over_runs,
    gauc,
    log_loss,
    paired_bootstrap,
    user_aucs,
)

METRICS: tuple[Metric, ...] = ("auc", "gauc", "log_loss", "calibration", "calibration_error")


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


def taken(users: np.ndarray, samples: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each draw the rows of the users that are taken, and who they are: a user taken twice is two users."""
    names = np.unique(users)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        rows, drawn = [], []
        for copy, user in enumerate(rng.integers(0, len(names), len(names))):
            own = np.flatnonzero(users == names[user])
            rows.append(own)
            drawn += [f"{user}-{copy}"] * len(own)
        found.append((np.concatenate(rows), np.array(drawn)))
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_draws_agree_with_a_slow_twin(impressions: tuple[np.ndarray, ...], metric: Metric) -> None:
    clicked, scores, users = impressions
    models = np.clip(np.stack([scores, np.random.default_rng(3).random(600)]), 0.05, 0.95)
    bins = [equal_mass_bins(values) for values in models]

    def measure(model: int, rows: np.ndarray, who: np.ndarray) -> float:
        labels, values = clicked[rows], models[model][rows]
        if metric == "calibration_error":  # in the bins of the whole
            excess = [(values - labels)[bins[model][rows] == one].sum() for one in range(BINS)]
            return float(np.abs(excess).sum() / len(rows))
        if metric == "gauc":
            return gauc(labels, values, who)
        return {"auc": auc, "log_loss": log_loss, "calibration": calibration}[metric](labels, values)

    slow = [[measure(model, *rows) for model in (0, 1)] for rows in [(np.arange(600), users), *taken(users, 50, 7)]]
    drawn = drawn_metrics(clicked, models, users, METRICS, draws=50, seed=7)[metric]
    np.testing.assert_allclose(drawn, slow, atol=1e-9)
    found = paired_bootstrap(clicked, models[0], models[1], users, metric=metric, samples=50, seed=7)
    differences = np.subtract(*np.array(slow).T)
    assert (found.value, found.low, found.high) == pytest.approx(
        (differences[0], *np.quantile(differences[1:], [0.025, 0.975])), abs=1e-9
    )


def test_an_undefined_draw_is_nan_and_left_out_of_the_interval() -> None:
    clicked, scores, users = [1, 0, 0], [0.9, 0.1, 0.2], ["a", "b", "c"]
    drawn = drawn_metrics(clicked, [scores], users, ("auc", "gauc", "calibration"), draws=200)
    assert np.isnan(drawn["gauc"]).all()  # nobody has both classes
    without_a_click = np.isnan(drawn["auc"][1:, 0])
    assert 0.2 < without_a_click.mean() < 0.5  # (2/3)^3, and (1/3)^3 for draws of the clicked one alone
    assert drawn["auc"][0, 0] == 1
    assert paired_bootstrap(clicked, scores, [0.1, 0.2, 0.3], users).low == 1
    with pytest.raises(ValueError, match="no impression"):
        drawn_metrics([], [[]], [])


def test_the_gain_of_several_runs_is_their_mean_and_its_interval_knows_runs_and_users() -> None:
    rng = np.random.default_rng(5)
    users, clicked = np.repeat(np.arange(300), 8), rng.random(2400) < 0.3
    runs = [strength * clicked + rng.normal(size=2400) for strength in (0.5, 0.8, 1.1)]
    base = [0.3 * clicked + rng.normal(size=2400) for _ in range(3)]
    found = gain_over_runs(clicked, runs, base, users)
    single = [paired_bootstrap(clicked, run, other, users) for run, other in zip(runs, base, strict=True)]
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    drawn = drawn_metrics(clicked, [*runs, *base], users)["auc"]
    assert drawn.shape == (1 + DRAWS, 6)
    assert found == over_runs(drawn[:, :3] - drawn[:, 3:])
    users_alone = np.quantile((drawn[1:, :3] - drawn[1:, 3:]).mean(1), [0.025, 0.975])
    assert found.high - found.low > 1.2 * np.diff(users_alone)[0]  # the runs differ by more than chance of users
    one = gain_over_runs(clicked, runs[:1], base[:1], users)
    assert one == pytest.approx((single[0].value, single[0].low, single[0].high))
    with pytest.raises(ValueError, match="cannot be paired"):
        gain_over_runs(clicked, runs, base[:2], users)


def test_calibration_error_is_a_loop_over_bins_of_equal_mass() -> None:
    rng = np.random.default_rng(6)
    scores = rng.beta(1, 12, 4_000)
    clicked = rng.random(4_000) < scores * 1.5
    edges = np.quantile(scores, np.arange(1, 10) / 10)
    total, sizes = 0.0, []
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        own = (low <= scores) & (scores < high)
        total += own.mean() * abs(scores[own].mean() - clicked[own].mean())
        sizes.append(int(own.sum()))
    assert calibration_error(clicked, scores, bins=10) == pytest.approx(total, abs=1e-12)
    assert sizes == [400] * 10 == reliability(clicked, scores, bins=10).impressions.tolist()
    assert (np.diff(reliability(clicked, scores).predicted) > 0).all()


def test_calibration_error_of_scores_that_are_right_is_what_chance_gives() -> None:
    rng = np.random.default_rng(7)
    found = [calibration_error(rng.random(20_000) < (p := rng.uniform(0.09, 0.11, 20_000)), p) for _ in range(60)]
    assert np.mean(found) == pytest.approx(math.sqrt(2 * 0.1 * 0.9 * BINS / (math.pi * 20_000)), rel=0.05)


def test_equal_scores_share_a_bin_and_nothing_has_no_calibration_error() -> None:
    assert len(set(equal_mass_bins([0.1] * 90 + [0.2] * 10).tolist())) == 2
    assert calibration_error([1, 0], [0.5, 0.5]) == 0
    assert math.isnan(calibration_error([], []))


def test_bootstrap_of_a_model_with_itself_is_zero(impressions: tuple[np.ndarray, ...]) -> None:
    clicked, scores, users = impressions
    interval = paired_bootstrap(clicked, scores, scores, users, samples=20)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_arrays_that_are_not_parallel_or_hold_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="parallel"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match="NaN"):
        auc([0, 1], [0.5, float("nan")])


def test_user_aucs_of_nothing_is_nothing() -> None:
    assert len(user_aucs([], [], []).auc) == 0
