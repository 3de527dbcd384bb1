"""The figures that measuring an embedding space brings, by what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.evaluation.attributes import AttributePrecision
    from models.evaluation.bootstrap import Estimate
    from models.evaluation.geometry import Geometry
    from models.evaluation.judged import JudgedFigures
    from models.evaluation.purchase_trials import Task as TrialTask
    from models.evaluation.recall import Recall


@dataclass(frozen=True, slots=True)
class PrefixRecall:
    """Recall with the first numbers of each vector, and by cutoff what its hit rate lacks of that of whole vectors."""

    dimension: int
    recall: Recall
    minus_whole: list[Estimate]

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        lost = [one.as_json() for one in self.minus_whole]
        return {"dimension": self.dimension, "recall": self.recall.as_json(), "minus_whole": lost}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Recall of raw pixels and of a simulation's true latents, and by cutoff the share of that gap that is closed."""

    pixels: Recall
    true_latents: Recall
    gap_closed: list[Estimate]

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "simulated": True,
            "pixels": self.pixels.as_json(),
            "true_latents": self.true_latents.as_json(),
            "gap_closed": [one.as_json() for one in self.gap_closed],
        }


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """Figures of one set of trials; `prefix` and `ceiling` where they were asked for."""

    recall: Recall
    geometry: Geometry
    prefix: PrefixRecall | None
    ceiling: Ceiling | None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values; what was not asked for is left out."""
        asked = {"prefix": self.prefix, "ceiling": self.ceiling}
        found: dict[str, Any] = {"recall": self.recall.as_json(), "geometry": self.geometry.as_json()}
        return found | {name: one.as_json() for name, one in asked.items() if one is not None}


@dataclass(frozen=True, slots=True)
class PurchaseFigures:
    """Figures on what users bought.

    Attributes:
        simulated: sources of the behaviour that are simulations.
        seen: whether training may have seen the rows that were measured on.
        tasks: by set of trials, those that have any.
    """

    subject: str
    simulated: list[str]
    seen: bool
    tasks: dict[TrialTask, TrialFigures]

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        tasks = {name: one.as_json() for name, one in self.tasks.items()}
        return {"subject": self.subject, "simulated": self.simulated, "seen": self.seen, "tasks": tasks}


@dataclass(frozen=True, slots=True)
class AttributeFigures:
    """Precision of one attribute; `prefix` with the first `prefix_dimension` numbers of each vector, if asked for."""

    subject: str
    precision: AttributePrecision
    geometry: Geometry
    prefix_dimension: int | None
    prefix: AttributePrecision | None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values; what was not asked for is left out."""
        found = {"subject": self.subject, "precision": self.precision.as_json(), "geometry": self.geometry.as_json()}
        if self.prefix is not None:
            found["prefix"] = {"dimension": self.prefix_dimension, "precision": self.prefix.as_json()}
        return found


@dataclass(frozen=True, slots=True)
class JudgedEvaluation:
    """nDCG on judged queries; `prefix` with the first numbers of each vector, if asked for."""

    subject: str
    figures: JudgedFigures
    prefix: JudgedEvaluation | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values; what was not asked for is left out."""
        found = {"subject": self.subject} | self.figures.as_json()
        return found if self.prefix is None else found | {"prefix": self.prefix.as_json()}
