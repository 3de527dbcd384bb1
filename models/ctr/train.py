"""Train a click model on one window of a training set, and measure it on a later one.

The honest protocol (DESIGN.md, section 3): encoder data < T1 <= training rows < T2 <= test rows. What breaks it is an
error unless it is asked for by name, and then the model carries a label that says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.ctr.calibrators import fit_calibrator
from models.ctr.config import CtrConfig
from models.ctr.features import column_reader
from models.ctr.fit_network import descend
from models.ctr.model import CtrModel, Lineage, tree_columns
from models.ctr.network import CtrNetwork
from models.ctr.training_rows import TrainingRows, missing_share, read_rows
from models.ctr.trees import Trees, grow_trees
from models.evaluation.bootstrap import Estimate
from models.evaluation.click_metrics import ClickMetrics, Metric, click_metrics, log_loss, paired_bootstrap
from models.training.checkpoints import Identity
from models.training.loop import Run
from moonlake.arrays import Bools
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError, PointInTimeError
from moonlake.lake.lake import Lake, WriteReport
from moonlake.progress import UNWATCHED, Step
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import MODEL_VERSIONS
from moonlake.training_sets.training_set import TrainingSet

IN_SAMPLE = "rows before the end of the training window were scored"


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The progress of a training run after a batch; `total` counts the samples of all epochs that may come.

    With trees a batch is a round, and an epoch too: it looks at every sample. Its loss is that of the validation part.
    """

    epoch: int
    samples: int
    total: int
    loss: float
    samples_per_second: float

    def __str__(self) -> str:
        return f"epoch {self.epoch}  loss {self.loss:.4f}  {self.samples_per_second:,.0f} samples/s"


class Told(NamedTuple):
    """The watcher of a training run and the folder that keeps it; neither changes what comes out.

    Attributes: identity: what the run is a function of.
    """

    progress: Step
    run: Run
    identity: Identity


def train_ctr(
    training_set: TrainingSet,
    snapshot: Snapshot | None,
    config: CtrConfig,
    *,
    window: tuple[datetime, datetime],
    allow_seen_rows: bool = False,
    progress: Step = UNWATCHED,
    run: Run | None = None,
) -> CtrModel:
    """A click model of the rows in window = [T1, T2). The same rows, seed and machine give the same weights.

    Args:
        allow_seen_rows: accept a space whose encoder learnt from events at or after the first row; it is labelled.
        progress: takes note of every batch, with a BatchReport.
        run: where checkpoints are kept, and how often; a network that was killed goes on from the last of them and
            comes out the same. Call `run.finished()` when the model is saved. Trees keep none and begin anew: what
            they draw at random is not a function of the round.

    Raises:
        InputError: no rows in the window, or no clicks to learn from, to stop by or to calibrate by; a snapshot that
            the model does not read, or none where it reads one; a checkpoint of another run.
        SpaceMismatch: the training set was specified for another space than the snapshot's.
        PointInTimeError: the encoder of the snapshot's space knows the window.
    """
    if config.model != "trees" and (config.model == "cube") != (snapshot is not None):
        raise InputError(
            f"model {config.model} needs {'a' if snapshot is None else 'no'} snapshot: content is for cube and trees"
        )
    learnt = read_rows(training_set, snapshot, config, window, allow_seen_rows)
    fit = _fit_trees if config.model == "trees" else _fit_network
    training_set_id = training_set.manifest.training_set_id
    identity = {
        "config": asdict(config),
        "training_set_id": training_set_id,
        "window": [edge.isoformat() for edge in window],
        "space_id": snapshot.space_id if snapshot else None,
        "vectors": dict(snapshot.versions) if snapshot else None,
    }
    predictor, metrics = fit(learnt, config, snapshot, Told(progress, run or Run(), identity))
    later = np.flatnonzero(~learnt.fitted)
    calibrator = None
    if config.calibration != "none":
        scores = predictor.probabilities(learnt.rows, snapshot, later)
        calibrator = fit_calibrator(config.calibration, learnt.clicked[later], scores)
    rate = np.full(len(later), learnt.clicked[learnt.fitted].mean(dtype=np.float64))
    metrics["constant_log_loss"] = log_loss(learnt.clicked[later], rate)  # what a model has to beat
    metrics["contents_missing"] = missing_share(learnt.rows) if snapshot else 0.0
    lineage = Lineage(
        training_set_id=training_set_id,
        space_id=snapshot.space_id if snapshot else None,
        dimension=snapshot.dimension if snapshot else None,
        window=window,
        true_space_id=snapshot.true_space_id if snapshot else None,
        control=snapshot.control if snapshot else None,
        labels=learnt.labels,
    )
    return CtrModel(config, learnt.features, predictor, lineage, metrics, calibrator=calibrator)


def score(
    model: CtrModel,
    training_set: TrainingSet,
    snapshot: Snapshot | None = None,
    *,
    start: datetime,
    end: datetime | None = None,
    allow_trained_rows: bool = False,
) -> pa.Table:
    """impression_id, user_id, product_id, event_timestamp, clicked and score of the rows in [start, end).

    Args: allow_trained_rows: score rows that the model was trained on; the table's metadata carries a label then.

    Raises: PointInTimeError: the model was trained on rows at or after `start`.
    """
    in_sample = start < model.lineage.window[1]
    if in_sample and not allow_trained_rows:
        raise PointInTimeError(
            f"test rows start at {start}, but the model was trained on rows until {model.lineage.window[1]}: "
            "test on later rows, or ask for it by name (allow_trained_rows)"
        )
    model.require_snapshot(snapshot)
    read = column_reader(lambda columns: training_set.read(columns, start, end))
    scores = model.probabilities(model.features.encode(read, snapshot), snapshot)
    names = ["impression_id", "user_id", "product_id", "event_timestamp", "clicked"]
    scored = pa.table({**{name: read(name) for name in names}, "score": scores})
    return scored.replace_schema_metadata({"label": IN_SAMPLE} if in_sample else None)


def evaluate(scored: pa.Table, segment: Bools | None = None) -> ClickMetrics:
    """AUC, GAUC, log loss and calibration of what `score` returned, or of the rows where `segment` [n] is true."""
    users = scored["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    return click_metrics(scored["clicked"].to_numpy(), scored["score"].to_numpy(), users, segment=segment)


def gain(scored: pa.Table, baseline: pa.Table, metric: Metric = "auc") -> Estimate:
    """The gain of one model over another in a metric, with its bootstrap interval over users.

    Args: scored, baseline: what `score` returned for the two models, on the same rows.
    """
    if not scored["impression_id"].equals(baseline["impression_id"]):
        raise InputError("two models are compared on the same impressions only: score both on the same rows")
    users = scored["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    clicked, first, second = (one.to_numpy() for one in (scored["clicked"], scored["score"], baseline["score"]))
    return paired_bootstrap(clicked, first, second, users, metric=metric)


def gain_over(baseline: CtrModel, name: str, gains: Mapping[Metric, Estimate], impressions: int) -> dict[str, Any]:
    """The gains of a model over a baseline, with the baseline's name and ids, as plain values to record.

    Args:
        name: of the baseline.   gains: by metric.
        impressions: that both were measured on.
    """
    over = {"against": name, "model_id": baseline.model_id, "space_id": baseline.space_id, "impressions": impressions}
    return over | {metric: found.as_json() for metric, found in gains.items()}


def record_model(
    lake: Lake,
    model: CtrModel,
    test: ClickMetrics,
    *,
    name: str,
    artifact: Path,
    written_at: datetime,
    gain: Mapping[str, Any] | None = None,
) -> WriteReport:
    """Enter a saved model with its test metrics in `model_versions`; recording it again changes nothing.

    Its event time is the end of its training window: that is how far it knows the world.

    Args: gain: what `gain_over` gave; the gates of a release read it.
    """
    if model.model_id is None:
        raise InputError(f"CTR model {name} has no id yet: save it first")
    row = {
        "model_id": model.model_id,
        "name": name,
        "space_id": model.space_id,
        "training_set_id": model.lineage.training_set_id,
        "artifact": str(artifact),
        "metrics": json.dumps(
            {"test": test.as_json(), "training": dict(model.metrics), "labels": model.lineage.labels}
            | ({} if gain is None else {"gain": dict(gain)})
        ),
        "event_timestamp": model.lineage.window[1],
    }
    rows = pa.Table.from_pylist([row], schema=arrow_schema(MODEL_VERSIONS, MODEL_VERSIONS.facts))
    return lake.append("model_versions", rows, written_at=written_at)


def _fit_trees(
    learnt: TrainingRows, config: CtrConfig, snapshot: Snapshot | None, told: Told
) -> tuple[Trees, dict[str, float]]:
    """Trees of the fitted rows, and how it went."""
    columns = tree_columns(learnt.features, config, snapshot is not None)
    each, started = int(learnt.fitted.sum()), time.monotonic()

    def after_round(done: int, loss: float) -> None:
        rate, total = done * each / (time.monotonic() - started), config.trees.max_rounds * each
        told.progress.update(done * each, total, BatchReport(done, done * each, total, loss, rate))

    return grow_trees(
        columns,
        learnt.rows,
        learnt.clicked,
        learnt.fitted,
        snapshot,
        config.trees,
        seed=config.seed,
        after_round=after_round,
    )


def _fit_network(
    learnt: TrainingRows, config: CtrConfig, snapshot: Snapshot | None, told: Told
) -> tuple[CtrNetwork, dict[str, float]]:
    """The network at the epoch of its least validation loss, and how it went."""
    features, total = learnt.features, config.max_epochs * int(learnt.fitted.sum())

    def after_batch(epoch: int, samples: int, loss: float, seconds: float) -> None:
        told.progress.update(samples, total, BatchReport(epoch, samples, total, loss, samples / seconds))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dimension = snapshot.dimension if snapshot else None
        network = CtrNetwork(config, features.sizes, features.dense_width, dimension)
        return network, descend(
            network,
            learnt.rows,
            learnt.clicked,
            learnt.fitted,
            snapshot,
            config,
            run=told.run,
            identity=told.identity,
            after_batch=after_batch,
        )
