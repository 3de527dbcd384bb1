"""Maps that put probabilities right, against scikit-learn and on clicks that they were not fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from models.ctr.calibrators import (
    CLICKS_NEEDED,
    Calibration,
    Platt,
    fit_calibrator,
    fit_isotonic,
    fit_platt,
    read_calibrator,
    write_calibrator,
)
from models.evaluation.calibration_error import calibration_error
from models.evaluation.click_metrics import auc
from moonlake.errors import InputError


def clicks_and_scores(seed: int, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Clicks at a true rate of 4%, and scores that are twice too sure of themselves and too high."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-3.5, 0.8, count)
    clicked = rng.random(count) < 1 / (1 + np.exp(-logits))
    return clicked.astype(np.float32), 1 / (1 + np.exp(-(2 * logits + 5)))


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_probabilities_are_right_on_later_clicks_and_keep_their_order(kind: Calibration) -> None:
    clicked, scores = clicks_and_scores(0)
    later, raw = clicks_and_scores(1)
    calibrator = fit_calibrator(kind, clicked, scores)
    assert calibrator is not None
    found = calibrator(raw)
    assert calibration_error(later, raw) > 0.05
    assert calibration_error(later, found) < 0.004
    assert np.all((found > 0) & (found < 1))
    assert np.all(np.diff(found[np.argsort(raw)]) >= 0)
    if kind == "platt":
        assert auc(later, found) == auc(later, raw)


def test_platts_map_finds_the_distortion_and_agrees_with_scikit_learn() -> None:
    clicked, scores = clicks_and_scores(2)
    found = fit_platt(clicked.astype(np.float64), scores)
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(-2.5, abs=0.06)
    peer = _SigmoidCalibration().fit(np.log(scores / (1 - scores)), clicked)
    assert (found.slope, found.intercept) == pytest.approx((-peer.a_, -peer.b_), abs=1e-3)


def test_where_clicks_contradict_the_order_the_mean_alone_is_put_right() -> None:
    clicked, scores = clicks_and_scores(3)
    found = fit_platt(clicked.astype(np.float64), 1 - scores)
    assert found.slope == 1.0
    assert found(1 - scores).mean() == pytest.approx(clicked.mean(), abs=1e-3)


def test_scores_that_are_all_alike_become_the_click_rate() -> None:
    clicked, _ = clicks_and_scores(4)
    found = fit_platt(clicked.astype(np.float64), np.full(len(clicked), 0.3))
    assert found(np.array([0.3]))[0] == pytest.approx(clicked.mean(), abs=1e-3)


def test_isotonic_regression_is_scikit_learns_within_bounds() -> None:
    clicked, scores = clicks_and_scores(5, 3000)
    found = fit_isotonic(clicked.astype(np.float64), scores)
    at = np.linspace(0, 1, 501)
    peer = IsotonicRegression(out_of_bounds="clip").fit(scores, clicked).predict(at)
    np.testing.assert_allclose(found(at), np.clip(peer, 1 / 3002, 3001 / 3002), atol=1e-9)


def test_scores_of_0_and_1_stay_probabilities() -> None:
    assert np.isfinite(Platt(1.3, -0.2)(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_too_few_clicks_or_too_few_without_one_are_refused(kind: Calibration) -> None:
    needed = CLICKS_NEEDED[kind]
    clicked = np.zeros(5 * needed, np.float32)
    clicked[:needed] = 1
    scores = np.linspace(0.9, 0.1, len(clicked))
    assert fit_calibrator(kind, clicked, scores) is not None
    clicked[0] = 0
    with pytest.raises(InputError, match=f"needs {needed} clicks.*{needed - 1} clicks in {len(clicked)}"):
        fit_calibrator(kind, clicked, scores)
    with pytest.raises(InputError, match="validation_share"):
        fit_calibrator(kind, 1 - clicked, scores)


@pytest.mark.parametrize("kind", ["none", "platt", "isotonic"])
def test_a_saved_calibrator_is_the_same(kind: Calibration, tmp_path: Path) -> None:
    clicked, scores = clicks_and_scores(6)
    calibrator = fit_calibrator(kind, clicked, scores)
    if calibrator is not None:
        write_calibrator(calibrator, tmp_path)
    again = read_calibrator(kind, tmp_path)
    if calibrator is None or again is None:
        assert calibrator is again
    else:
        np.testing.assert_array_equal(again(scores), calibrator(scores))
