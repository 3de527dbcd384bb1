"""Feast fields derived from the table contracts, where types, descriptions and units are written once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from feast import Field, ValueType
from feast.types import Array, Bool, Bytes, FeastType, Float32, Float64, Int32, Int64, Map, String, UnixTimestamp

from moonlake.errors import SchemaMismatch
from moonlake.schema.contract import Column, ColumnType, Table

FEAST_TYPES: dict[ColumnType, FeastType] = {
    "string": String,
    "bool": Bool,
    "int32": Int32,
    "int64": Int64,
    "float32": Float32,
    "float64": Float64,
    "timestamp": UnixTimestamp,
    "binary": Bytes,
    "list<string>": Array(String),
    "list<int64>": Array(Int64),
    "list<float32>": Array(Float32),
    "map<string,string>": Map,
}

_OTHER_TYPES: dict[str, FeastType] = {
    "list<bool>": Array(Bool),
    "list<int32>": Array(Int32),
    "list<float64>": Array(Float64),
    "list<binary>": Array(Bytes),
}
"""Types that Feast has beside those of the contracts, for tables that are not ours."""


def feast_fields(table: Table, columns: Sequence[str], names: Mapping[str, str] | None = None) -> list[Field]:
    """One Feast field for each of the contract's columns, in the order asked for.

    Args: names: column -> feature name, as in the `field_mapping` of the source; the others keep their name.
    """
    return [_field(table[name], (names or {}).get(name, name)) for name in columns]


def value_type(column_type: str) -> ValueType:
    """Feast's value type of a column, by the name that `column_type` gives. Raises SchemaMismatch where it has none."""
    if column_type.startswith("struct<"):
        return ValueType.STRUCT
    known = {str(name): of_feast for name, of_feast in FEAST_TYPES.items()} | _OTHER_TYPES
    if column_type not in known:
        raise SchemaMismatch(f"column type {column_type}: Feast fields are known for {', '.join(known)}, struct<...>")
    return known[column_type].to_value_type()


def column_type(arrow_type: pa.DataType) -> str:
    """The contracts' name for an Arrow type, or Arrow's own name where the contracts have none."""
    types = pa.types
    if types.is_timestamp(arrow_type):
        return "timestamp"
    if types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return "string"
    if types.is_large_binary(arrow_type) or types.is_binary_view(arrow_type):
        return "binary"
    if types.is_int8(arrow_type) or types.is_int16(arrow_type):
        return "int32"
    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        return f"list<{column_type(arrow_type.value_type)}>"
    if types.is_map(arrow_type):
        return f"map<{column_type(arrow_type.key_type)},{column_type(arrow_type.item_type)}>"
    return {"float": "float32", "double": "float64"}.get(str(arrow_type), str(arrow_type))


def _field(column: Column, name: str) -> Field:
    stated = {"unit": column.unit, "shape": column.shape}
    tags = {key: value for key, value in stated.items() if value is not None}
    return Field(name=name, dtype=FEAST_TYPES[column.type], description=column.meaning, tags=tags)
