"""Keys of a view to look at again: those whose rows changed since a Delta version, or lie in an event window.

Only keys and times are read here. What is true of a key is asked of the point-in-time join afterwards, so it does no
harm to name a key too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from moonlake.errors import NotFound
from moonlake.feast_delta.joins.plan import ViewJoin
from moonlake.feast_delta.online.rules import NEVER_US, Times
from moonlake.lake.versions import NEVER_WRITTEN
from moonlake.point_in_time import encode_keys, latest_rows

WITHDRAWN = ("withdrawn event", "withdrawn created")
"""int64 columns beside the keys: microseconds of the greatest (event, created) of the key that left the table, or
NEVER_US where none did."""

MENTIONS_HELD = 1_000_000
"""Mentions of keys that are held before the keys among them are made distinct."""

_MOMENT = pa.timestamp("us", tz="UTC")
_REMOVED = pa.array(["delete", "update_preimage"])
_BEGINNING = pa.scalar(NEVER_US, pa.int64())
_ANY_TIME = pa.scalar(2**62, pa.int64())


class FeedGone(NotFound):
    """The change feed of some version is not there: never switched on, or vacuumed."""


def table_id(join: ViewJoin) -> str:
    """The id that Delta gave the table when it was made; "" for a lake table that has not been written yet."""
    return "" if join.snapshot.version == NEVER_WRITTEN else str(_delta_table(join).metadata().id)


def keys_in_table(join: ViewJoin, until_us: int) -> pa.Table:
    """Every key of the table with a row up to a moment."""
    return keys_between(join, [(NEVER_US, until_us)])


def keys_between(join: ViewJoin, windows: Iterable[Times]) -> pa.Table:
    """Every key of the table with a row of an event time in one of the windows, both ends included.

    A packed row of a sequence has the event time of its last action, and may have acted before that too: all rows from
    the start of a window on count.
    """
    event = ds.field(join.event_column)
    where = ds.scalar(False)
    for start_us, end_us in windows:
        until = event.is_valid() if join.length else event <= pa.scalar(end_us, pa.int64()).cast(_MOMENT)
        since = event.is_valid() if start_us == NEVER_US else event >= pa.scalar(start_us, pa.int64()).cast(_MOMENT)
        where = where | (since & until)
    columns = [column for _, column in join.keys] or [join.event_column]
    batches = join.snapshot.dataset.to_batches(columns=columns, filter=where)
    return distinct(join, (_mentions(join, pa.table(batch), withdrawn=False) for batch in batches))


def keys_changed(join: ViewJoin, since: int) -> pa.Table:
    """Every key of which a row came or went between a version and the snapshot of the join.

    Raises: FeedGone: the table keeps no change feed, or no longer back to that version.
    """
    if since == join.snapshot.version:
        return distinct(join, [])
    return distinct(join, _changes(join, since))


def distinct(join: ViewJoin, mentions: Iterable[pa.Table]) -> pa.Table:
    """Each key once, without nulls: columns named by the source's key columns, and WITHDRAWN."""
    found = _schema(join).empty_table()
    pending: list[pa.Table] = []
    for mention in mentions:
        pending.append(mention)
        if sum(map(len, pending)) > max(len(found), MENTIONS_HELD):
            found, pending = _latest(join, [found, *pending]), []
    return _latest(join, [found, *pending])


def _latest(join: ViewJoin, mentions: Iterable[pa.Table]) -> pa.Table:
    """The latest change of each key: the mention with the greatest WITHDRAWN."""
    together = pa.concat_tables(mentions).combine_chunks()
    keys = together.select([column for _, column in join.keys])
    _, codes = encode_keys(keys, keys)
    return together.take(pa.array(latest_rows(codes, *(together[column].to_numpy() for column in WITHDRAWN))))


def _changes(join: ViewJoin, since: int) -> Iterator[pa.Table]:
    for rows in _feed(join, since):
        removed = pc.is_in(rows["_change_type"], _REMOVED)
        yield _mentions(join, rows.filter(removed), withdrawn=True)
        # An action that is restated can make a sequence end earlier, with no row gone: any change may take it back.
        yield _mentions(join, rows.filter(pc.invert(removed)), withdrawn=join.length > 0)


def _feed(join: ViewJoin, since: int) -> Iterator[pa.Table]:
    """The rows that came and went behind a version, in batches: keys, times and `_change_type`."""
    table, present = _delta_table(join), join.snapshot.dataset.schema
    if table.metadata().configuration.get("delta.enableChangeDataFeed") != "true":
        raise FeedGone(f"{join.source.subject}: delta.enableChangeDataFeed is not true")
    times = [join.event_column, *([join.created_column] if join.created_column else [])]
    names = list(dict.fromkeys([*(column for _, column in join.keys), *times]))
    schema = pa.schema([*(present.field(name).with_nullable(True) for name in names), ("_change_type", pa.string())])
    try:
        feed = pa.RecordBatchReader.from_stream(table.load_cdf(since + 1, join.snapshot.version, columns=schema.names))
        for batch in feed:
            yield pa.table(batch).select(schema.names).cast(schema)
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise FeedGone(f"{join.source.subject}: no change feed since version {since}: {error}") from error


def _mentions(join: ViewJoin, rows: pa.Table, *, withdrawn: bool) -> pa.Table:
    never = pa.repeat(_BEGINNING, len(rows))
    event, created = never, never
    if withdrawn:
        event = pa.repeat(_ANY_TIME, len(rows)) if join.length else _microseconds(rows[join.event_column])
        created = _microseconds(rows[join.created_column]) if join.created_column else never
    keys = [rows[column] for _, column in join.keys]
    return pa.table([*keys, event, created], names=_schema(join).names).cast(_schema(join))


def _microseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return times.cast(_MOMENT).cast(pa.int64()).fill_null(NEVER_US)


def _schema(join: ViewJoin) -> pa.Schema:
    present = join.snapshot.dataset.schema
    keys = [present.field(column).with_nullable(True) for _, column in join.keys]
    return pa.schema([*keys, *(pa.field(column, pa.int64()) for column in WITHDRAWN)])


def _delta_table(join: ViewJoin) -> DeltaTable:
    return DeltaTable(join.snapshot.path, version=join.snapshot.version)
