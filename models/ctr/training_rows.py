"""Training rows of a click model: the rows of a window, encoded, and the labels that must stand beside its figures."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.ctr.calibrators import require_enough
from models.ctr.config import CtrConfig
from models.ctr.features import PADDING, EncodedRows, FeatureEncoder, column_reader
from moonlake.arrays import Bools, Float32s
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError, PointInTimeError
from moonlake.training_sets.training_set import TrainingSet

SAW_THE_ROWS = "the embedding space was trained on events of the training window or later"
FEW_CLICKS = "training was stopped by few clicks, so that chance had a say in it"
ENOUGH_CLICKS = 50
"""In the validation part; where clicks are rare, its log loss has a standard error of 14% then: 1 / sqrt(50)."""


class TrainingRows(NamedTuple):
    """Training rows of every kind of model: n encoded rows, and labels for what is unusual about them.

    Attributes:
        clicked: float32 [n].
        fitted: bool [n], true for the rows that are fitted; the last part by time tells when to stop.
        labels: of the model's lineage.
    """

    features: FeatureEncoder
    rows: EncodedRows
    clicked: Float32s
    fitted: Bools
    labels: tuple[str, ...]


def read_rows(
    training_set: TrainingSet,
    snapshot: Snapshot | None,
    config: CtrConfig,
    window: tuple[datetime, datetime],
    allow_seen_rows: bool,
) -> TrainingRows:
    """The rows of a window, encoded as those of its first part tell. Raises what `train_ctr` raises."""
    if snapshot and not snapshot.is_apart and training_set.manifest.space_id not in (None, snapshot.true_space_id):
        snapshot.require_space(training_set.manifest.space_id, f"training set {training_set.folder}")
    read = column_reader(lambda columns: training_set.read(columns, *window))
    times = read("event_timestamp").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    if len(times) < 2:
        raise InputError(f"training set {training_set.folder} has {len(times)} rows in {_span(window)}")
    labels = _protocol_labels(snapshot, read("event_timestamp"), allow_seen_rows)
    fitted = times < np.quantile(times, 1 - config.validation_share, method="higher")
    if not fitted.any():
        raise InputError(f"all {len(times)} rows in {_span(window)} have one time: nothing is left to stop by")
    features = FeatureEncoder.fit(
        read, fitted, config.numbered_ids, config.dense_features, min_count=config.min_count, hashed=config.hashed
    )
    clicked = read("clicked").to_numpy().astype(np.float32)
    if (rate := float(clicked[fitted].mean(dtype=np.float64))) in (0, 1):
        raise InputError(f"{rate:.0%} of {int(fitted.sum())} training rows are clicked: there is nothing to learn")
    labels += _few_clicks(clicked[~fitted], config, window)
    return TrainingRows(features, features.encode(read, snapshot), clicked, fitted, labels)


def missing_share(rows: EncodedRows) -> float:
    """The share of targets, queries and behaviours on products for which the snapshot has no vector."""
    on_product = rows.behavior_ids != PADDING
    pointers = (rows.target_rows, rows.query_rows, rows.behavior_rows[on_product])
    return float(np.mean(np.concatenate(pointers) < 0))


def _protocol_labels(snapshot: Snapshot | None, times: pa.ChunkedArray, allow_seen_rows: bool) -> tuple[str, ...]:
    if snapshot is None:
        return ()
    labels = list(snapshot.labels)
    first = pc.min(times).as_py()
    if snapshot.trained_until is not None and snapshot.trained_until >= first:
        if not allow_seen_rows:
            raise PointInTimeError(
                f"space {snapshot.space_id} was trained on events until {snapshot.trained_until}, the first training "
                f"row is of {first}: train the encoder on earlier events, or ask for it by name (allow_seen_rows)"
            )
        labels.append(SAW_THE_ROWS)
    return tuple(labels)


def _few_clicks(clicked: Float32s, config: CtrConfig, window: tuple[datetime, datetime]) -> tuple[str, ...]:
    """Labels for too few clicks [n] in the validation part. Raises InputError where they cannot tell when to stop."""
    clicks = int(clicked.sum(dtype=np.float64))
    if clicks in (0, len(clicked)):
        raise InputError(
            f"{clicks} of the {len(clicked)} last rows in {_span(window)} are clicked: they cannot tell when to stop; "
            f"raise validation_share, now {config.validation_share}, or take a longer window"
        )
    require_enough(config.calibration, clicked)
    fewest = min(clicks, len(clicked) - clicks)
    return (f"{FEW_CLICKS}: {clicks} of {len(clicked)}",) if fewest < ENOUGH_CLICKS else ()


def _span(window: tuple[datetime, datetime]) -> str:
    return f"[{window[0]}, {window[1]})"
