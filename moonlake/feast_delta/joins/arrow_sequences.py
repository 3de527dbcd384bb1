"""Behaviour sequences of label rows: slices of each entity's log, as lists or as pointers into a log of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from moonlake.arrays import Int64s
from moonlake.feast_delta.joins import filters
from moonlake.feast_delta.joins.action_logs import action_log
from moonlake.feast_delta.joins.plan import Pull, ViewJoin, check_written, microseconds_of
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.lake.parquet_rows import RowGroups, gathered, shards_of, take_any
from moonlake.lake.sequence_logs import lists_of, pointer_names
from moonlake.point_in_time import Keys, as_of_slices, written_slices

KERNEL_BYTES_PER_ACTION = 64

ACTIONS_PER_WRITE = 1_000_000

NEVER = -(2**62)
"""Time of the last action of a label row that has none."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class SequenceColumns:
    """The sequences of label rows, not yet laid out.

    Attributes:
        actions: the features of each chosen action, once.
        which: int64 [chosen], rows of `actions` in order of entity and time; None where they lie in that order.
        start, stop: int64 [labels], the slice of them that is the label row's sequence; -1 where a key is null.
        last: int64 [labels], microseconds of the last action, or NEVER.
        pointers: what (start, stop) are to be called when they take the place of lists.
    """

    actions: pa.Table
    which: Int64s | None
    start: Int64s
    stop: Int64s
    last: Int64s
    pointers: tuple[str, str] | None = None

    @property
    def bytes_per_label(self) -> int:
        """About how many bytes the sequences are for each label row."""
        if self.pointers:
            return 16
        actions = int((self.stop - self.start).sum()) // max(len(self.start), 1)
        return (self.actions.nbytes // max(len(self.actions), 1) + 16) * actions

    def block(self, first: int, stop: int) -> dict[str, pa.ChunkedArray]:
        """The features of the label rows [first, stop), by name: lists, oldest action first; or pointers into `log`."""
        bounds = self.start[first:stop], self.stop[first:stop]
        if self.pointers:
            return {name: pa.chunked_array([pa.array(each)]) for name, each in zip(self.pointers, bounds, strict=True)}
        lists = lists_of(self.actions, self.which, *bounds)
        return {name: pa.chunked_array([column]) for name, column in lists.items()}

    def log(self) -> Iterator[pa.Table]:
        """The chosen actions in order of entity and time, in pieces: what pointers point into."""
        if self.which is None:
            yield from (pa.Table.from_batches([each]) for each in self.actions.to_batches(ACTIONS_PER_WRITE))
            return
        for first in range(0, len(self.which), ACTIONS_PER_WRITE):
            yield take_any(self.actions, self.which[first : first + ACTIONS_PER_WRITE])


def sequence_columns(
    labels: pa.Table,
    label_times: Int64s,
    join: ViewJoin,
    source: BehaviorSequenceSource,
    pull: Pull,
    share: int,
    scratch: Path,
) -> SequenceColumns:
    """The last `join.length` actions strictly before each label time, less the source's lag.

    Raises: InputError: what had been written is asked of a source that does not say it.
    """
    if pull.known_by == "written":
        check_written(join, source)
    keys, codes = Keys.of(labels.select([label for label, _ in join.keys]))
    log = action_log(join, source, _possible_rows(labels, label_times, join, source), pull.known_by)
    latest = int(label_times.max(initial=NEVER)) - join.lag_us - 1
    start, stop = np.full(len(labels), -1, np.int64), np.full(len(labels), -1, np.int64)
    last = np.full(len(labels), NEVER, np.int64)
    numbers: list[Int64s] = [np.zeros(0, np.int64)]
    held = 0
    for shard in shards_of(keys, len(log) * KERNEL_BYTES_PER_ACTION, 2 * share):
        mine = np.flatnonzero((codes >= shard.start) & (codes < shard.stop))
        actions = log.read(keys, shard, latest)
        slices = as_of_slices(
            codes[mine],
            label_times[mine],
            actions.codes,
            actions.times,
            actions.ties,
            length=join.length,
            lag_us=join.lag_us,
        )
        if actions.written is not None:
            slices = written_slices(slices, actions.written, label_times[mine] - join.lag_us, join.length)
        size = len(slices.order) + 1
        covering = np.cumsum(np.bincount(slices.start, minlength=size) - np.bincount(slices.stop, minlength=size))
        used = np.flatnonzero(covering)
        start[mine] = np.searchsorted(used, slices.start) + held
        stop[mine] = start[mine] + slices.stop - slices.start
        acted = slices.stop > slices.start
        last[mine[acted]] = actions.times[slices.order[slices.stop[acted] - 1]]
        numbers.append(actions.numbers[slices.order[used]])
        held += len(used)
    wanted = np.concatenate(numbers)
    used_numbers = np.zeros(len(log), bool)
    used_numbers[wanted] = True
    chosen = np.flatnonzero(used_numbers)
    which = (np.cumsum(used_numbers) - 1)[wanted]
    expected = log.nbytes() * len(chosen) // max(len(log), 1)
    schema = pa.schema([(name, _value_type(join, source, column)) for column, name in join.features])
    pointers = pointer_names(join.view) if pull.sequences == "pointers" else None
    if expected > share:
        return SequenceColumns(gathered(log.columns(chosen), schema, scratch), which, start, stop, last, pointers)
    features = take_any(gathered(log.columns(chosen), schema, None), which)  # in order, so that slices lie together
    return SequenceColumns(features, None, start, stop, last, pointers)


def latest_sequences(join: ViewJoin, source: BehaviorSequenceSource, start: datetime, end: datetime) -> pa.Table:
    """The sequence as it is known at `end` of each key that acted in [start, end); see `Engine.latest`."""
    names = [column for _, column in join.keys]
    where = _until(source, microseconds_of(end))
    conditions = [source.month_column] if source.month_column else [] if source.packed else [source.time_column]
    found, _ = RowGroups(join.snapshot.dataset, where).meeting(where, names, conditions)
    keys = found.group_by(names, use_threads=False).aggregate([]) if names else found.slice(0, 1)
    labels = keys.rename_columns([label for label, _ in join.keys])
    with TemporaryDirectory(prefix="moonlake-") as scratch:
        times = np.full(len(keys), microseconds_of(end), np.int64)
        columns = sequence_columns(labels, times, join, source, Pull(), 1 << 30, Path(scratch) / "actions")
        features = columns.block(0, len(keys))
        table = pa.table(
            {
                **{name: keys[name] for name in names},
                **{column: features[name] for column, name in join.features},
                join.event_column: pa.array(columns.last).cast(_TIMESTAMP),
            }
        )
        return table.filter(pa.array(columns.last >= microseconds_of(start)))


def _possible_rows(
    labels: pa.Table, label_times: Int64s, join: ViewJoin, source: BehaviorSequenceSource
) -> ds.Expression:
    if not len(label_times):
        return ds.scalar(False)
    until = int(label_times.max()) - join.lag_us
    return filters.key_filter(labels, join) & _until(source, until)


def _until(source: BehaviorSequenceSource, until_us: int) -> ds.Expression:
    if source.identity:  # a later statement of an action decides, wherever it puts it
        return ds.scalar(True)
    if not source.packed:
        return ds.field(source.time_column) < filters.instant(until_us)
    if source.month_column is None:
        return ds.scalar(True)
    month = datetime.fromtimestamp(until_us // 1_000_000, UTC).strftime("%Y-%m")
    return ds.field(source.month_column) <= month


def _value_type(join: ViewJoin, source: BehaviorSequenceSource, column: str) -> pa.DataType:
    found = join.snapshot.dataset.schema.field(column).type
    return found.value_type if source.packed else found
