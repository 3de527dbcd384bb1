"""The embedded engine: delta-rs reads, the kernel on narrow columns, wide columns gathered once by pointer; no JVM."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from moonlake.errors import SchemaMismatch
from moonlake.feast_delta.plan import ViewJoin
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.point_in_time import (
    NO_ROW,
    IntArray,
    KnownBy,
    as_of_rows,
    as_of_slices,
    encode_keys,
    latest_rows,
    microseconds,
)

PUSHED_DOWN_KEYS = 1_000
"""A key column is filtered while it is read when label rows hold at most this many distinct values of it."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")


def join_features(labels: pa.Table, label_times: IntArray, join: ViewJoin, known_by: KnownBy = "event") -> pa.Table:
    """The features of one view for each label row, in the label rows' order; null where none was known.

    Args: label_times: microseconds, one for each label row.
    """
    if isinstance(join.source, BehaviorSequenceSource):
        return _join_sequences(labels, label_times, join, join.source)
    keys = _label_keys(labels, join)
    rows = _read(join, _key_filter(keys, join) & _time_filter(label_times, join))
    label_codes, feature_codes = encode_keys(keys, rows.select([column for _, column in join.keys]))
    created = microseconds(rows[join.created_column], join.created_column) if join.created_column else None
    pointers = as_of_rows(
        label_codes,
        label_times,
        feature_codes,
        microseconds(rows[join.event_column], join.event_column),
        created,
        ttl_us=join.ttl_us,
        lag_us=join.lag_us,
        known_by=known_by,
    )
    indices = pa.array(pointers, mask=pointers == NO_ROW)
    return pa.table({name: rows[column].take(indices) for column, name in join.features})


def latest_features(join: ViewJoin, start: datetime, end: datetime) -> pa.Table:
    """The latest row of each key with an event time in [start, end]: keys, features and times by source column.

    Of a sequence view: the sequence as it is known at `end` (actions strictly before it) of each key that acted in
    [start, end), with the time of its last action.
    """
    if isinstance(join.source, BehaviorSequenceSource):
        return _latest_sequences(join, join.source, start, end)
    rows = features_between(join, start, end)
    keys = rows.select([column for _, column in join.keys])
    _, codes = encode_keys(keys, keys)
    times = microseconds(rows[join.event_column], join.event_column)
    created = microseconds(rows[join.created_column], join.created_column) if join.created_column else None
    return rows.take(pa.array(latest_rows(codes, times, created)))


def features_between(join: ViewJoin, start: datetime | None, end: datetime | None) -> pa.Table:
    """All rows with an event time in [start, end], by source column; without keys, every row has its own."""
    event = ds.field(join.event_column)
    where = ds.scalar(True)
    if start is not None:
        where = where & (event >= pa.scalar(_utc(start), _TIMESTAMP))
    if end is not None:
        where = where & (event <= pa.scalar(_utc(end), _TIMESTAMP))
    return _read(join, where)


def _read(join: ViewJoin, where: ds.Expression) -> pa.Table:
    """Rows with an event time, of the columns that the join needs."""
    named = [*(column for _, column in join.keys), *(column for column, _ in join.features), join.event_column]
    columns = dict.fromkeys([*named, *([join.created_column] if join.created_column else [])])
    return join.snapshot.dataset.to_table(columns=list(columns), filter=where & ds.field(join.event_column).is_valid())


def _label_keys(labels: pa.Table, join: ViewJoin) -> pa.Table:
    return labels.select([label for label, _ in join.keys])


def _key_filter(keys: pa.Table, join: ViewJoin) -> ds.Expression:
    where = ds.scalar(True)
    for values, (_, column) in zip(keys.columns, join.keys, strict=True):
        distinct = pc.unique(values).drop_null()
        if len(distinct) <= PUSHED_DOWN_KEYS and distinct.type == join.snapshot.dataset.schema.field(column).type:
            where = where & ds.field(column).isin(distinct)
    return where


def _time_filter(label_times: IntArray, join: ViewJoin) -> ds.Expression:
    if not len(label_times):
        return ds.scalar(False)
    event = ds.field(join.event_column)
    where = event <= _instant(int(label_times.max()) - join.lag_us)
    if join.ttl_us:
        where = where & (event >= _instant(int(label_times.min()) - join.lag_us - join.ttl_us))
    return where


def _join_sequences(
    labels: pa.Table, label_times: IntArray, join: ViewJoin, source: BehaviorSequenceSource
) -> pa.Table:
    keys = _label_keys(labels, join)
    until = int(label_times.max(initial=0)) - join.lag_us
    rows = _read_packed(join, source, _key_filter(keys, join), until)
    label_codes, row_codes = encode_keys(keys, rows.select([column for _, column in join.keys]))
    has_key = np.logical_and.reduce([column.is_valid().to_numpy() for column in keys.columns])
    return _slices(rows, row_codes, label_codes, label_times, has_key, join, source)[0]


def _latest_sequences(join: ViewJoin, source: BehaviorSequenceSource, start: datetime, end: datetime) -> pa.Table:
    until = _us(end)
    rows = _read_packed(join, source, ds.scalar(True), until)
    keys = rows.select([column for _, column in join.keys])
    _, codes = encode_keys(keys, keys)
    one_row = latest_rows(codes, np.zeros(len(codes), np.int64))  # any row of each key, to take its values from
    times = np.full(len(one_row), until, np.int64)
    features, last = _slices(rows, codes, codes[one_row], times, np.ones(len(one_row), bool), join, source)
    by_column = {column: features[name] for column, name in join.features}
    table = pa.table({**{name: keys[name].take(one_row) for name in keys.column_names}, **by_column})
    table = table.append_column(join.event_column, pa.array(last, pa.int64()).cast(_TIMESTAMP))
    return table.filter(pa.array(last >= _us(start)))


def _read_packed(join: ViewJoin, source: BehaviorSequenceSource, where: ds.Expression, until_us: int) -> pa.Table:
    if source.month_column is not None:
        month = datetime.fromtimestamp(until_us // 1_000_000, UTC).strftime("%Y-%m")
        where = where & (ds.field(source.month_column) <= month)
    arrays = [column for column, _ in join.features]
    columns = dict.fromkeys([*(column for _, column in join.keys), *arrays, source.time_column])
    return join.snapshot.dataset.to_table(columns=list(columns), filter=where).combine_chunks()


def _slices(
    rows: pa.Table,
    row_codes: IntArray,
    label_codes: IntArray,
    label_times: IntArray,
    has_key: np.ndarray[tuple[int], np.dtype[np.bool_]],
    join: ViewJoin,
    source: BehaviorSequenceSource,
) -> tuple[pa.Table, IntArray]:
    """The sequence of each label row (null without a key, else a list), and the time of its last action (or -2**62)."""
    lengths = pc.list_value_length(rows[source.time_column]).to_numpy().astype(np.int64)
    for column, _ in join.features:
        if not np.array_equal(pc.list_value_length(rows[column]).to_numpy(), lengths):
            raise SchemaMismatch(f"table {source.subject}: lists of {column} and {source.time_column} differ in length")
    log_times = _flat(rows[source.time_column]).to_numpy().astype(np.int64)
    log_keys = np.repeat(row_codes, lengths)
    slices = as_of_slices(label_codes, label_times, log_keys, log_times, length=join.length, lag_us=join.lag_us)
    log_rows = pa.array(slices.rows())
    offsets = pa.array(slices.offsets().astype(np.int32))
    lists = {
        name: pa.ListArray.from_arrays(offsets, _flat(rows[column]).take(log_rows), mask=pa.array(~has_key))
        for column, name in join.features
    }
    last = np.full(len(label_codes), -(2**62), np.int64)
    acted = slices.stop > slices.start
    last[acted] = log_times[slices.order[slices.stop[acted] - 1]]
    return pa.table(lists), last


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return pc.list_flatten(column).combine_chunks()


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _us(moment: datetime) -> int:
    return int(pa.scalar(_utc(moment), _TIMESTAMP).cast(pa.int64()).as_py())


def _instant(microseconds_since_1970: int) -> pa.Scalar:
    return pa.scalar(microseconds_since_1970, pa.int64()).cast(_TIMESTAMP)
