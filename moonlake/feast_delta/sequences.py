"""Behaviour sequences of label rows: slices of each entity's log, as lists or as pointers into it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from moonlake.errors import InputError
from moonlake.feast_delta import filters
from moonlake.feast_delta.actions import action_log
from moonlake.feast_delta.gather import gathered, take_any
from moonlake.feast_delta.plan import Pull, ViewJoin, in_utc
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.point_in_time import NO_KEY, BoolArray, IntArray, Keys, as_of_slices, written_slices

KERNEL_BYTES_PER_ACTION = 64

NEVER = -(2**62)
"""Time of the last action of a label row that has none."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class SequenceColumns:
    """The sequences of label rows, not yet laid out.

    Attributes:
        actions: the features of each chosen action, once.
        which: int64 [chosen in order of key and time], rows of `actions`.
        start, stop: int64 [labels], the slice of `which` that is the label row's sequence.
        known: bool [labels], false where a key is null: null features.
        last: int64 [labels], microseconds of the last action, or NEVER.
    """

    actions: pa.Table
    which: IntArray
    start: IntArray
    stop: IntArray
    known: BoolArray
    last: IntArray

    @property
    def bytes_per_label(self) -> int:
        """About how many bytes the sequences are for each label row."""
        actions = int((self.stop - self.start).sum()) // max(len(self.start), 1)
        return (self.actions.nbytes // max(len(self.actions), 1) + 16) * actions

    def block(self, first: int, stop: int) -> dict[str, pa.ChunkedArray]:
        """The features of the label rows [first, stop), by name: lists, oldest action first."""
        lengths = self.stop[first:stop] - self.start[first:stop]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if offsets[-1] >= 2**31:
            raise InputError(
                f"{stop - first} sequences hold {offsets[-1]} actions, more than one Arrow list column can; "
                "lower the memory budget, or pull them as pointers"
            )
        places = np.arange(offsets[-1]) + np.repeat(self.start[first:stop] - offsets[:-1], lengths)
        actions = take_any(self.actions, self.which[places])
        nulls = pa.array(~self.known[first:stop])
        ends = pa.array(offsets.astype(np.int32))
        return {
            name: pa.chunked_array([pa.ListArray.from_arrays(ends, _one_chunk(actions[name]), mask=nulls)])
            for name in actions.column_names
        }


@dataclass(frozen=True, slots=True)
class PointerColumns:
    """The sequences of label rows as (start, stop) within the log of their entity, which a pinned version holds."""

    names: tuple[str, str]
    start: IntArray
    stop: IntArray
    known: BoolArray

    @property
    def bytes_per_label(self) -> int:
        """Two integers."""
        return 16

    def block(self, first: int, stop: int) -> dict[str, pa.ChunkedArray]:
        """The pointers of the label rows [first, stop)."""
        nulls = ~self.known[first:stop]
        values = (self.start[first:stop], self.stop[first:stop])
        return {
            name: pa.chunked_array([pa.array(each, mask=nulls)]) for name, each in zip(self.names, values, strict=True)
        }


def pointer_names(join: ViewJoin) -> tuple[str, str]:
    """The columns that hold the pointers of a sequence view."""
    return f"{join.view}__start", f"{join.view}__stop"


def sequence_columns(
    labels: pa.Table,
    label_times: IntArray,
    join: ViewJoin,
    source: BehaviorSequenceSource,
    pull: Pull,
    share: int,
    scratch: Path,
) -> SequenceColumns | PointerColumns:
    """The last `join.length` actions strictly before each label time, less the source's lag.

    Raises: InputError: what had been written is asked of a source that does not say it, or as pointers.
    """
    written = pull.known_by == "written"
    _check(join, source, pull)
    keys, codes = Keys.of(labels.select([label for label, _ in join.keys]))
    log = action_log(join, source, _possible_rows(labels, label_times, join, source), pull.known_by)
    latest = int(label_times.max(initial=NEVER)) - join.lag_us - 1
    shards = 1 + len(log) * KERNEL_BYTES_PER_ACTION // max(2 * share, 1)
    start, stop = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
    last = np.full(len(labels), NEVER, np.int64)
    numbers: list[IntArray] = [np.zeros(0, np.int64)]
    held = 0
    for shard in range(shards):
        mine = np.flatnonzero(codes % shards == shard) if shards > 1 else np.arange(len(labels))
        actions = log.read(keys, latest, shard, shards)
        slices = as_of_slices(
            codes[mine],
            label_times[mine],
            actions.codes,
            actions.times,
            actions.ties,
            length=join.length,
            lag_us=join.lag_us,
        )
        if pull.sequences == "pointers":
            start[mine], stop[mine] = slices.start - slices.first, slices.stop - slices.first
            continue
        if written and actions.written is not None:
            slices = written_slices(slices, actions.written, label_times[mine] - join.lag_us, join.length)
        size = len(slices.order) + 1
        covering = np.cumsum(np.bincount(slices.start, minlength=size) - np.bincount(slices.stop, minlength=size))
        used_places = np.flatnonzero(covering)
        place = np.searchsorted(used_places, slices.start) + held
        start[mine], stop[mine] = place, place + slices.stop - slices.start
        numbers.append(actions.numbers[slices.order[used_places]])
        acted = slices.stop > slices.start
        last[mine[acted]] = actions.times[slices.order[slices.stop[acted] - 1]]
        held += len(used_places)
    known = codes != NO_KEY
    if pull.sequences == "pointers":
        return PointerColumns(pointer_names(join), start, stop, known)
    chosen, which = np.unique(np.concatenate(numbers), return_inverse=True)
    expected = log.nbytes() * len(chosen) // max(len(log), 1)
    schema = pa.schema([(name, _value_type(join, column)) for column, name in join.features])
    actions_table = gathered(log.columns(chosen), schema, scratch if expected > share else None)
    return SequenceColumns(actions_table, which, start, stop, known, last)


def latest_sequences(join: ViewJoin, source: BehaviorSequenceSource, start: datetime, end: datetime) -> pa.Table:
    """The sequence as it is known at `end` of each key that acted in [start, end); see `Engine.latest`."""
    names = [column for _, column in join.keys]
    found = join.snapshot.dataset.to_table(columns=names, filter=_until(source, _us(end)))
    keys = found.group_by(names, use_threads=False).aggregate([]) if names else found.slice(0, 1)
    labels = keys.rename_columns([label for label, _ in join.keys])
    with TemporaryDirectory(prefix="moonlake-") as scratch:
        times = np.full(len(keys), _us(end), np.int64)
        columns = sequence_columns(labels, times, join, source, Pull(), 1 << 30, Path(scratch) / "actions")
        assert isinstance(columns, SequenceColumns)
        features = columns.block(0, len(keys))
        table = pa.table(
            {
                **{name: keys[name] for name in names},
                **{column: features[name] for column, name in join.features},
                join.event_column: pa.array(columns.last).cast(_TIMESTAMP),
            }
        )
        return table.filter(pa.array(columns.known & (columns.last >= _us(start))))


def _check(join: ViewJoin, source: BehaviorSequenceSource, pull: Pull) -> None:
    if pull.known_by != "written":
        return
    if pull.sequences == "pointers":
        raise InputError(f"feature view {join.view}: pointers cannot say what had been written when; pull it inline")
    if not (source.written_column if source.packed else join.created_column):
        kind = "written_column" if source.packed else "created_timestamp_column"
        raise InputError(
            f"feature view {join.view}: known_by='written' needs to know when each action was written, and source "
            f"{source.name} states no {kind}"
        )


def _possible_rows(
    labels: pa.Table, label_times: IntArray, join: ViewJoin, source: BehaviorSequenceSource
) -> ds.Expression:
    if not len(label_times):
        return ds.scalar(False)
    until = int(label_times.max()) - join.lag_us
    return filters.key_filter(labels, join) & _until(source, until)


def _until(source: BehaviorSequenceSource, until_us: int) -> ds.Expression:
    if not source.packed:
        return ds.field(source.time_column) < pa.scalar(until_us, pa.int64()).cast(_TIMESTAMP)
    if source.month_column is None:
        return ds.scalar(True)
    month = datetime.fromtimestamp(until_us // 1_000_000, UTC).strftime("%Y-%m")
    return ds.field(source.month_column) <= month


def _value_type(join: ViewJoin, column: str) -> pa.DataType:
    found = join.snapshot.dataset.schema.field(column).type
    assert isinstance(join.source, BehaviorSequenceSource)
    return found.value_type if join.source.packed else found


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _us(moment: datetime) -> int:
    return int(pa.scalar(in_utc(moment), _TIMESTAMP).cast(pa.int64()).as_py())
