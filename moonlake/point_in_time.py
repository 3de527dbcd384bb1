"""The as-of kernel: narrow arrays in, row pointers out; no IO.

Keys become int64 codes once (`Keys`), times are int64 microseconds since 1970 UTC (`microseconds`), and a pair of both
is packed into one integer, so that a join is one sort of the features and one search of the labels. Wide columns never
come here: the caller gathers them by the pointers. The rules are those of DESIGN.md section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Int64s
from moonlake.errors import PointInTimeError

KnownBy = Literal["event", "written"]

NO_KEY = -1
"""Code of a key with a null in it, and of a key that the other side does not have."""
NO_ROW = -1
"""Pointer of a label row that has no eligible feature row."""


@dataclass(frozen=True, slots=True)
class Slices:
    """For each label row a slice of the log: `order[start:stop]` are its row numbers, oldest first.

    Attributes:
        order: int64 [log rows], the log's row numbers sorted by key, time and position.
        first: int64 [labels], where the log of the label's key begins in `order`.
        start: int64 [labels].
        stop: int64 [labels], exclusive; equal to start when nothing is eligible.
    """

    order: Int64s
    first: Int64s
    start: Int64s
    stop: Int64s

    def offsets(self) -> Int64s:
        """int64 [labels + 1]: where the elements of each label begin in `rows()`."""
        return np.concatenate([[0], np.cumsum(self.stop - self.start)]).astype(np.int64)

    def rows(self) -> Int64s:
        """int64 [sum of lengths]: the log row numbers of all slices, one slice behind the other."""
        lengths = self.stop - self.start
        offsets = self.offsets()
        return self.order[np.arange(offsets[-1]) + np.repeat(self.start - offsets[:-1], lengths)]


def microseconds(times: pa.Array | pa.ChunkedArray, column: str) -> Int64s:
    """int64 microseconds since 1970 UTC, rounded down.

    Raises: PointInTimeError: not a timestamp, without a time zone (naive times are refused, never guessed), or null.
    """
    if not pa.types.is_timestamp(times.type):
        raise PointInTimeError(f"column {column}: expected timestamps, found {times.type}")
    if times.type.tz is None:
        raise PointInTimeError(f"column {column}: timestamps without a time zone; state one, for example UTC")
    if times.null_count:
        raise PointInTimeError(f"column {column}: {times.null_count} of {len(times)} times are null")
    ticks = times.cast(pa.int64()).to_numpy()
    if times.type.unit == "ns":
        return np.floor_divide(ticks, 1_000)
    return ticks * {"s": 1_000_000, "ms": 1_000, "us": 1}[times.type.unit]


@dataclass(frozen=True, slots=True)
class Keys:
    """The distinct keys of one table: they number its rows, and those of any other table, alike.

    Equal codes are equal typed tuples. Codes lie in [0, 2 * rows of the table); the rows of the other table may come
    in pieces, and what has no key here costs nothing later.

    Attributes: size: every code is less.
    """

    parts: tuple[_Part, ...]
    size: int

    @classmethod
    def of(cls, keys: pa.Table) -> tuple[Self, Int64s]:
        """The distinct keys of a table, and its own codes: int64 [rows], NO_KEY where a part is null."""
        codes, size, parts = None, 1, []
        for name, column in zip(keys.column_names, keys.columns, strict=True):
            values = pc.unique(_plain(column)).drop_null()
            part, codes = _Part(name, values), _combine(codes, _positions(_plain(column), values), len(values))
            size *= max(len(values), 1)
            if size > 2 * len(keys):  # keeps products of parts within 64 bits
                present = np.unique(codes[codes != NO_KEY])
                part, codes, size = _Part(name, values, present), _renumber(codes, present), len(present)
            parts.append(part)
        return cls(tuple(parts), size), np.zeros(len(keys), np.int64) if codes is None else codes

    def encode(self, keys: pa.Table) -> Int64s:
        """The codes of another table's rows: int64 [rows], NO_KEY where a part is null or no such key is known.

        The columns of both tables pair up by position.

        Raises: PointInTimeError: the two hold different types, so that no comparison would be meant.
        """
        codes = None
        for part, name, column in zip(self.parts, keys.column_names, keys.columns, strict=True):
            found = _plain(column)
            if found.type != part.values.type and len(part.values) and len(found):
                raise PointInTimeError(
                    f"key {name}: label rows hold {part.values.type}, feature rows {found.type}; cast one of them"
                )
            codes = _combine(codes, _positions(found, part.values), len(part.values))
            if part.present is not None:
                codes = _renumber(codes, part.present)
        return np.zeros(len(keys), np.int64) if codes is None else codes


@dataclass(frozen=True, slots=True)
class _Part:
    """One key column: its distinct values, and the sorted codes of the tuples so far where those were renumbered."""

    name: str
    values: pa.Array
    present: Int64s | None = None


def encode_keys(labels: pa.Table, features: pa.Table) -> tuple[Int64s, Int64s]:
    """Codes of label keys and feature keys, int64 [labels] and int64 [features]; see `Keys`."""
    keys, codes = Keys.of(labels)
    return codes, keys.encode(features)


def as_of_rows(
    label_keys: Int64s,
    label_times: Int64s,
    feature_keys: Int64s,
    feature_times: Int64s,
    feature_created: Int64s | None = None,
    *,
    ttl_us: int = 0,
    lag_us: int = 0,
    known_by: KnownBy = "event",
) -> Int64s:
    """int64 [labels]: for each label row the feature row that was true then, NO_ROW where there is none.

    The row with the greatest (time, created, position) among those of the key with time <= label time - lag.

    Args:
        label_keys, feature_keys: codes of `encode_keys`.
        label_times, feature_times, feature_created: microseconds.
        ttl_us: a row older than this at (label time - lag) gives NO_ROW; one exactly this old is valid. 0: for ever.
        known_by: "written" admits only rows that had also been written by then (created <= label time - lag).
    """
    times = label_times - lag_us
    packing = _Packing.of(feature_keys, feature_times, label_keys)
    order, ranks = _in_order(packing(feature_keys, feature_times), feature_created)
    if known_by == "written" and feature_created is not None:
        # A row can be seen from max(time, created) on. Walking in that order, the row to choose is the greatest one in
        # event order so far; rows of a later key are greater throughout, so one running maximum serves all keys.
        keys, available = feature_keys[order], np.maximum(feature_times, feature_created)[order]
        packing = _Packing.of(keys, available, label_keys)
        seen, ranks = _in_order(packing(keys, available), None)
        order = order[np.maximum.accumulate(seen)]
    stop = _behind(ranks, packing(label_keys, times))
    found = np.flatnonzero((stop > 0) & (label_keys != NO_KEY))
    chosen = order[stop[found] - 1]
    valid = feature_keys[chosen] == label_keys[found]
    if ttl_us > 0:
        valid &= feature_times[chosen] >= times[found] - ttl_us
    rows = np.full(len(label_keys), NO_ROW, np.int64)
    rows[found[valid]] = chosen[valid]
    return rows


def as_of_slices(
    label_keys: Int64s,
    label_times: Int64s,
    log_keys: Int64s,
    log_times: Int64s,
    log_ties: Int64s | None = None,
    *,
    length: int,
    lag_us: int = 0,
) -> Slices:
    """For each label row the last `length` log rows of its key strictly before label time - lag.

    Args: log_ties: order of rows of equal time; None keeps the log's order.
    """
    if length < 0:
        raise ValueError(f"length of a sequence: expected 0 or more, found {length}")
    packing = _Packing.of(log_keys, log_times, label_keys)
    order, ranks = _in_order(packing(log_keys, log_times), log_ties)
    first = _behind(ranks, packing.floor(label_keys))
    stop = _behind(ranks, packing(label_keys, label_times - lag_us - 1))  # whole microseconds: < t is <= t - 1
    first[label_keys == NO_KEY] = stop[label_keys == NO_KEY] = 0
    return Slices(order, first, np.maximum(first, stop - length), stop)


def written_slices(slices: Slices, log_written: Int64s, until: Int64s, length: int) -> Slices:
    """The last `length` rows of each label that had been written by then, in the place of those that are true now.

    Args:
        slices: what is true now.
        log_written: microseconds, by log row.
        until: int64 [labels], a row counts when it was written at or before.
    """
    first, start, stop = slices.first, slices.start.copy(), slices.stop
    short = np.arange(len(start))
    while len(short):  # look twice as far back for those that came out short
        looked = Slices(slices.order, first[short], start[short], stop[short])
        label, _ = _written(looked, log_written, until[short])
        counts = np.bincount(label, minlength=len(short))
        short = short[(counts < length) & (start[short] > first[short])]
        start[short] = np.maximum(first[short], 2 * start[short] - stop[short] - 1)
    label, rows = _written(replace(slices, start=start), log_written, until)
    stop = np.cumsum(np.bincount(label, minlength=len(start)))
    first = np.concatenate([[0], stop[:-1]]) if len(stop) else stop
    return Slices(rows, first, np.maximum(first, stop - length), stop)


def latest_rows(keys: Int64s, times: Int64s, created: Int64s | None = None) -> Int64s:
    """int64 [distinct keys]: the row with the greatest (time, created, position) of each key, by ascending key code."""
    order, _ = _in_order(_Packing.of(keys, times, keys)(keys, times), created)
    ordered = keys[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return order[is_last & (ordered != NO_KEY)]


def _written(slices: Slices, log_written: Int64s, until: Int64s) -> tuple[Int64s, Int64s]:
    """Label and log row of everything in the slices that had been written by then, label by label."""
    rows = slices.rows()
    label = np.repeat(np.arange(len(slices.start)), slices.stop - slices.start)
    known = log_written[rows] <= until[label]
    return label[known], rows[known]


@dataclass(frozen=True, slots=True)
class _Packing:
    """A packing of key and time into one integer that sorts as the pair does.

    Attributes:
        earliest: time that is packed as 1; what lies before all times is packed as 0.
        bits: of the time part.
        moments: the distinct times, ascending, where differences of times do not fit beside the keys: their ranks do.
    """

    earliest: int
    bits: int
    moments: Int64s | None = None

    @classmethod
    def of(cls, keys: Int64s, times: Int64s, other_keys: Int64s) -> Self:
        size = int(max(keys.max(initial=NO_KEY), other_keys.max(initial=NO_KEY))) + 2
        earliest = int(times.min()) if len(times) else 0
        span = int(times.max()) - earliest + 1 if len(times) else 1
        if size.bit_length() + span.bit_length() <= 62 and abs(earliest) < 2**61:
            return cls(earliest, span.bit_length())
        moments = np.unique(times)
        return cls(0, len(moments).bit_length(), moments)

    def __call__(self, keys: Int64s, times: Int64s) -> Int64s:
        if self.moments is not None:
            since = np.searchsorted(self.moments, times, side="right")
        else:
            since = np.clip(times, self.earliest - 1, self.earliest + 2**self.bits - 2) - (self.earliest - 1)
        return self.floor(keys) | since

    def floor(self, keys: Int64s) -> Int64s:
        """Less than everything of the key, and more than everything of the keys before it."""
        return (keys + 1) << self.bits


def _in_order(ranks: Int64s, created: Int64s | None) -> tuple[Int64s, Int64s]:
    """Row numbers by (rank, created, position), and the sorted ranks."""
    steps = np.diff(ranks)
    if (steps > 0).all() or (created is None and (steps >= 0).all()):
        return np.arange(len(ranks)), ranks
    order = np.argsort(ranks)  # not stable, and several times faster for it: ties are rare, and settled below
    ranks = ranks[order]
    same = np.flatnonzero(ranks[1:] == ranks[:-1])
    if len(same):
        tied = np.union1d(same, same + 1)
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, ranks[tied]) if created is None else (rows, created[rows], ranks[tied]))]
    return order, ranks


def _behind(ranks: Int64s, wanted: Int64s) -> Int64s:
    """The position behind the last rank <= wanted; searched in order, which is kinder to the cache than it is long."""
    by_rank = np.argsort(wanted)
    stop = np.empty(len(wanted), np.int64)
    stop[by_rank] = np.searchsorted(ranks, wanted[by_rank], side="right")
    return stop


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in the one type of its kind: strings as string, integers as int64, dictionaries decoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) else column


def _positions(column: pa.ChunkedArray, values: pa.Array) -> Int64s:
    if column.type != values.type:  # one side is empty, so that nothing can match
        return np.full(len(column), NO_KEY, np.int64)
    found = pc.index_in(column, value_set=values, skip_nulls=True)
    return found.cast(pa.int64()).fill_null(NO_KEY).to_numpy()


def _combine(codes: Int64s | None, part: Int64s, size: int) -> Int64s:
    if codes is None:
        return part
    return np.where((codes == NO_KEY) | (part == NO_KEY), NO_KEY, codes * size + part)


def _renumber(codes: Int64s, present: Int64s) -> Int64s:
    at = np.searchsorted(present, codes)
    known = (at < len(present)) & (codes != NO_KEY)
    known[known] = present[at[known]] == codes[known]
    return np.where(known, at, NO_KEY).astype(np.int64)
