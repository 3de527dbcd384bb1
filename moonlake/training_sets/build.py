"""Training sets built and replayed: label rows with their point-in-time features, as files and a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, cast

import pyarrow as pa
from feast import FeatureView

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.joins.plan import delta_source
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.feast_delta.store import (
    definition_of,
    definitions_hash,
    feature_store,
    service_views,
    versions_read,
)
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import SPACE_ID, TRAINING_SETS
from moonlake.settings import Settings
from moonlake.training_sets.diff import definition_changes
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.labels import LabelTable
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet, manifest_of
from moonlake.training_sets.verify import versions_gone
from moonlake.version import __version__


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The result of a build.

    Attributes:
        built: False when the folder already held exactly this training set.
        warnings: what differs from the manifest that was rebuilt, without harm to its rows.
    """

    training_set: TrainingSet
    built: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """The inputs of a build."""

    settings: Settings
    inputs: Manifest
    labels: LabelTable
    views: Sequence[FeatureView]


class _Streamed(Protocol):
    """A retrieval of either engine, which gives its result in blocks of label rows, in their order."""

    def to_batches(self) -> Iterator[pa.Table]: ...


def run(settings: Settings, spec: TrainingSetSpec, *, written_at: datetime) -> BuildReport:
    """Build the training set, or find it built already; one row of `training_sets` says that it is there.

    Raises:
        InputError: no settled label row in the window, or a specification that cannot be met.
        NotFound: an unknown feature service, view, table, version or column.
    """
    plan = _plan(settings, spec, spec.versions)
    folder = settings.training_set(spec.name)
    present = manifest_of(folder)
    built = present is None or not present.same_inputs(plan.inputs)
    training_set = _build(plan, folder) if built else TrainingSet.open(folder)
    _register(Lake(settings), training_set, written_at)
    return BuildReport(training_set, built)


def replay(settings: Settings, manifest: Manifest, folder: Path, *, written_at: datetime | None) -> BuildReport:
    """The training set of a manifest built again at its versions, byte for byte, whatever the tables hold by now.

    Args: written_at: for the row of `training_sets`, where it is not there yet; None writes none.
    Raises:
        InputError: definitions changed since, or other rows or bytes came out; the message names what differs.
        NotFound: a version is no longer there.
    """
    name = manifest.spec.name
    if gone := versions_gone(settings, manifest.table_versions):
        raise NotFound(f"training set {name} cannot be built again: {'; '.join(gone)}")
    plan = _plan(settings, manifest.spec, manifest.table_versions)
    if changes := definition_changes(manifest.definitions, plan.inputs.definitions):
        raise InputError(f"training set {name} cannot be built again, definitions changed: {'; '.join(changes)}")
    training_set = _build(plan, folder, manifest)
    if written_at is not None:
        _register(Lake(settings), training_set, written_at)
    now, then = ({"moonlake": each.code_version, **each.libraries} for each in (plan.inputs, manifest))
    warnings = [
        f"built by {name} {then.get(name)}, now {now.get(name)}" for name in then if then[name] != now.get(name)
    ]
    return BuildReport(training_set, built=True, warnings=tuple(warnings))


def _plan(settings: Settings, spec: TrainingSetSpec, versions: Mapping[str, int]) -> _Plan:
    labels = LabelTable.open(settings, spec, versions.get(spec.label_table))
    pinned = {**versions, labels.subject: labels.snapshot.version}
    latest = feature_store(settings, versions=pinned)
    views = service_views(latest, spec.feature_service)
    sequences = [view.name for view in views if isinstance(delta_source(view), BehaviorSequenceSource)]
    if unknown := sorted(spec.sequence_lengths.keys() - set(sequences)):
        raise NotFound(f"{spec.feature_service} has no sequence views {unknown}; it has {', '.join(sequences)}")
    read = versions_read(latest, views) | {labels.subject: labels.snapshot.version}
    if unread := sorted(versions.keys() - read.keys()):
        raise NotFound(f"training set {spec.name} reads no tables {unread}; it reads {', '.join(read)}")
    if pinned_otherwise := [
        f"{name} {read[name]}, not {versions[name]}" for name in versions if read[name] != versions[name]
    ]:
        raise InputError(f"training set {spec.name}: its sources pin other versions: {'; '.join(pinned_otherwise)}")
    inputs = Manifest(
        spec=spec,
        table_versions=read,
        definitions=[definition_of(view) for view in views],
        definitions_hash=definitions_hash(views),
        code_version=__version__,
        libraries={"pyarrow": pa.__version__},
        label_key=labels.key,
    )
    return _Plan(settings, inputs, labels, views)


def _build(plan: _Plan, folder: Path, expected: Manifest | None = None) -> TrainingSet:
    spec = plan.inputs.spec
    # Beside the folder, and so on its disk: the logs move into the training set when that is published.
    logs = folder.with_name(f".{folder.name}.sequences") if spec.sequences == "pointers" else None
    store = feature_store(
        plan.settings,
        versions=plan.inputs.table_versions,
        sequence_length=spec.sequence_length,
        sequence_lengths=spec.sequence_lengths,
        sequence_logs=logs,
    )
    labels = plan.labels.read(spec)
    job = store.get_historical_features(
        _in_space(labels, spec, plan.views),
        store.get_feature_service(spec.feature_service),
        filter_by_created_timestamp=spec.known_by == "written",
    )
    batches = cast(_Streamed, job).to_batches()
    try:
        return write_training_set(folder, plan.inputs, labels, batches, expected=expected, sequence_logs=logs)
    finally:
        if logs is not None:
            shutil.rmtree(logs, ignore_errors=True)


def _in_space(labels: pa.Table, spec: TrainingSetSpec, views: Sequence[FeatureView]) -> pa.Table:
    """The label rows with the space of the specification, where a view is keyed by it and the rows do not say."""
    keyed = [view.name for view in views if SPACE_ID.name in view.join_keys]
    if not keyed or SPACE_ID.name in labels.column_names:
        return labels
    if spec.space_id is None:
        raise InputError(f"training set {spec.name}: views {keyed} are keyed by {SPACE_ID.name}; state a space")
    return labels.append_column(SPACE_ID.name, pa.repeat(spec.space_id, len(labels)))


def _register(lake: Lake, training_set: TrainingSet, written_at: datetime) -> None:
    manifest = training_set.manifest
    if manifest.training_set_id in lake.read(TRAINING_SETS.name, ["training_set_id"])["training_set_id"].to_pylist():
        return
    row = {
        "training_set_id": manifest.training_set_id,
        "name": manifest.spec.name,
        "folder": str(training_set.folder.absolute()),
        "rows": manifest.rows,
        "manifest": manifest.as_json(),
        "event_timestamp": written_at,
    }
    rows = pa.Table.from_pylist([row], schema=arrow_schema(TRAINING_SETS, TRAINING_SETS.facts))
    lake.append(TRAINING_SETS.name, rows, written_at=written_at)
