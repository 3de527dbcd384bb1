"""Raw rows as rows of the own-files form: its columns and types, and what it says of absent cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.hashing import stable_hash
from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.tables import TIMELESS
from sources.own_files.schema import Kind
from sources.own_files.tabular import Batch
from sources.own_files.values import convert, plain

ATTRIBUTE_PREFIX = "attributes."


def has_place(kind: Kind, name: str) -> bool:
    """True when the form takes a column of that name."""
    return name in kind.names or ("attributes" in kind.names and name.startswith(ATTRIBUTE_PREFIX))


def conform(kind: Kind, batch: Batch) -> tuple[pa.Table, dict[int, str]]:
    """The batch with the columns and types of its kind, and the rule that each unreadable row broke first."""
    unreadable: dict[int, str] = {}
    columns: list[pa.Array] = []
    for entry in kind.fields:
        if entry.name in batch.columns:
            values, bad = convert(batch.columns[entry.name], entry.type)
            for row in bad:
                unreadable.setdefault(row, f"{entry.name}_unreadable")
        else:
            values = pa.nulls(batch.rows, ARROW_TYPES[entry.type])
        columns.append(values)
    rows = pa.table(columns, schema=kind.schema())
    single = [name for name in batch.columns if name.startswith(ATTRIBUTE_PREFIX)]
    if "attributes" in kind.names and single:
        rows = _with_attributes(rows, batch, single, unreadable)
    return rows, unreadable


def _with_attributes(rows: pa.Table, batch: Batch, columns: Sequence[str], unreadable: dict[int, str]) -> pa.Table:
    """Columns `attributes.<name>` added to the map of attributes; `unreadable` takes in the rows that have none."""
    maps = [dict(pairs or ()) for pairs in rows["attributes"].to_pylist()]
    for column in columns:
        values, bad = convert(batch.columns[column], "string")
        for row in bad:
            unreadable.setdefault(row, "attributes_unreadable")
        for attributes, value in zip(maps, values.to_pylist(), strict=True):
            if value is not None:
                attributes[column.removeprefix(ATTRIBUTE_PREFIX)] = value
    place = rows.schema.get_field_index("attributes")
    filled = pa.array([list(attributes.items()) for attributes in maps], ARROW_TYPES["map<string,string>"])
    return rows.set_column(place, rows.schema.field(place), filled)


def repeated_names(names: pa.ChunkedArray, unreadable: dict[int, str], seen: set[str]) -> dict[int, str]:
    """Rows whose image name was there before, for a name means one file; `seen` takes in the others."""
    repeated: dict[int, str] = {}
    for row, name in enumerate(names.to_pylist()):
        if row in unreadable or name is None:
            continue
        if name in seen:
            repeated[row] = "name_conflicting"
        seen.add(name)
    return repeated


def raw_record(kind: Kind, batch: Batch, row: int) -> dict[str, object]:
    """A raw row for `rejects`, without its bytes."""
    values = {name: cells[row] for name, cells in batch.columns.items() if has_place(kind, name)}
    cells = {name: plain(value) if isinstance(value, pa.Scalar) else value for name, value in values.items()}
    return {name: f"{len(value)} bytes" if isinstance(value, bytes) else value for name, value in cells.items()}


def fill(kind: Kind, rows: pa.Table) -> pa.Table:
    """The rows with absent cells filled as the form says."""
    filler = _FILLERS.get(kind.name)
    return filler(rows) if filler else rows


def _filled(rows: pa.Table, name: str, values: pa.ChunkedArray | pa.Scalar) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), pc.coalesce(rows[name], values))


def _hashed(rows: pa.Table, name: str, of: Sequence[str]) -> pa.Table:
    """Absent ids filled with a hash of some cells of their row: the same row has the same id in every run."""
    if not rows[name].null_count:
        return rows
    cells = rows.select(list(of)).to_pylist()
    hashes = [stable_hash(json.dumps(list(row.values()), default=str)) for row in cells]
    return _filled(rows, name, pa.chunked_array([pa.array(hashes, pa.string())]))


def _fill_products(rows: pa.Table) -> pa.Table:
    listed = rows["listed_at"]
    rows = _filled(rows, "listed_at", rows["event_timestamp"])
    rows = _filled(_filled(rows, "event_timestamp", listed), "listed_at", _ALWAYS)
    rows = _filled(_filled(rows, "event_timestamp", _ALWAYS), "deleted", pa.scalar(False))
    return _filled(_filled(rows, "image_names", _NO_NAMES), "attributes", _NO_ATTRIBUTES)


def _fill_event_timestamp(rows: pa.Table) -> pa.Table:
    return _filled(rows, "event_timestamp", _ALWAYS)


def _fill_queries(rows: pa.Table) -> pa.Table:
    rows = _filled(_fill_event_timestamp(rows), "image_names", _NO_NAMES)
    pictured = pc.greater(pc.list_value_length(rows["image_names"]), 0)
    seen = pc.if_else(pictured, pc.if_else(pc.is_valid(rows["text"]), "product", "image"), "text")
    return _filled(rows, "modality", seen)


def _fill_impressions(rows: pa.Table) -> pa.Table:
    rows = _filled(rows, "label_time", rows["event_timestamp"])
    rows = _filled(rows, "position", pa.scalar(1, pa.int32()))
    rows = _hashed(rows, "request_id", ("user_id", "query_id", "event_timestamp"))
    return _hashed(rows, "impression_id", [name for name in rows.column_names if name != "impression_id"])


def _fill_behaviors(rows: pa.Table) -> pa.Table:
    return _hashed(rows, "behavior_id", [name for name in rows.column_names if name != "behavior_id"])


_ALWAYS = pa.scalar(TIMELESS, ARROW_TYPES["timestamp"])
_NO_NAMES = pa.scalar([], ARROW_TYPES["list<string>"])
_NO_ATTRIBUTES = pa.scalar([], ARROW_TYPES["map<string,string>"])
_FILLERS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "products": _fill_products,
    "merchants": _fill_event_timestamp,
    "users": _fill_event_timestamp,
    "queries": _fill_queries,
    "impressions": _fill_impressions,
    "behaviors": _fill_behaviors,
    "judgments": _fill_event_timestamp,
}
