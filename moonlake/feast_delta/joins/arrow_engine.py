"""The embedded engine: narrow columns to the kernel, wide columns gathered once by pointer; no JVM.

What is read is worked through within a memory budget: the narrow columns in shards of the label keys, the rows that
were chosen in memory or beside it on disk, and the result in blocks of label rows. Label rows themselves are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from moonlake.arrays import Int64s
from moonlake.feast_delta.joins import filters
from moonlake.feast_delta.joins.arrow_labels import arrow_labels
from moonlake.feast_delta.joins.arrow_retrieval import DeltaRetrievalJob, metadata_of
from moonlake.feast_delta.joins.arrow_sequences import SequenceColumns, latest_sequences, sequence_columns
from moonlake.feast_delta.joins.plan import Labels, Pull, ViewJoin, microseconds_of
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.lake.parquet_rows import READERS, ROWS_PER_BLOCK, RowGroups, mask, shards_of, take_any
from moonlake.lake.sequence_logs import write_log
from moonlake.lake.versions import TableSnapshot
from moonlake.point_in_time import NO_ROW, Keys, KnownBy, as_of_rows, latest_rows, microseconds

DEFAULT_MEMORY_BUDGET = 4 << 30

KERNEL_BYTES_PER_ROW = 64
"""Keys, times, positions and their order while the kernel works."""


@dataclass(frozen=True, slots=True)
class EmbeddedEngine:
    """Joins on one machine, over Arrow.

    Attributes:
        memory_budget: bytes that the engine may hold beside the label rows and one block of the result.
    """

    memory_budget: int = DEFAULT_MEMORY_BUDGET

    def labels(self, rows: object, tables: Mapping[str, TableSnapshot]) -> Labels[pa.Table]:
        """The label rows as an Arrow table; see `arrow_labels`."""
        return arrow_labels(rows, tables)

    def labels_between(self, joins: Sequence[ViewJoin], start: datetime, end: datetime) -> Labels[pa.Table]:
        """One label row at `end` for each combination of keys that a view has in [start, end]."""
        tables = []
        for join in joins:
            rows = features_between(join, start, end, [column for _, column in join.keys])
            found = rows.rename_columns([label for label, _ in join.keys])
            tables.append(found.group_by(found.column_names, use_threads=False).aggregate([]))
        keys = pa.concat_tables(tables, promote_options="default")
        keys = keys.group_by(keys.column_names, use_threads=False).aggregate([])
        times = pa.repeat(filters.instant(microseconds_of(end)), len(keys))
        table = keys.append_column("event_timestamp", times)
        return Labels(table, tuple(table.column_names), "event_timestamp", end, end)

    def historical(self, labels: Labels[pa.Table], joins: Sequence[ViewJoin], pull: Pull) -> DeltaRetrievalJob:
        """The label rows with the features of all views, in blocks that fit the memory budget."""
        return DeltaRetrievalJob(
            lambda: self._blocks(labels, joins, pull),
            {join.source.subject: join.snapshot.version for join in joins},
            metadata=metadata_of(labels, pull),
            full_feature_names=pull.full_feature_names,
            on_demand_feature_views=pull.on_demand_feature_views,
        )

    def latest(self, join: ViewJoin, start: datetime, end: datetime) -> DeltaRetrievalJob:
        """The latest row of each key in a window; see `latest_features`."""

        def rows() -> Iterator[pa.Table]:
            yield _with_dummy_key(latest_features(join, start, end), join)

        return DeltaRetrievalJob(rows, {join.source.subject: join.snapshot.version})

    def between(self, join: ViewJoin, start: datetime | None, end: datetime | None) -> DeltaRetrievalJob:
        """All rows of a window; see `features_between`."""

        def rows() -> Iterator[pa.Table]:
            yield _with_dummy_key(features_between(join, start, end), join)

        return DeltaRetrievalJob(rows, {join.source.subject: join.snapshot.version})

    def _blocks(self, labels: Labels[pa.Table], joins: Sequence[ViewJoin], pull: Pull) -> Iterator[pa.Table]:
        rows = labels.rows
        times = microseconds(rows[labels.time_column], labels.time_column)
        with TemporaryDirectory(prefix="moonlake-") as scratch:
            share = self.memory_budget // (4 * max(len(joins), 1))
            with ThreadPoolExecutor(READERS) as workers:  # most of the work is done outside of Python's lock
                tasks = [
                    workers.submit(feature_columns, rows, times, join, pull, share, Path(scratch) / str(number))
                    for number, join in enumerate(joins)
                ]
                columns = [task.result() for task in tasks]
            if pull.sequences == "pointers":
                for join, found in zip(joins, columns, strict=True):
                    if isinstance(found, SequenceColumns):
                        write_log(Path(pull.logs) / f"{join.view}.arrow", found.actions.schema, found.log())
            width = sum(each.bytes_per_label for each in columns)
            size = max(self.memory_budget // 4 // max(width, 1), 10_000)
            for first in range(0, max(len(rows), 1), size):
                block = rows.slice(first, size)
                for each in columns:
                    for name, column in each.block(first, first + len(block)).items():
                        block = block.append_column(name, column)
                yield block


class FeatureColumns(Protocol):
    """The features of one view, found for each label row but not yet laid out."""

    @property
    def bytes_per_label(self) -> int:
        """About how many bytes they are for each label row."""

    def block(self, first: int, stop: int) -> dict[str, pa.ChunkedArray]:
        """The features of the label rows [first, stop), by name."""


def feature_columns(
    labels: pa.Table, label_times: Int64s, join: ViewJoin, pull: Pull, share: int, scratch: Path
) -> FeatureColumns:
    """The features of one view for label rows.

    Args:
        share: bytes that narrow columns, and then chosen rows, may take in memory.
        scratch: where chosen rows lie that take more.
    """
    if isinstance(join.source, BehaviorSequenceSource):
        return sequence_columns(labels, label_times, join, join.source, pull, share, scratch)
    keys, label_codes = Keys.of(labels.select([label for label, _ in join.keys]))
    groups = RowGroups(join.snapshot.dataset, possible_rows(labels, label_times, join))
    pointers = np.full(len(labels), NO_ROW, np.int64)
    latest = int(label_times.max(initial=-(2**62))) - join.lag_us
    for shard in shards_of(keys, len(groups) * KERNEL_BYTES_PER_ROW, 2 * share):
        mine = np.flatnonzero((label_codes >= shard.start) & (label_codes < shard.stop))
        rows = _narrow_rows(join, groups, keys, shard, latest)
        found = as_of_rows(
            label_codes[mine],
            label_times[mine],
            rows.codes,
            rows.times,
            rows.created,
            ttl_us=join.ttl_us,
            lag_us=join.lag_us,
            known_by=pull.known_by,
        )
        some = found != NO_ROW
        pointers[mine[some]] = rows.positions[found[some]]
    return _AsOfColumns.gather(groups, join, pointers, share, scratch)


def join_features(labels: pa.Table, label_times: Int64s, join: ViewJoin, known_by: KnownBy = "event") -> pa.Table:
    """The features of one view for each label row, in the label rows' order; null where none was known.

    Args: label_times: microseconds, one for each label row.
    """
    with TemporaryDirectory(prefix="moonlake-") as scratch:
        pull = Pull(known_by=known_by)
        found = feature_columns(labels, label_times, join, pull, DEFAULT_MEMORY_BUDGET // 4, Path(scratch) / "rows")
        return pa.table(found.block(0, len(labels)))


def latest_features(join: ViewJoin, start: datetime, end: datetime) -> pa.Table:
    """The latest row of each key with an event time in [start, end]; see `Engine.latest`."""
    if isinstance(join.source, BehaviorSequenceSource):
        return latest_sequences(join, join.source, start, end)
    where = _between(join, start, end)
    groups = RowGroups(join.snapshot.dataset, where)
    names = [column for _, column in join.keys]
    times = [join.event_column, *([join.created_column] if join.created_column else [])]
    narrow, positions = groups.meeting(where, list(dict.fromkeys([*names, *times])), _conditions(join))
    _, codes = Keys.of(narrow.select(names))
    created = microseconds(narrow[join.created_column], join.created_column) if join.created_column else None
    chosen = latest_rows(codes, microseconds(narrow[join.event_column], join.event_column), created)
    chosen = chosen[np.argsort(positions[chosen])]
    wide = groups.take([column for column, _ in join.features if column not in narrow.column_names], positions[chosen])
    found = narrow.take(pa.array(chosen))
    for name in wide.column_names:
        found = found.append_column(name, wide[name])
    return found.select(dict.fromkeys([*names, *(column for column, _ in join.features), *times]))


def features_between(
    join: ViewJoin, start: datetime | None, end: datetime | None, columns: Sequence[str] | None = None
) -> pa.Table:
    """All rows with an event time in [start, end], by source column: keys, features and times, or those asked for."""
    if columns is None:
        named = [*(column for _, column in join.keys), *(column for column, _ in join.features), join.event_column]
        columns = list(dict.fromkeys([*named, *([join.created_column] if join.created_column else [])]))
    where = _between(join, start, end)
    rows, _ = RowGroups(join.snapshot.dataset, where).meeting(where, columns, _conditions(join))
    return rows


def possible_rows(labels: pa.Table, label_times: Int64s, join: ViewJoin) -> ds.Expression:
    """A filter on file statistics, before anything is read: by keys (where labels have few), times, and the `where`."""
    if not len(label_times):
        return ds.scalar(False)
    event = ds.field(join.event_column)
    where = filters.key_filter(labels, join) & filters.row_filter(join)
    where = where & (event <= filters.instant(int(label_times.max()) - join.lag_us))
    if join.ttl_us:
        where = where & (event >= filters.instant(int(label_times.min()) - join.lag_us - join.ttl_us))
    return where


@dataclass(frozen=True, slots=True)
class _NarrowRows:
    """The rows that some label may see: key codes, microseconds, and their positions in the row groups."""

    codes: Int64s
    times: Int64s
    created: Int64s | None
    positions: Int64s


def _narrow_rows(join: ViewJoin, groups: RowGroups, keys: Keys, shard: range, latest: int) -> _NarrowRows:
    names = [column for _, column in join.keys]
    times = [join.event_column, *([join.created_column] if join.created_column else [])]
    where = filters.row_filter(join) if join.source.where else None
    found: list[tuple[Int64s, ...]] = []
    columns = list(dict.fromkeys([*names, *times, *(column for column, _, _ in join.source.where)]))
    for first, rows in groups.blocks(columns, ROWS_PER_BLOCK):
        codes = keys.encode(rows.select(names))
        kept = (codes >= shard.start) & (codes < shard.stop) & rows[join.event_column].is_valid().to_numpy()
        if where is not None:
            kept &= mask(rows, where)
        if not kept.all():
            rows, codes = rows.filter(pa.array(kept)), codes[kept]
        moments = [microseconds(rows[name], name) for name in times]
        arrays = (codes, *moments, first + np.flatnonzero(kept))
        early = moments[0] <= latest
        found.append(arrays if early.all() else tuple(each[early] for each in arrays))
    codes, event, *created, positions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _NarrowRows(codes, event, created[0] if created else None, positions)


@dataclass(frozen=True, slots=True)
class _AsOfColumns:
    """The rows that were chosen, each once, and for each label row which of them it has (NO_ROW for none)."""

    chosen: pa.Table
    which: Int64s
    names: tuple[str, ...]

    @classmethod
    def gather(cls, groups: RowGroups, join: ViewJoin, pointers: Int64s, share: int, scratch: Path) -> _AsOfColumns:
        used = np.zeros(len(groups) + 1, bool)
        used[pointers] = True  # NO_ROW marks the one behind the last
        positions = np.flatnonzero(used[:-1])
        number = np.full(len(groups) + 1, NO_ROW, np.int64)
        number[positions] = np.arange(len(positions))
        columns = list(dict.fromkeys(column for column, _ in join.features))
        expected = groups.nbytes(columns) * len(positions) // max(len(groups), 1)
        chosen = groups.take(columns, positions, scratch if expected > share else None)
        by_name = pa.table({name: chosen[column] for column, name in join.features})
        return cls(by_name, number[pointers], tuple(by_name.column_names))

    @property
    def bytes_per_label(self) -> int:
        return self.chosen.nbytes // max(len(self.chosen), 1)

    def block(self, first: int, stop: int) -> dict[str, pa.ChunkedArray]:
        which = self.which[first:stop]
        rows = take_any(self.chosen, which)
        return {name: rows[name] for name in self.names}


def _conditions(join: ViewJoin) -> list[str]:
    """The columns that `_between` looks at."""
    return list(dict.fromkeys([join.event_column, *(column for column, _, _ in join.source.where)]))


def _with_dummy_key(rows: pa.Table, join: ViewJoin) -> pa.Table:
    if join.keys:
        return rows
    return rows.append_column(DUMMY_ENTITY_ID, pa.repeat(pa.scalar(DUMMY_ENTITY_VAL), len(rows)))


def _between(join: ViewJoin, start: datetime | None, end: datetime | None) -> ds.Expression:
    event = ds.field(join.event_column)
    where = filters.row_filter(join) & event.is_valid()
    if start is not None:
        where = where & (event >= filters.instant(microseconds_of(start)))
    if end is not None:
        where = where & (event <= filters.instant(microseconds_of(end)))
    return where
