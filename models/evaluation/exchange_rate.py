"""The exchange rate: how much AUC a gain in an intermediate metric buys, over spaces with the CTR model held fixed.

Everything that is measured is drawn again and again: trials of the intermediate metrics, users of the impressions and
runs of the CTR model. Trials and users are drawn independently of each other. The spaces are not drawn: the
figures speak of these spaces, and not of the next one.

Source:  MOON (arXiv 2511.11305), the exchange rate between intermediate metrics and CTR gains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluation.association import correlation, kendall, midranks, quotient, slope
from models.evaluation.bootstrap import Estimate, estimates, means_over_runs, ratios
from models.evaluation.click_metrics import drawn_metrics
from models.evaluation.purchase_trials import Trials
from models.evaluation.ranking import CUTOFFS
from moonlake.arrays import Float64s, Int64s
from moonlake.errors import InputError

Target = Literal["auc", "gauc"]

STEP = 0.01
"""Rates and slopes are given for this gain of the intermediate metric."""
FEWEST_SPACES = 3
"""A line and a rank correlation need so many."""
IMAGE_SEARCH = "image_search_"
"""How the names of all metrics of image search begin."""
IMAGE_RECALL = f"{IMAGE_SEARCH}hit_"
"""How those of its recall begin."""


class Candidate(NamedTuple):
    """An intermediate metric of N spaces: a sum over a sum, on the same T rows.

    Attributes:
        numerators: float64 [T, N].   denominators: float64 [T, N] or [T, 1].
        clusters: [T], equal for rows that are not independent.
        trials: what the rows are: candidates on the same trials are drawn by the same draws.
    """

    name: str
    numerators: Float64s
    denominators: Float64s
    clusters: NDArray[Any]
    trials: str = ""


class Clicks(NamedTuple):
    """Impressions with the scores that each space's CTR models give them.

    Attributes:
        clicked, users: [n].
        scores: of each space float64 [S, n], one row a run of the CTR model; the same seeds in the same places.
    """

    clicked: NDArray[Any]
    users: NDArray[Any]
    scores: Sequence[Float64s]


class Measured(NamedTuple):
    """One space: what its runs of the CTR model reach on average, and its intermediate metrics by name."""

    name: str
    runs: int
    target: Estimate
    metrics: Mapping[str, Estimate]


class Exchange(NamedTuple):
    """From one space to a later one.

    Attributes:
        moved: of the intermediate metric.
        gained: of AUC (or GAUC).
        rate: gained for each STEP moved; None where the metric moved less than
            `models.evaluation.association.CLEAR` standard errors.
    """

    metric: str
    before: str
    after: str
    moved: Estimate
    gained: Estimate
    rate: Estimate | None


class Predictor(NamedTuple):
    """The relation of an intermediate metric to AUC (or GAUC) across all spaces.

    Attributes:
        slope: least squares, AUC for each STEP, without the attenuation by the metric's own noise; None where blank.
        pearson: by which predictors are ordered.   spearman, kendall: rank correlations, ties at half.
        best_in: share of the draws in which no candidate has a larger `pearson`.
        blank: why there is no slope; empty where there is one.
    """

    metric: str
    slope: Estimate | None
    pearson: float
    spearman: Estimate
    kendall: Estimate
    best_in: float
    blank: str


@dataclass(frozen=True, slots=True)
class ExchangeRates:
    """The result of a comparison: predictors, best first, and its conclusions in words."""

    target: Target
    spaces: list[Measured]
    pairs: list[Exchange]
    predictors: list[Predictor]
    verdict: list[str]

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values: an estimate is [value, low, high], what is undefined or blank is None."""
        spaces = [_plain(one._asdict()) for one in self.spaces]
        pairs, predictors = ([_plain(one._asdict()) for one in rows] for rows in (self.pairs, self.predictors))
        words = {"target": self.target, "step": STEP, "verdict": self.verdict}
        return words | {"spaces": spaces, "pairs": pairs, "predictors": predictors}


def retrieval_candidates(trials: Trials, places: Int64s) -> list[Candidate]:
    """Hit rates at CUTOFFS and the mean reciprocal rank, by the names that `Recall.metrics` has.

    Args: places: int64 [N, T], what `places_of` gave for each space.
    """
    weights = trials.weights[:, None]
    of_spaces = places.T  # [T, N]
    found = {f"hit_{cutoff}": of_spaces <= cutoff for cutoff in CUTOFFS} | {"mrr": 1.0 / of_spaces}
    return [
        Candidate(f"{trials.task}_{name}", values * weights, weights, trials.query_rows, trials.task)
        for name, values in found.items()
    ]


def require_held_fixed(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError, which names two that differ, unless all CTR models are the same but for seed and space.

    Args: models: by name, everything that decides what a model is, seed and space left out.
    """
    (first, expected), *others = models.items()
    for name, found in others:
        if different := [key for key in {**expected, **found} if expected.get(key) != found.get(key)]:
            apart = "; ".join(f"{key} {expected.get(key)} and {found.get(key)}" for key in different)
            raise InputError(
                f"CTR models {first} and {name} differ in more than seed and space ({apart}): "
                "an exchange rate holds the CTR model fixed, choose models that are alike"
            )


def exchange_rates(
    spaces: Sequence[str],
    candidates: Sequence[Candidate],
    clicks: Clicks,
    *,
    target: Target = "auc",
    seed: int = 0,
) -> ExchangeRates:
    """The exchange rates of intermediate metrics and AUC (or GAUC) over spaces, oldest first.

    Raises: InputError: fewer than two spaces, one named twice, or impressions of one class only.
    """
    if len(spaces) < 2 or len(set(spaces)) < len(spaces):
        raise InputError(f"an exchange rate is between two or more different spaces, found {', '.join(spaces)}")
    order = list(dict.fromkeys(one.trials for one in candidates))
    drawn = {
        one.name: ratios(one.numerators, one.denominators, one.clusters, seed=seed + 1 + order.index(one.trials))
        for one in candidates
    }
    gains = drawn_target(clicks, target, seed=seed)
    if np.isnan(gains[0]).any():
        raise InputError(f"{target} is undefined: the impressions hold no clicked one, or no unclicked one beside it")
    runs = [len(one) for one in clicks.scores]
    return compare(spaces, drawn, gains, runs=runs, target=target)


def drawn_target(clicks: Clicks, target: Target, *, seed: int = 0) -> Float64s:
    """float64 [1 + DRAWS, N]: AUC (or GAUC) of each space's CTR model, the mean over its runs."""
    drawn = drawn_metrics(clicks.clicked, np.concatenate(clicks.scores), clicks.users, [target], seed=seed)[target]
    runs = [len(one) for one in clicks.scores]
    parts = np.split(drawn, np.cumsum(runs)[:-1], axis=1)
    # What is compared is never one space: a pair knows the spread of runs from both.
    means = [means_over_runs(part, seed=seed, degrees=2 * (of - 1)) for part, of in zip(parts, runs, strict=True)]
    return np.stack(means, axis=1)


def compare(
    spaces: Sequence[str],
    drawn: Mapping[str, Float64s],
    gains: Float64s,
    *,
    runs: Sequence[int],
    target: Target = "auc",
) -> ExchangeRates:
    """The same from what was drawn: float64 [1 + DRAWS, N] of each metric and of AUC (or GAUC)."""
    figures = {name: estimates(values) for name, values in drawn.items()}
    reached = estimates(gains)
    measured = [
        Measured(name, runs[at], reached[at], {metric: of_spaces[at] for metric, of_spaces in figures.items()})
        for at, name in enumerate(spaces)
    ]
    pairs = [
        _exchange(metric, spaces, values, gains, *pair)
        for metric, values in drawn.items()
        for pair in combinations(range(len(spaces)), 2)
    ]
    predictors = _predictors(spaces, drawn, gains)
    return ExchangeRates(target, measured, pairs, predictors, _verdict(target, measured, predictors))


def _exchange(
    metric: str, spaces: Sequence[str], drawn: Float64s, gains: Float64s, before: int, after: int
) -> Exchange:
    moved, gained = drawn[:, after] - drawn[:, before], gains[:, after] - gains[:, before]
    shown = estimates(np.stack([moved, gained], axis=1))
    return Exchange(metric, spaces[before], spaces[after], shown[0], shown[1], quotient(gained * STEP, moved))


def _predictors(spaces: Sequence[str], drawn: Mapping[str, Float64s], gains: Float64s) -> list[Predictor]:
    """Best first; without enough spaces for a line, none."""
    if len(spaces) < FEWEST_SPACES or not drawn:
        return []
    pearson = {metric: correlation(values, gains) for metric, values in drawn.items()}
    table = np.nan_to_num(np.stack(list(pearson.values()), axis=1)[1:], nan=-np.inf)  # [DRAWS, metrics]
    best = (table == table.max(1, keepdims=True)) & np.isfinite(table)
    found = []
    for at, (metric, values) in enumerate(drawn.items()):
        undefined = [space for space, value in zip(spaces, values[0], strict=True) if np.isnan(value)]
        line = None if undefined else slope(values, gains)
        blank = f"undefined on {', '.join(undefined)}" if undefined else "no clear spread over the spaces"
        by_rank = [correlation(midranks(values), midranks(gains)), kendall(values, gains)]
        spearman, tau = estimates(np.stack(by_rank, axis=1))
        found.append(
            Predictor(
                metric,
                None if line is None else Estimate(*(STEP * one for one in line)),
                float(pearson[metric][0]),
                spearman,
                tau,
                float(best[:, at].mean()),
                "" if line else blank,
            )
        )
    return sorted(found, key=lambda one: (one.slope is None, -np.nan_to_num(one.pearson, nan=-np.inf)))


def _verdict(target: Target, spaces: Sequence[Measured], predictors: Sequence[Predictor]) -> list[str]:
    """The conclusions of a comparison in words, with what cannot be concluded."""
    name, found = target.upper(), []
    if not predictors:
        found.append(f"{len(spaces)} spaces: pairs only; a slope and a rank correlation need {FEWEST_SPACES} or more")
    elif not (lines := [one for one in predictors if one.slope is not None]):
        found.append(
            f"no intermediate metric moved clearly over the spaces: nothing can be said of what predicts {name}"
        )
    else:
        found += _best_predictor(name, lines)
        if (rank := lines[0].spearman.value) < 1:
            found.append(f"{lines[0].metric} does not order the spaces as {name} does: Spearman {rank:+.2f}")
        found.append(
            f"{len(spaces)} spaces: one in {math.factorial(len(spaces))} metrics that have nothing to do with {name} "
            "would order them without a mistake"
        )
    if fewest := [one.name for one in spaces if one.runs < 2]:
        found.append(
            f"one run of the CTR model on {', '.join(fewest)}: its intervals leave out how runs differ by chance"
        )
    return found


def _best_predictor(name: str, lines: Sequence[Predictor]) -> list[str]:
    best = lines[0]
    images = [one for one in lines if one.metric.startswith(IMAGE_RECALL)]
    if all(one.metric.startswith(IMAGE_SEARCH) for one in lines):
        return [f"of image-based search {best.metric} goes with {name} best; nothing else was compared with it"]
    share = f"best in {best.best_in:.0%} of the draws"
    found = f"of {len(lines)} metrics {best.metric} predicts {name} best (correlation {best.pearson:+.3f}, {share})"
    if best in images:
        return [found, "image-based search recall is the best predictor here, as MOON reports"]
    if not images:
        return [found, "image-based search recall was not measured, or did not move clearly"]
    return [
        found,
        f"image-based search recall is NOT the best predictor here: {images[0].metric} has correlation "
        f"{images[0].pearson:+.3f} (best in {images[0].best_in:.0%} of the draws)",
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
