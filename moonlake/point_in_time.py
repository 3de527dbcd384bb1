"""The as-of kernel: narrow arrays in, row pointers out; no IO.

Keys become dense int64 codes once (`encode_keys`), times are int64 microseconds since 1970 UTC (`microseconds`), and
everything after that is sorting and bisection. Wide columns never come here: the caller gathers them by the pointers.
The rules are those of DESIGN.md section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moonlake.errors import PointInTimeError

IntArray: TypeAlias = NDArray[np.int64]
KnownBy = Literal["event", "written"]

NO_KEY = -1
"""Code of a key with a null in it, and of a label key that no feature row has."""
NO_ROW = -1
"""Pointer of a label row that has no eligible feature row."""


@dataclass(frozen=True, slots=True)
class Slices:
    """For each label row a slice of the log: `order[start:stop]` are its row numbers, oldest first.

    Attributes:
        order: int64 [log rows], the log's row numbers sorted by key, time and position.
        start: int64 [labels].
        stop: int64 [labels], exclusive; equal to start when nothing is eligible.
    """

    order: IntArray
    start: IntArray
    stop: IntArray

    def offsets(self) -> IntArray:
        """int64 [labels + 1]: where the elements of each label begin in `rows()`."""
        return np.concatenate([[0], np.cumsum(self.stop - self.start)]).astype(np.int64)

    def rows(self) -> IntArray:
        """int64 [sum of lengths]: the log row numbers of all slices, one slice behind the other."""
        lengths = self.stop - self.start
        offsets = self.offsets()
        return self.order[np.arange(offsets[-1]) + np.repeat(self.start - offsets[:-1], lengths)]


def microseconds(times: pa.Array | pa.ChunkedArray, column: str) -> IntArray:
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


def encode_keys(labels: pa.Table, features: pa.Table) -> tuple[IntArray, IntArray]:
    """Codes of label keys and feature keys, int64 [labels] and int64 [features]: equal codes are equal typed tuples.

    Feature codes lie in [0, number of distinct parts multiplied); a null in any part gives NO_KEY, as does a label
    key of which some part occurs in no feature row. The columns of both sides pair up by position.

    Raises: PointInTimeError: the two sides hold different types, so that no comparison would be meant.
    """
    label_codes = np.zeros(len(labels), np.int64)
    feature_codes = np.zeros(len(features), np.int64)
    size = 1
    for name, label_part, feature_part in zip(features.column_names, labels.columns, features.columns, strict=True):
        label_part, feature_part = _plain(label_part), _plain(feature_part)
        if label_part.type != feature_part.type and len(label_part) and len(feature_part):
            raise PointInTimeError(
                f"key {name}: label rows hold {label_part.type}, feature rows {feature_part.type}; cast one of them"
            )
        values = pc.unique(feature_part).drop_null()
        if size * max(len(values), 1) > 2**62:
            feature_codes, label_codes, size = _dense(feature_codes, label_codes)
        size *= max(len(values), 1)
        feature_codes = _combine(feature_codes, _positions(feature_part, values), len(values))
        label_codes = _combine(label_codes, _positions(label_part, values), len(values))
    if size > 2 * len(features):  # the kernel lays out one segment for each code
        feature_codes, label_codes, _ = _dense(feature_codes, label_codes)
    return label_codes, feature_codes


def as_of_rows(
    label_keys: IntArray,
    label_times: IntArray,
    feature_keys: IntArray,
    feature_times: IntArray,
    feature_created: IntArray | None = None,
    *,
    ttl_us: int = 0,
    lag_us: int = 0,
    known_by: KnownBy = "event",
) -> IntArray:
    """int64 [labels]: for each label row the feature row that was true then, NO_ROW where there is none.

    The row with the greatest (time, created, position) among those of the key with time <= label time - lag.

    Args:
        label_keys, feature_keys: codes of `encode_keys`.
        label_times, feature_times, feature_created: microseconds.
        ttl_us: a row older than this at (label time - lag) gives NO_ROW; one exactly this old is valid. 0: for ever.
        known_by: "written" admits only rows that had also been written by then (created <= label time - lag).
    """
    times = label_times - lag_us
    order = _time_order(feature_keys, feature_times, feature_created)
    keys, available = feature_keys[order], feature_times[order]
    best = np.arange(len(order))
    if known_by == "written" and feature_created is not None:
        # A row can be seen from max(time, created) on. Walking in that order, the row to choose is the greatest rank
        # seen so far; ranks of a later key are greater throughout, so one running maximum serves all keys.
        available = np.maximum(available, feature_created[order])
        seen = np.lexsort((available, keys))
        available, best = available[seen], np.maximum.accumulate(seen)
    first, last = _segments(keys, label_keys)
    stop = _bisect(available, first, last, times)
    found = np.flatnonzero(stop > first)
    rows = np.full(len(label_keys), NO_ROW, np.int64)
    rows[found] = order[best[stop[found] - 1]]
    if ttl_us > 0:
        expired = feature_times[rows[found]] < times[found] - ttl_us
        rows[found[expired]] = NO_ROW
    return rows


def as_of_slices(
    label_keys: IntArray,
    label_times: IntArray,
    log_keys: IntArray,
    log_times: IntArray,
    *,
    length: int,
    lag_us: int = 0,
) -> Slices:
    """For each label row the last `length` log rows of its key strictly before label time - lag.

    Rows of equal time keep the log's order.
    """
    if length < 0:
        raise ValueError(f"length of a sequence: expected 0 or more, found {length}")
    order = _time_order(log_keys, log_times, None)
    first, last = _segments(log_keys[order], label_keys)
    stop = _bisect(log_times[order], first, last, label_times - lag_us - 1)  # whole microseconds: < t is <= t - 1
    return Slices(order, np.maximum(first, stop - length), stop)


def latest_rows(keys: IntArray, times: IntArray, created: IntArray | None = None) -> IntArray:
    """int64 [distinct keys]: the row with the greatest (time, created, position) of each key, by ascending key code."""
    order = _time_order(keys, times, created)
    ordered = keys[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return order[is_last & (ordered != NO_KEY)]


def _time_order(keys: IntArray, times: IntArray, created: IntArray | None) -> IntArray:
    """Row numbers by (key, time, created, position): stable sorts, so position decides what is left."""
    return np.lexsort((times, keys) if created is None else (created, times, keys)).astype(np.int64)


def _segments(sorted_keys: IntArray, wanted: IntArray) -> tuple[IntArray, IntArray]:
    """First and last + 1 position of each wanted key; an empty segment for NO_KEY and keys that are not there."""
    size = int(max(sorted_keys.max(initial=NO_KEY), wanted.max(initial=NO_KEY))) + 1
    bounds = np.searchsorted(sorted_keys, np.arange(size + 1))
    bounds = np.append(bounds, [0, 0])  # wanted = -1 reads bounds[-1] and bounds[-2]
    some = wanted != NO_KEY
    at = np.where(some, wanted, size + 1)
    return bounds[at].astype(np.int64), bounds[np.where(some, wanted + 1, size + 1)].astype(np.int64)


def _bisect(times: IntArray, first: IntArray, last: IntArray, until: IntArray) -> IntArray:
    """The position behind the last time <= until within each [first, last): all bisections step together."""
    low, high = first.copy(), last.copy()
    active = np.flatnonzero(low < high)
    while len(active):
        middle = (low[active] + high[active]) // 2
        eligible = times[middle] <= until[active]
        low[active[eligible]] = middle[eligible] + 1
        high[active[~eligible]] = middle[~eligible]
        active = active[low[active] < high[active]]
    return low


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in the one type of its kind: strings as string, integers as int64, dictionaries decoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) else column


def _positions(column: pa.ChunkedArray, values: pa.Array) -> IntArray:
    if column.type != values.type:  # one side is empty, so that nothing can match
        return np.full(len(column), NO_KEY, np.int64)
    found = pc.index_in(column, value_set=values, skip_nulls=True)
    return found.cast(pa.int64()).fill_null(NO_KEY).to_numpy()


def _combine(codes: IntArray, part: IntArray, size: int) -> IntArray:
    return np.where((codes == NO_KEY) | (part == NO_KEY), NO_KEY, codes * size + part)


def _dense(feature_codes: IntArray, label_codes: IntArray) -> tuple[IntArray, IntArray, int]:
    """Both sides renumbered 0, 1, ... over the codes that feature rows have, and how many there are."""
    present = np.unique(feature_codes[feature_codes != NO_KEY])
    return _renumber(feature_codes, present), _renumber(label_codes, present), max(len(present), 1)


def _renumber(codes: IntArray, present: IntArray) -> IntArray:
    at = np.searchsorted(present, codes)
    known = (at < len(present)) & (codes != NO_KEY)
    known[known] = present[at[known]] == codes[known]
    return np.where(known, at, NO_KEY).astype(np.int64)
