"""Metrics of the models in the study of content, run by run and draw by draw, and gains of one over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluation.bootstrap import Estimate, estimates, means_over_runs, over_runs
from models.evaluation.click_metrics import Metric, drawn_metrics
from models.evaluation.click_segments import ClickSegment
from moonlake.arrays import Float64s

IDS, DIN, CUBE = "id", "din", "cube"
SHUFFLED, RANDOM, LATENTS = "cube, shuffled vectors", "cube, random vectors", "cube, true latents"
TREES, TREES_CONTENT = "trees", "trees with content"
METRICS: tuple[Metric, ...] = ("auc", "gauc", "log_loss", "calibration", "calibration_error")
RANKED, GAINED = METRICS[:2], METRICS[:3]


def without(stream: str) -> str:
    """The name of cube that does without a stream."""
    return f"cube without {stream}"


class Scored(NamedTuple):
    """One model: scores float64 [S, n] of its runs on the test rows, and what was saved of each run."""

    name: str
    scores: Float64s
    saved: Sequence[Mapping[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run["seed"] for run in self.saved]

    def of(self, seeds: Sequence[int]) -> Float64s:
        """The scores of some of its runs."""
        return self.scores[[self.seeds.index(seed) for seed in seeds]]


class Measured(NamedTuple):
    """All models on the same n test rows. Attributes: clicked, users: [n].   streams: those that were left out."""

    clicked: Float64s
    users: NDArray[Any]
    segments: Sequence[ClickSegment]
    scored: Sequence[Scored]
    streams: Sequence[str]


@dataclass(frozen=True)
class Draws:
    """Metrics of every run of every model, of all test rows and of each draw of users.

    Models are compared by the seeds that both have.

    Attributes:
        runs: [1 + draws, S] by name and metric.
        seeds: of the S runs, by name.
    """

    runs: Mapping[tuple[str, Metric], Float64s]
    seeds: Mapping[str, list[int]]

    @classmethod
    def of(cls, measured: Measured) -> Draws:
        """All models and metrics by the same draws."""
        stacked = np.concatenate([one.scores for one in measured.scored])  # [runs of all, n]
        drawn = drawn_metrics(measured.clicked, stacked, measured.users, METRICS)
        ends = np.cumsum([len(one.scores) for one in measured.scored])[:-1]
        runs = {
            (one.name, metric): part
            for metric, found in drawn.items()
            for one, part in zip(measured.scored, np.split(found, ends, axis=1), strict=True)
        }
        return cls(runs, {one.name: one.seeds for one in measured.scored})

    def have(self, *names: str) -> bool:
        """Whether all of these models are there, with a seed in common."""
        return bool(self.common(*names))

    def common(self, *names: str) -> list[int]:
        """The seeds that all of these models have."""
        every = [self.seeds.get(name, []) for name in names]
        return [seed for seed in every[0] if all(seed in others for others in every)]

    def mean(self, name: str, metric: Metric) -> Estimate:
        """A model's metric, over runs and users."""
        return over_runs(self.runs[name, metric])

    def gain(self, name: str, against: str, metric: Metric) -> Estimate:
        """The gain of one model over another, run by run and draw by draw."""
        first, second = self._paired(metric, name, against)
        return over_runs(first - second)

    def share(self, name: str, floor: str, ceiling: str, metric: Metric) -> Estimate:
        """(model - floor) / (ceiling - floor), of means over runs; draws whose ceiling is not above are left out."""
        model, lowest, highest = self._paired(metric, name, floor, ceiling)
        gained, gap = means_over_runs(model - lowest), means_over_runs(highest - lowest)
        found: Float64s = np.divide(gained, gap, out=np.full(len(gap), np.nan), where=gap > 0)
        return estimates(found[:, None])[0]

    def _paired(self, metric: Metric, *names: str) -> list[Float64s]:
        """The runs of the seeds that all of these models have, [1 + draws, S] each."""
        seeds = self.common(*names)
        return [self.runs[name, metric][:, [self.seeds[name].index(seed) for seed in seeds]] for name in names]
