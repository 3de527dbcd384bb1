"""The engine that Feast materialises with: what is true of each key that changed goes from Delta to the online store.

Feast's own engine knows event windows alone: a row that arrives late, or is corrected or deleted, is never served. And
it hands rows on in pandas and numpy, where an integer column with a null becomes floats and ids beyond 2**53 change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView, ValueType
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values

from moonlake.feast_delta.joins import arrow_engine
from moonlake.feast_delta.joins.plan import ViewJoin, delta_source, microseconds_of, plan_pull
from moonlake.feast_delta.offline_store import snapshot_of
from moonlake.feast_delta.online.change_feed import (
    WITHDRAWN,
    FeedGone,
    distinct,
    keys_between,
    keys_changed,
    keys_in_table,
    table_id,
)
from moonlake.feast_delta.online.rules import (
    NEVER_US,
    OnlineRow,
    Overtaken,
    Served,
    ServedOnlineStore,
    WriteRows,
    moment_of,
)
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.feast_delta.store import definition_of
from moonlake.hashing import stable_hash

KEYS_PER_JOIN = 200_000
"""Keys whose rows are gathered at a time; narrow columns are read once for each such block."""

_EVENT, _CREATED, _ACTED = "moonlake event", "moonlake created", "moonlake acted"
"""Columns of the join that tell the times of the row that it found."""


class DeltaChangeEngineConfig(FeastConfigBaseModel):
    """Configuration of `DeltaChangeEngine`."""

    type: Literal["moonlake.feast_delta.materialization.DeltaChangeEngine"] = (
        "moonlake.feast_delta.materialization.DeltaChangeEngine"
    )
    rows_per_write: int = 10_000
    """Keys that are handed to the online store at a time."""


@dataclass(frozen=True, slots=True)
class ViewServed:
    """The report of one view's materialisation.

    Attributes:
        keys: keys that were looked at.
        written: keys of which the online store took the value, or took it away.
        why: "changed keys", or why the whole snapshot was read.
        version: Delta version of the table.
        end: event time up to which rows are online; a later one than asked for if that was served already.
    """

    view: str
    keys: int
    written: int
    why: str
    version: int
    end: datetime

    def __str__(self) -> str:
        done = f"{self.view}: {self.written} of {self.keys} keys written up to {self.end.isoformat()}"
        return f"{done}, from version {self.version} ({self.why})"


class DeltaChangeEngine(LocalComputeEngine):
    """Serves the keys that changed since the Delta version that a view was last served from, and those that have rows
    in Feast's event window, each with its row as of the end of the window, all read at one snapshot.

    The first time, and when the definition of the view or the table is another one, when a version before the one
    served is to be read, or the change feed is not there, all keys are served from the whole snapshot.

    This needs an online store that keeps how far a view was served (`ServedOnlineStore`). To any other the engine
    writes what Feast's own would: the keys that have rows in the event window.

    Attributes:
        reports: what the last materialisation of each view did, by the name of the view.
    """

    def __init__(self, *, rows_per_write: int = 10_000, **engine: Any) -> None:
        super().__init__(**engine)
        self.rows_per_write = rows_per_write
        self.reports: dict[str, ViewServed] = {}

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        derived = getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None)
        if derived or view.source_views or task.disable_event_timestamp:
            return super()._materialize_one(registry, task, **kwargs)
        self.reports[view.name] = self._report(task)
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _report(self, task: MaterializationTask) -> ViewServed:
        if not isinstance(self.online_store, ServedOnlineStore):
            return self._write_window(task, self._join(task.feature_view))
        try:
            return self._serve(task, self.online_store)
        except Overtaken:
            return self._report(task)

    def _serve(self, task: MaterializationTask, store: ServedOnlineStore) -> ViewServed:
        view = task.feature_view
        start_us, end_us = microseconds_of(task.start_time), microseconds_of(task.end_time)
        before = store.served(self.repo_config, view)
        join = self._join(view)  # read after the state, so that no other run has served a later version by then
        definition, table, version = _definition(view, join), table_id(join), join.snapshot.version
        same = (definition, table) == (before.definition, before.table_id)
        end_us = max(end_us, before.reaching_us)  # what is served up to a later moment does not go back
        why = _why_whole(before, same, version)
        if why is None:
            try:
                windows = [(start_us, microseconds_of(task.end_time)), (before.end_us, end_us)]
                keys = distinct(join, [keys_between(join, windows), keys_changed(join, int(before.version or 0))])
                why, opened = "changed keys", replace(before, reaching_us=end_us, reaching_version=version)
            except FeedGone as gone:
                why = str(gone)
        if why != "changed keys":
            keys = keys_in_table(join, end_us)
            opened = Served(before.epoch + 1, before.visible_from, definition, table, None, NEVER_US, end_us, version)
        done = replace(opened, visible_from=opened.epoch, version=version, end_us=end_us)
        with store.serving(self.repo_config, view, opened, done) as write:
            written = self._write(task, join, keys, end_us, write)
        return ViewServed(view.name, len(keys), written, why, version, moment_of(end_us))

    def _write_window(self, task: MaterializationTask, join: ViewJoin) -> ViewServed:
        view = task.feature_view
        start_us, end_us = microseconds_of(task.start_time), microseconds_of(task.end_time)
        if view.ttl:  # such a store may not look at the ttl when it is read
            start_us = max(start_us, microseconds_of(task.end_time - view.ttl))

        def write(rows: Sequence[OnlineRow]) -> int:
            found = [
                (row.key, row.values, moment_of(row.times[0]), moment_of(row.times[1]) if join.created_column else None)
                for row in rows
                if row.values is not None and row.times[0] >= start_us
            ]
            self.online_store.online_write_batch(self.repo_config, view, found, None)
            return len(found)

        keys = keys_between(join, [(start_us, end_us)])
        written = self._write(task, join, keys, end_us, write)
        return ViewServed(view.name, len(keys), written, "event window", join.snapshot.version, task.end_time)

    def _write(self, task: MaterializationTask, join: ViewJoin, keys: pa.Table, end_us: int, write: WriteRows) -> int:
        progress = task.tqdm_builder(len(keys)) if task.tqdm_builder else None
        written, size = 0, self.rows_per_write
        for first in range(0, len(keys), KEYS_PER_JOIN):
            block = keys.slice(first, KEYS_PER_JOIN)
            features = _as_of(join, block, end_us)
            for at in range(0, len(block), size):
                rows = online_rows(block.slice(at, size), features.slice(at, size), task.feature_view, join)
                written += write(list(rows))
                if progress:
                    progress.update(min(size, len(block) - at))
        if progress:
            progress.close()
        return written

    def _join(self, view: FeatureView) -> ViewJoin:
        """The join of all of the view's features, read at one snapshot; ttl is for the online store to keep to."""
        source = delta_source(view)
        columns = {feature: column for column, feature in source.field_mapping.items()}
        labels = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
        names = [feature.name for feature in view.features]
        options = self.repo_config.offline_store
        join = plan_pull(
            source,
            snapshot_of(self.repo_config, source),
            [columns.get(name, name) for name in labels],
            [columns.get(name, name) for name in names],
            columns.get(source.timestamp_field, source.timestamp_field),
            columns.get(source.created_timestamp_column, source.created_timestamp_column),
            sequence_length=options.sequence_lengths.get(view.name, options.sequence_length),
        )
        keys = tuple(zip(labels, (column for _, column in join.keys), strict=True))
        features = tuple((column, name) for (column, _), name in zip(join.features, names, strict=True))
        return replace(join, view=view.name, keys=keys, features=features)


def serve_changes(store: FeatureStore, views: Sequence[str], end: datetime) -> list[ViewServed]:
    """A report for each view, once its changes up to a moment are online.

    For a stream: Feast's own command takes a view out of service meanwhile, and adds to the registry, for every reader
    to load, a line each time it is given. A view must have been materialised by that command once.
    """
    provider = store._get_provider()
    for name in views:
        provider.materialize_single_feature_view(
            store.config, store.get_feature_view(name), end, end, store.registry, store.project, lambda _: None
        )
    return [reports_of(store)[name] for name in views]


def reports_of(store: FeatureStore) -> dict[str, ViewServed]:
    """The report of each view's last materialisation, by the name of the view."""
    engine = getattr(store._get_provider(), "batch_engine", None)
    return engine.reports if isinstance(engine, DeltaChangeEngine) else {}


def online_rows(keys: pa.Table, features: pa.Table, view: FeatureView, join: ViewJoin) -> Iterator[OnlineRow]:
    """The rows for an online store; none for a key that has no row and never had one.

    Args:
        keys: columns of `change_feed.distinct`.
        features: what `_as_of` found for them.
    """
    types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    names = [feature.name for feature in view.features]
    keys = keys.rename_columns([*(label for label, _ in join.keys), *WITHDRAWN])
    if not join.keys:
        keys = keys.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * len(keys), pa.string()))
    parts = _protos(keys, types)
    values = _protos(features, {feature.name: feature.dtype.to_value_type() for feature in view.features})
    event, created = features[_EVENT].to_pylist(), features[_CREATED].to_pylist()
    withdrawn = list(zip(*(keys[column].to_pylist() for column in WITHDRAWN), strict=True))
    for row in range(len(keys)):
        key = EntityKey(join_keys=list(types), entity_values=[parts[name][row] for name in types])
        left = None if withdrawn[row][0] == NEVER_US else withdrawn[row]
        if event[row] is not None:
            yield OnlineRow(key, {name: values[name][row] for name in names}, (event[row], created[row]), left)
        elif left is not None:
            yield OnlineRow(key, None, (NEVER_US, NEVER_US), left)


def _as_of(join: ViewJoin, keys: pa.Table, end_us: int) -> pa.Table:
    """The features of each key at the end of the window, and _EVENT and _CREATED in microseconds, null for no row."""
    labels = keys.rename_columns([*(label for label, _ in join.keys), *WITHDRAWN])
    # The lag of a source stands for the delay of serving, which here is real.
    times = np.full(len(keys), end_us + join.lag_us, np.int64)
    if isinstance(join.source, BehaviorSequenceSource):
        with_times = replace(join, features=(*join.features, (join.source.time_column, _ACTED)))
        rows = arrow_engine.join_features(labels, times, with_times)
        event = _microseconds(_last_of(rows[_ACTED]))
        return rows.append_column(_EVENT, event).append_column(_CREATED, pa.repeat(NEVER_US, len(rows)))
    created = ((join.created_column, _CREATED),) if join.created_column else ()
    with_times = replace(join, features=(*join.features, (join.event_column, _EVENT), *created))
    rows = arrow_engine.join_features(labels, times, with_times)
    for name in (_EVENT, _CREATED):
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), name, _microseconds(rows[name]))
    return rows if created else rows.append_column(_CREATED, pa.repeat(NEVER_US, len(rows)))


def _last_of(lists: pa.ChunkedArray) -> pa.Array:
    """The last element of each list; null for an empty one."""
    lists = lists.combine_chunks()
    stops = lists.offsets.to_numpy()[1:]
    filled = pc.greater(pc.list_value_length(lists), 0)
    return lists.values.take(pc.if_else(filled, pa.array(stops.astype(np.int64) - 1), None))


def _microseconds(times: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """int64 microseconds since 1970 UTC; integers are that already."""
    if pa.types.is_integer(times.type):
        return times
    return times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())


def _protos(rows: pa.Table, types: Mapping[str, ValueType]) -> dict[str, list[Any]]:
    return {
        name: python_values_to_proto_values(rows[name].to_pylist(maps_as_pydicts="strict"), of_type)
        for name, of_type in types.items()
    }


def _definition(view: FeatureView, join: ViewJoin) -> str:
    """Hash of everything about a view that decides what is online for a key."""
    keys = {column.name: str(column.dtype) for column in view.entity_columns}
    return stable_hash(json.dumps([definition_of(view), keys, join.length], sort_keys=True))


def _why_whole(before: Served, same: bool, version: int) -> str | None:
    """Why the whole snapshot must be read; None where the change feed will do."""
    if before.epoch == 0:
        return "first run"
    if not same:
        return "changed definition or table"
    if before.version is None:
        return "the run before was cut off"
    if version < (served := max(before.version, before.reaching_version)):
        return f"version {version} is older than {served}, which was served"
    return None
