"""Label rows of every kind that Feast may be handed, as one Arrow table."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from moonlake.errors import InputError
from moonlake.feast_delta.joins.plan import Labels, time_column_of
from moonlake.lake.versions import NEVER_WRITTEN, TableSnapshot, open_path

_PATH_IN_SQL = re.compile(r"delta\.`([^`]+)`", re.IGNORECASE)


def arrow_labels(rows: object, tables: Mapping[str, TableSnapshot]) -> Labels[pa.Table]:
    """The label rows: an Arrow table, reader or dataset, a pandas or Spark frame, a Delta table, or SQL.

    SQL is run by DataFusion. It reads the tables that are named, and any other as delta.`path`.

    Raises: InputError: rows of another kind, SQL that cannot be run, or no event time.
    """
    table = _table(rows, tables)
    timestamps = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    time_column = time_column_of(table.column_names, timestamps)
    bounds = pc.min_max(table[time_column]).as_py()
    return Labels(table, tuple(table.column_names), time_column, bounds["min"], bounds["max"])


def _table(rows: object, tables: Mapping[str, TableSnapshot]) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pd.DataFrame):
        return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    if isinstance(rows, DeltaTable):
        return open_path(rows.table_uri.removeprefix("file://").rstrip("/"), rows.version()).dataset.to_table()
    if isinstance(rows, ds.Dataset):
        return rows.to_table()
    if isinstance(rows, pa.RecordBatchReader):
        return rows.read_all()
    if isinstance(rows, str):
        return _query(rows, tables)
    if hasattr(rows, "toArrow"):  # a frame of Spark, which need not be installed
        return rows.toArrow()
    raise InputError(
        f"label rows: expected a pandas, Arrow or Spark frame, a Delta table or SQL, found {type(rows).__name__}"
    )


def _query(sql: str, tables: Mapping[str, TableSnapshot]) -> pa.Table:
    named = {name: tables[name] for name in tables if re.search(rf"\b{re.escape(name)}\b", sql)}
    for number, path in enumerate(dict.fromkeys(_PATH_IN_SQL.findall(sql))):
        named[f"table_{number}_at_path"] = open_path(path)
        sql = sql.replace(f"delta.`{path}`", f"table_{number}_at_path")
    builder = QueryBuilder()
    for name, snapshot in named.items():
        if snapshot.version == NEVER_WRITTEN:
            raise InputError(f"label rows: table {name} has not been written yet")
        builder.register(name, DeltaTable(snapshot.path, version=snapshot.version))
    try:
        found = pa.table(builder.execute(sql))
    except (DeltaError, ValueError, RuntimeError) as error:
        raise InputError(f"label rows: the query cannot be run: {error}") from error
    plain = [field.with_type(_plain(field.type)) for field in found.schema]
    return found.cast(pa.schema(plain))


def _plain(found: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(found) or pa.types.is_large_string(found):
        return pa.string()
    return pa.timestamp(found.unit, "UTC") if pa.types.is_timestamp(found) and found.tz else found
