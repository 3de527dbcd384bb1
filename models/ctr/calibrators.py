"""Calibrators: monotone maps of a model's click probabilities to what the clicks of later rows bear out.

A model ranks by its scores; what reads them as probabilities (a bid, an expected value, a threshold) needs them to be
right as well. Both maps keep the order of scores: Platt's all of it, so that AUC stays; isotonic regression makes ties.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moonlake.arrays import Float32s, Float64s
from moonlake.errors import InputError

Calibration = Literal["none", "platt", "isotonic"]
CLICKS_NEEDED: Mapping[str, int] = {"platt": 50, "isotonic": 1000}
"""Clicks, and impressions without one, below which a map would follow chance: two parameters, or one a step. With 810
isotonic regression made log loss and AUC of simulated clicks worse; Niculescu-Mizil and Caruana 2005 found 1000."""
FILE = "calibration.json"
NEWTON_STEPS = 50


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope * logit(score) + intercept): it widens or narrows the scores, and moves their mean."""

    slope: float
    intercept: float

    def __call__(self, scores: Float64s) -> Float64s:
        """Probabilities [n] of scores [n]."""
        return _sigmoid(self.slope * _logit(scores) + self.intercept)


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between knots; outside them the value of the nearest.

    Attributes: scores, probabilities: float64 [K], increasing.
    """

    scores: Float64s
    probabilities: Float64s

    def __call__(self, scores: Float64s) -> Float64s:
        """Probabilities [n] of scores [n]."""
        return np.interp(scores, self.scores, self.probabilities)


Calibrator = Platt | Isotonic


def fit_calibrator(kind: Calibration, clicked: Float32s, scores: Float64s) -> Calibrator | None:
    """The map of that kind that fits clicks [n] to scores [n] best; None for "none".

    Raises: InputError: too few clicks, see `require_enough`.
    """
    if kind == "none":
        return None
    require_enough(kind, clicked)
    labels = clicked.astype(np.float64)
    return fit_platt(labels, scores) if kind == "platt" else fit_isotonic(labels, scores)


def require_enough(kind: Calibration, clicked: Float32s) -> None:
    """Raise InputError, with the counts, unless a map of that kind can be fitted to clicks [n]."""
    clicks = int(clicked.sum(dtype=np.float64))
    fewest, needed = min(clicks, len(clicked) - clicks), CLICKS_NEEDED.get(kind, 0)
    if fewest < needed:
        raise InputError(
            f"calibration {kind} needs {needed} clicks, and as many impressions without one; the validation part holds "
            f"{clicks} clicks in {len(clicked)}: raise validation_share, take a longer window, or leave calibration out"
        )


def fit_platt(clicked: Float64s, scores: Float64s) -> Platt:
    """Platt's map, fitted by maximum likelihood to the smoothed clicks of his section 2.2.

    Where the clicks contradict the order of the scores the slope would not be positive: it then stays 1, and the
    mean alone is put right.

    Source:  Platt 1999; Lin, Lin and Weng 2007.
    """
    clicks = clicked.sum()
    targets = np.where(clicked > 0, (clicks + 1) / (clicks + 2), 1 / (len(clicked) - clicks + 2))
    x = _logit(scores)
    slope, intercept = _newton(np.stack([x, np.ones_like(x)], 1), targets, np.zeros_like(x), start=[1.0, 0.0])
    if slope <= 0:
        slope, (intercept,) = 1.0, _newton(np.ones((len(x), 1)), targets, x, start=[0.0])
    return Platt(float(slope), float(intercept))


def fit_isotonic(clicked: Float64s, scores: Float64s) -> Isotonic:
    """The increasing map of least squared error. No probability of n impressions is below 1 / (n + 2), or its opposite.

    Source:  Zadrozny and Elkan 2002; pool adjacent violators as scikit-learn has it.
    """
    from sklearn.isotonic import IsotonicRegression  # it takes a second to import

    least = 1 / (len(clicked) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(scores, clicked)
    return Isotonic(fitted.X_thresholds_.astype(np.float64), fitted.y_thresholds_.astype(np.float64))


def write_calibrator(calibrator: Calibrator, folder: Path) -> None:
    """Write a calibrator into an artifact folder."""
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(calibrator).items()
    }
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n")


def read_calibrator(kind: Calibration, folder: Path) -> Calibrator | None:
    """The calibrator that `write_calibrator` wrote; None for "none"."""
    if kind == "none":
        return None
    values = json.loads((folder / FILE).read_text())
    if kind == "platt":
        return Platt(**values)
    return Isotonic(**{name: np.array(one, np.float64) for name, one in values.items()})


def _newton(columns: Float64s, targets: Float64s, offset: Float64s, *, start: list[float]) -> Float64s:
    """Weights [k] of columns [n, k] with the greatest likelihood of targets [n] in [0, 1], by damped Newton steps."""
    weights = np.array(start)
    loss = _mean_loss(columns @ weights + offset, targets)
    for _ in range(NEWTON_STEPS):
        found = _sigmoid(columns @ weights + offset)
        gradient = columns.T @ (found - targets) / len(targets)
        curvature = (columns * (found * (1 - found))[:, None]).T @ columns / len(targets)
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(weights)), gradient)
        while (new := _mean_loss(columns @ (weights - step) + offset, targets)) > loss:
            step = step / 2
        weights = weights - step
        if loss - new <= 1e-15:
            break
        loss = new
    return weights


def _mean_loss(logits: Float64s, targets: Float64s) -> float:
    return float(np.mean(np.logaddexp(0, logits) - targets * logits))


def _logit(scores: Float64s) -> Float64s:
    eps = np.finfo(np.float64).eps
    sure = np.clip(scores, eps, 1 - eps)
    return np.log(sure) - np.log1p(-sure)


def _sigmoid(logits: Float64s) -> Float64s:
    return np.exp(-np.logaddexp(0, -logits))
