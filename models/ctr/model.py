"""The click model and its artifact: features, what learnt from them (a network or trees), and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.artifacts import read_artifact, write_artifact
from models.ctr.calibrators import Calibrator, read_calibrator, write_calibrator
from models.ctr.config import CtrConfig, saved_ctr_config
from models.ctr.features import EncodedRows, FeatureEncoder, column_reader
from models.ctr.network import CtrNetwork
from models.ctr.trees import TreeColumns, Trees
from moonlake.arrays import Float64s
from moonlake.embeddings.snapshots import Control, Snapshot
from moonlake.errors import InputError, SpaceMismatch
from moonlake.files import publish_folder
from moonlake.hashing import stable_hash

KIND = "ctr"
LINEAGE = "lineage.json"


@dataclass(frozen=True)
class Lineage:
    """The inputs that a model was made from.

    Attributes:
        space_id: the space that the model reads; None if it reads none. A control reads a space of its own.
        true_space_id, control: where a control's vectors came from, and what stands in their place.
        window: [T1, T2) of the training rows.
        labels: what is unusual about the model and must stand beside its figures; empty for an honest one.
    """

    training_set_id: str
    space_id: str | None
    dimension: int | None
    window: tuple[datetime, datetime]
    true_space_id: str | None = None
    control: Control | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class CtrModel:
    """A trained click model: rows in the layout of a training set in, click probabilities out.

    Attributes:
        predictor: what learnt: a network, or trees.
        calibrator: what its probabilities are put right by; None leaves them as they are.
    """

    config: CtrConfig
    features: FeatureEncoder
    predictor: CtrNetwork | Trees
    lineage: Lineage
    metrics: Mapping[str, float]
    model_id: str | None = None
    calibrator: Calibrator | None = None

    @property
    def space_id(self) -> str | None:
        """The embedding space that the model reads; None if it reads none."""
        return self.lineage.space_id

    def predict(self, rows: pa.Table, snapshot: Snapshot | None = None) -> Float64s:
        """Click probabilities [n] of rows in the layout of a training set.

        Raises:
            SpaceMismatch: the snapshot is of another space than the model.
            SchemaMismatch: a column is missing or has another type.
        """
        self.require_snapshot(snapshot)
        return self.probabilities(self.features.encode(column_reader(rows.select), snapshot), snapshot)

    def probabilities(self, rows: EncodedRows, snapshot: Snapshot | None) -> Float64s:
        """Click probabilities [n] of rows that `features` has encoded, calibrated if the model is."""
        found = self.predictor.probabilities(rows, snapshot)
        return found if self.calibrator is None else self.calibrator(found)

    def require_snapshot(self, snapshot: Snapshot | None) -> None:
        """Raise SpaceMismatch, which names both, unless the snapshot is of the space that the model reads."""
        reader = f"CTR model {self.model_id or '(not saved yet)'}"
        if snapshot is not None:
            snapshot.require_space(self.space_id, reader)
        elif self.space_id is not None:
            raise SpaceMismatch(
                f"{reader} reads space {self.space_id}, but was given no snapshot; open one of that space"
            )

    def save(self, folder: Path) -> CtrModel:
        """The model as it lies in the folder from now on: weights, vocabularies, configuration, lineage, metrics."""
        with publish_folder(folder) as staging:
            self.predictor.write(staging)
            self.features.save(staging)
            if self.calibrator is not None:
                write_calibrator(self.calibrator, staging)
            lineage = {**asdict(self.lineage), "window": [edge.isoformat() for edge in self.lineage.window]}
            (staging / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n")
            until = self.lineage.window[1]
            write_artifact(staging, KIND, self.config, tables={}, trained_until=until, metrics=self.metrics)
        return CtrModel.open(folder)

    @classmethod
    def open(cls, folder: Path) -> CtrModel:
        """The model in an artifact folder. Raises NotFound or InputError, naming the file, if it is not whole."""
        artifact = read_artifact(folder, KIND)
        config = saved_ctr_config(artifact.config, where=str(folder))
        lineage = _lineage(folder / LINEAGE)
        features = FeatureEncoder.open(folder)
        predictor: CtrNetwork | Trees
        if config.model == "trees":
            predictor = Trees.open(folder, tree_columns(features, config, lineage.space_id is not None), config.trees)
        else:
            predictor = CtrNetwork.open(folder, config, features.sizes, features.dense_width, lineage.dimension)
        exact = json.dumps([artifact.files_hash("*"), artifact.config], sort_keys=True)
        calibrator = read_calibrator(config.calibration, folder)
        return cls(config, features, predictor, lineage, artifact.metrics, stable_hash(exact), calibrator)


def _lineage(file: Path) -> Lineage:
    """The lineage in an artifact's file; one from before there were several controls has a `shuffle_seed`."""
    document: dict[str, Any] = json.loads(file.read_text())
    start, end = (datetime.fromisoformat(edge) for edge in document["window"])
    control, seed = document.pop("control", None), document.pop("shuffle_seed", None)
    if seed is not None:
        raise InputError(f"{file}: a control whose vectors were shuffled in a way that is no more; train it again")
    labels = tuple(document.pop("labels"))
    return Lineage(**{**document, "window": (start, end)}, control=control and Control(*control), labels=labels)


def tree_columns(features: FeatureEncoder, config: CtrConfig, content: bool) -> TreeColumns:
    """The columns that a configuration's trees read of rows encoded by `features`, with or without similarities."""
    return TreeColumns.of(features, config.trees, config.behavior_length, content=content)
