"""Code that the Spark engine runs in Python workers: the kernel over the rows of a shard, Arrow batches in and out.

The rows of label side and feature side come mixed, in any order: those that have a LABEL are label rows. Workers import
this file alone, so it imports nothing of Feast or Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Bools, Int64s
from moonlake.errors import PointInTimeError, SchemaMismatch
from moonlake.point_in_time import (
    NO_KEY,
    NO_ROW,
    Keys,
    KnownBy,
    Slices,
    as_of_rows,
    as_of_slices,
    latest_rows,
    written_slices,
)

LABEL, TIME, CREATED, POSITION = "__label", "__time", "__created", "__position"
"""int64 columns of a shard: number of the label row, microseconds, microseconds, place of the feature row."""

ACTED, WRITTEN = "__acted", "__written"
"""The same of a log in the place of TIME and CREATED: microseconds, or lists of them in packed rows."""

LAST = "__last"
"""int64: microseconds of the last action, or NEVER."""

NEVER = -(2**62)
"""Time of the last action of a label row that has none."""

ACTIONS_PER_BATCH = 2_000_000
"""Actions of the sequences that go back to Spark at a time."""

Batches = Iterator[pa.RecordBatch]
ShardWork = Callable[[Batches], Batches]


@dataclass(frozen=True, slots=True)
class AsOf:
    """(LABEL, POSITION) of each label row that has an eligible feature row; see `as_of_rows`.

    Attributes:
        created: the column in the source that CREATED is from, for messages.
    """

    keys: tuple[str, ...]
    created: str
    ttl_us: int
    lag_us: int
    known_by: KnownBy

    def __call__(self, batches: Batches) -> Batches:
        labels, features = _sides(batches)
        if not len(labels) or not len(features):
            return
        keys, codes = Keys.of(labels.select(list(self.keys)))
        features, feature_codes = _known(features, keys.encode(features.select(list(self.keys))))
        position, order = np.unique(_ints(features, POSITION), return_index=True)
        rows = as_of_rows(
            codes,
            _ints(labels, TIME),
            feature_codes[order],
            _ints(features, TIME)[order],
            _created(features, CREATED, self.created, order),
            ttl_us=self.ttl_us,
            lag_us=self.lag_us,
            known_by=self.known_by,
        )
        found = rows != NO_ROW
        yield pa.record_batch([_ints(labels, LABEL)[found], position[rows[found]]], [LABEL, POSITION])


@dataclass(frozen=True, slots=True)
class Latest:
    """(POSITION) of the latest row of each key; see `latest_rows`."""

    keys: tuple[str, ...]
    created: str

    def __call__(self, batches: Batches) -> Batches:
        rows = _table(batches)
        if not len(rows):
            return
        position, order = np.unique(_ints(rows, POSITION), return_index=True)
        _, codes = Keys.of(rows.select(list(self.keys)))
        created = _created(rows, CREATED, self.created, order)
        latest = latest_rows(codes[order], _ints(rows, TIME)[order], created)
        yield pa.record_batch([position[latest]], [POSITION])


@dataclass(frozen=True, slots=True)
class LastActions:
    """(LABEL, features as lists, LAST) of every label row; see `as_of_slices`.

    Attributes:
        packed: true where the columns of the log hold lists.
        written: whether what had been written by then counts, and not what is true now.
        types: a column, and the values that count; ("", ()) for all.
        identity, order: see `BehaviorSequenceSource`.
        features: columns of the log to give as lists.
        subject, names: the table, and its columns by the names that they have here, for messages.
    """

    keys: tuple[str, ...]
    packed: bool
    length: int
    lag_us: int
    written: bool
    types: tuple[str, tuple[str, ...]]
    identity: str | None
    order: tuple[str, ...]
    features: tuple[str, ...]
    subject: str
    names: Mapping[str, str]

    def __call__(self, batches: Batches) -> Batches:
        labels, log = _sides(batches)
        if not len(labels):
            return
        keys, codes = Keys.of(labels.select(list(self.keys)))
        times = _ints(labels, TIME)
        log, log_codes = _known(log, keys.encode(log.select(list(self.keys))))
        rows, row_codes = self._actions(log, log_codes, int(times.max()) - self.lag_us - 1)
        slices = as_of_slices(codes, times, row_codes, _ints(rows, ACTED), length=self.length, lag_us=self.lag_us)
        if self.written:
            slices = written_slices(slices, _ints(rows, WRITTEN), times - self.lag_us, self.length)
        label, size = _ints(labels, LABEL), max(ACTIONS_PER_BATCH // max(self.length, 1), 1)
        for first in range(0, len(label), size):
            yield self._laid_out(label[first : first + size], _cut(slices, first), rows)

    def _actions(self, log: pa.Table, codes: Int64s, latest: int) -> tuple[pa.Table, Int64s]:
        """The actions that may be seen, a row for each, and their codes; those of one key and time in their order."""
        _, order = np.unique(_ints(log, POSITION), return_index=True)
        log, codes = log.take(pa.array(order)), codes[order]
        if self.packed:
            log, codes = self._flat(log, codes)
        kept = np.ones(len(log), bool)
        if self.types[0]:
            kept &= _is_one_of(log[self.types[0]], self.types[1])
            log, codes, kept = log.filter(pa.array(kept)), codes[kept], np.ones(int(kept.sum()), bool)
        kept &= _ints(log, ACTED) <= latest
        if self.identity:
            kept &= self._one_each(log)
        log, codes = log.filter(pa.array(kept)), codes[kept]
        if self.order:
            log = log.append_column("__row", pa.array(np.arange(len(log))))
            keys = [(name, "ascending") for name in (*self.order, "__row")]
            by_order = pc.sort_indices(log, sort_keys=keys)
            log, codes = log.take(by_order), codes[by_order.to_numpy()]
        return log.combine_chunks(), codes

    def _flat(self, log: pa.Table, codes: Int64s) -> tuple[pa.Table, Int64s]:
        """A row for each element of the lists. Raises SchemaMismatch when the lists of a row differ in length."""
        lengths = _lengths(log[ACTED])
        names = [
            ACTED,
            *([WRITTEN] if self.written else []),
            *([self.types[0]] if self.types[0] else []),
            *self.features,
        ]
        names = list(dict.fromkeys(names))
        for name in names:
            if not np.array_equal(_lengths(log[name]), lengths):
                raise SchemaMismatch(
                    f"table {self.subject}: lists of {self.names[name]} and {self.names[ACTED]} differ in length"
                )
        return pa.table({name: pc.list_flatten(log[name]) for name in names}), np.repeat(codes, lengths)

    def _one_each(self, log: pa.Table) -> Bools:
        _, codes = Keys.of(log.select([self.identity]))
        created = _created(log, WRITTEN, self.names[WRITTEN])
        when = np.zeros(len(codes), np.int64) if created is None else created
        kept = codes == NO_KEY  # an action without a name is one of its own
        kept[latest_rows(codes, -when if self.written else when)] = True
        return kept

    def _laid_out(self, label: Int64s, slices: Slices, rows: pa.Table) -> pa.RecordBatch:
        size = len(label)
        start, stop = slices.start[:size], slices.stop[:size]
        here = Slices(slices.order, slices.first[:size], start, stop)
        chosen = rows.select([*dict.fromkeys(self.features)]).take(pa.array(here.rows())).combine_chunks()
        ends = pa.array(here.offsets().astype(np.int32))
        lists = [pa.ListArray.from_arrays(ends, _array(chosen[name])) for name in self.features]
        last = np.full(size, NEVER, np.int64)
        acted = stop > start
        last[acted] = _ints(rows, ACTED)[slices.order[stop[acted] - 1]]
        names = [LABEL, *(f"__feature_{number}" for number in range(len(lists))), LAST]
        return pa.record_batch([pa.array(label), *lists, pa.array(last)], names)


def as_bytes(batches: Batches) -> Batches:
    """Each batch as one row that holds it as an Arrow stream: how results come to the driver piece by piece."""
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        yield pa.record_batch([pa.array([sink.getvalue().to_pybytes()], pa.binary())], ["rows"])


def _table(batches: Batches) -> pa.Table:
    held = list(batches)
    return pa.Table.from_batches(held) if held else pa.table({LABEL: pa.array([], pa.int64())})


def _sides(batches: Batches) -> tuple[pa.Table, pa.Table]:
    """The label rows and the feature rows of a shard."""
    rows = _table(batches)
    is_label = pc.is_valid(rows[LABEL])
    return rows.filter(is_label), rows.filter(pc.invert(is_label))


def _ints(rows: pa.Table, name: str) -> Int64s:
    return rows[name].to_numpy()


def _known(rows: pa.Table, codes: Int64s) -> tuple[pa.Table, Int64s]:
    """The rows whose key some label row has, and their codes."""
    kept = codes != NO_KEY
    return (rows, codes) if kept.all() else (rows.filter(pa.array(kept)), codes[kept])


def _created(rows: pa.Table, name: str, called: str, order: Int64s | None = None) -> Int64s | None:
    """int64 [rows]: when each was written, or None where the source does not say.

    Args: called: the column in the source; empty where there is none.
    Raises: PointInTimeError: it does not say so of all rows.
    """
    if not called:
        return None
    created = rows[name]
    if created.null_count:
        raise PointInTimeError(f"column {called}: {created.null_count} of {len(created)} times are null")
    return created.to_numpy() if order is None else created.to_numpy()[order]


def _cut(slices: Slices, first: int) -> Slices:
    return Slices(slices.order, slices.first[first:], slices.start[first:], slices.stop[first:])


def _lengths(lists: pa.ChunkedArray) -> Int64s:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _is_one_of(column: pa.ChunkedArray, values: Sequence[str]) -> Bools:
    return pc.is_in(column, value_set=pa.array(values, column.type)).to_numpy()


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
