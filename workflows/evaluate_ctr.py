"""Click models on the same later rows: how each does, what it gains over another, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.evaluate_encoder import simulated_sources
from workflows.train_ctr import snapshot_of

if TYPE_CHECKING:
    import pyarrow as pa

    from models.ctr.model import CtrModel
    from models.evaluation.bootstrap import Estimate
    from models.evaluation.click_metrics import ClickMetrics, Metric
    from models.evaluation.click_segments import ClickSegment
    from moonlake.training_sets.training_set import TrainingSet

METRICS: tuple[Metric, ...] = ("auc", "gauc", "log_loss")
"""The metrics in which a gain is told; of log loss less is better."""


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """A model with its scores and metrics on the test rows."""

    model: CtrModel
    folder: Path
    scored: pa.Table
    metrics: ClickMetrics

    def as_json(self) -> dict[str, Any]:
        """Its identity and its metrics as plain values."""
        lineage = self.model.lineage
        return {
            "model_id": self.model.model_id,
            "model": self.model.config.model,
            "seed": self.model.config.seed,
            "space_id": lineage.space_id,
            "training_window": [edge.isoformat() for edge in lineage.window],
            "labels": list(lineage.labels),
            "metrics": self.metrics.as_json(),
        }


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """A model on the rows of one part of a division, such as "tier 1" of "merchant tier"."""

    model: str
    division: str
    part: str
    metrics: ClickMetrics
    auc_gain: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "model": self.model,
            "division": self.division,
            "part": self.part,
            "metrics": self.metrics.as_json(),
            "auc_gain": None if self.auc_gain is None else self.auc_gain.as_json(),
        }


@dataclass(frozen=True, slots=True)
class CtrEvaluation:
    """Click models on the same rows.

    Attributes:
        window: first and last moment of the rows; None without any.
        simulated: sources of the behaviour that are simulations.
        gains: by model and metric, over the model `against`.
        segments: of each model, where they were asked for.
    """

    training_set: str
    training_set_id: str
    window: tuple[datetime, datetime] | None
    simulated: list[str]
    models: dict[str, MeasuredModel]
    against: str | None
    gains: dict[str, dict[Metric, Estimate]]
    segments: list[SegmentMetrics]

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values, without the scores of single rows."""
        return {
            "training_set": self.training_set,
            "training_set_id": self.training_set_id,
            "simulated": self.simulated,
            "window": [one.isoformat() for one in self.window] if self.window else None,
            "models": {name: one.as_json() for name, one in self.models.items()},
            "against": self.against,
            "gains": {name: {key: one.as_json() for key, one in found.items()} for name, found in self.gains.items()},
            "segments": [one.as_json() for one in self.segments],
        }

    def without_gain(self, minimum: float) -> dict[str, Estimate]:
        """The gain in AUC of each model for which the low end of its interval does not lie above a minimum."""
        gains = {name: found["auc"] for name, found in self.gains.items()}
        return {name: one for name, one in gains.items() if not one.low > minimum}


def evaluate_ctr(
    settings: Settings,
    names: Sequence[str],
    training_set: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    against: str | None = None,
    segments: bool = False,
    written_at: datetime,
) -> CtrEvaluation:
    """Click models on the rows of a training set, entered in `model_versions` with what they gain.

    Args:
        names: of trained models.
        start: first test row; default: the end of the models' training.
        end: moment behind the test rows; default: the set's end.
        against: the model that the others are compared with.
        segments: measure by age of the product, category, merchant tier, head and tail too.
    """
    from moonlake.training_sets.training_set import TrainingSet

    lake, rows = Lake(settings), TrainingSet.open(settings.training_set(training_set))
    wanted = list(dict.fromkeys([*([against] if against else []), *names]))
    measured = _measure(settings, lake, rows, wanted, start, end)
    window = _window(next(iter(measured.values())).scored)
    gains = {} if against is None else _gains(measured, against)
    _record(lake, measured, gains, against, written_at)
    return CtrEvaluation(
        training_set,
        rows.manifest.training_set_id,
        window,
        sorted(simulated_sources(settings, lake, window)) if window else [],
        measured,
        against,
        gains,
        _by_segment(lake, measured, against) if segments else [],
    )


def _measure(
    settings: Settings,
    lake: Lake,
    rows: TrainingSet,
    names: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> dict[str, MeasuredModel]:
    """Every model on the same rows."""
    from models.ctr.model import CtrModel
    from models.ctr.train import evaluate, score

    folders = {name: settings.ctr_model(name) for name in names}
    models = {name: CtrModel.open(folder) for name, folder in folders.items()}
    first = start or max(model.lineage.window[1] for model in models.values())
    found = {}
    for name, model in models.items():
        of = model.lineage.true_space_id
        snapshot = snapshot_of(lake, settings, of, model.lineage.control) if of else None
        scored = score(model, rows, snapshot, start=first, end=end)
        found[name] = MeasuredModel(model, folders[name], scored, evaluate(scored))
    return found


def _record(
    lake: Lake,
    measured: Mapping[str, MeasuredModel],
    gains: Mapping[str, Mapping[Metric, Estimate]],
    against: str | None,
    written_at: datetime,
) -> None:
    """Enter every model in the lake, with what it gains over the one that it is compared with."""
    from models.ctr.train import gain_over, record_model

    for name, one in measured.items():
        gained = None
        if against is not None and name != against:
            gained = gain_over(measured[against].model, against, gains[name], len(one.scored))
        facts: dict[str, Any] = {"name": name, "artifact": one.folder, "written_at": written_at}
        record_model(lake, one.model, one.metrics, gain=gained, **facts)


def _window(scored: pa.Table) -> tuple[datetime, datetime] | None:
    """First and last moment of the test rows; None without any."""
    import pyarrow.compute as pc

    times = scored["event_timestamp"]
    return (pc.min(times).as_py(), pc.max(times).as_py()) if len(times) else None


def _gains(measured: Mapping[str, MeasuredModel], against: str) -> dict[str, dict[Metric, Estimate]]:
    """The excess of each model over the one that it is compared with, by metric."""
    from models.ctr.train import gain

    baseline = measured[against].scored
    return {
        name: {metric: gain(one.scored, baseline, metric) for metric in METRICS}
        for name, one in measured.items()
        if name != against
    }


def _by_segment(lake: Lake, measured: Mapping[str, MeasuredModel], against: str | None) -> list[SegmentMetrics]:
    """Metrics of each model on each part that is large enough, with its gain in AUC."""
    import numpy as np

    from models.evaluation.click_segments import gains_by_segment, metrics_by_segment, read_facts, segments_of

    windows = [one.model.lineage.window for one in measured.values()]
    rows = next(iter(measured.values())).scored
    facts = read_facts(lake, rows, (min(start for start, _ in windows), max(end for _, end in windows)))
    every: list[ClickSegment] = segments_of(facts)
    clicked, users = rows["clicked"].to_numpy(), np.asarray(rows["user_id"].to_pylist())
    found = []
    for name, one in measured.items():
        scores = one.scored["score"].to_numpy()
        gains: dict[tuple[str, str], Estimate] = {}
        if against is not None and name != against:
            others = measured[against].scored["score"].to_numpy()
            of_parts = gains_by_segment(every, clicked, scores, others, users)
            gains = {(part.division, part.part): part.gain for part in of_parts}
        found += [
            SegmentMetrics(name, part.division, part.part, metrics, gains.get((part.division, part.part)))
            for part, metrics in metrics_by_segment(every, clicked, scores, users)
        ]
    return found
