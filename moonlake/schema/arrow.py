"""Arrow schemas of the table contracts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.fs

from moonlake.errors import NotFound
from moonlake.schema.contract import ColumnType, Table
from moonlake.schema.tables import TABLES

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "binary": pa.binary(),
    "list<string>": pa.list_(pa.string()),
    "list<int64>": pa.list_(pa.int64()),
    "list<float32>": pa.list_(pa.float32()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
}


def arrow_schema(table: Table, columns: Sequence[str] | None = None) -> pa.Schema:
    """The Arrow schema of a contract, or of some of its columns in the order asked for."""
    chosen = table.columns if columns is None else [table[name] for name in columns]
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.type], column.nullable) for column in chosen])


def contract(name: str) -> Table:
    """The contract of that name. Raises NotFound, with the names that there are."""
    try:
        return TABLES[name]
    except KeyError:
        raise NotFound(f"no table {name}; the lake has {', '.join(TABLES)}") from None
