"""Delta tables at one version as frames of Spark, each row with its position: the last tie-break and the row pointer.

The files are those that the snapshot names, in the order in which they were written; statistics rule files out before
Spark hears of them. Delta's own reader would not say where in its file a row lies, Parquet's does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import date, datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t
from pyspark.sql.pandas.types import from_arrow_schema

from moonlake.errors import PointInTimeError
from moonlake.feast_delta.joins import filters
from moonlake.feast_delta.joins.plan import ViewJoin, in_utc
from moonlake.lake.versions import TableSnapshot

POSITION = "__position"
"""int64: number of the file << ROW_BITS | row in the file."""

ROW_BITS = 33
"""Enough for the rows of a file; Spark's own `monotonically_increasing_id` leaves as many."""

ROWS_PER_BATCH = 100_000
"""Rows of an Arrow batch between Spark and Python where it is ours to say."""

_FILE = "__file"


def table_rows(
    spark: SparkSession, snapshot: TableSnapshot, columns: Sequence[str], where: ds.Expression | None = None
) -> DataFrame:
    """The columns asked for, and POSITION, of the rows in files that `where` does not rule out."""
    columns = list(dict.fromkeys(columns))
    schema = from_arrow_schema(snapshot.dataset.schema)
    files = _files(snapshot, where)
    if not files:
        return spark.createDataFrame([], t.StructType([*(schema[name] for name in columns), _long(POSITION)]))
    partitioned = DeltaTable(snapshot.path, version=snapshot.version).metadata().partition_columns
    stored = t.StructType([field for field in schema if field.name not in partitioned])
    root = snapshot.path.rstrip("/") if "://" in snapshot.path else os.path.abspath(snapshot.path)
    reader = spark.read.schema(stored).option("__globPaths__", "false")  # a bracket in a path is a bracket
    rows = reader.parquet(*(f"{root}/{path}" for path in files))
    facts = []
    for uri in rows.inputFiles():
        decoded = unquote(uri)
        number, constants = files[decoded[decoded.index(root) + len(root) + 1 :]]
        values = {name: constants.get(name) for name in partitioned}
        facts.append({_FILE: _one_slash(uri), "__first": number << ROW_BITS, **values})
    types = [(_FILE, pa.string()), ("__first", pa.int64())]
    types += [(name, snapshot.dataset.schema.field(name).type) for name in partitioned]
    of_file = spark.createDataFrame(pa.Table.from_pylist(facts, pa.schema(types)))
    placed = rows.withColumn(_FILE, f.col("_metadata.file_path")).withColumn("__row", f.col("_metadata.row_index"))
    placed = placed.join(f.broadcast(of_file), _FILE, "inner")
    return placed.select(*(column(name) for name in columns), (f.col("__first") + f.col("__row")).alias(POSITION))


def row_count(snapshot: TableSnapshot) -> int:
    """Rows of the version as its log states them; a guess from their bytes where it does not."""
    return _sum(snapshot, "num_records") or byte_count(snapshot) // 32


def byte_count(snapshot: TableSnapshot) -> int:
    """Bytes of the files of the version."""
    return _sum(snapshot, "size_bytes")


def file_count(snapshot: TableSnapshot) -> int:
    """Files of the version."""
    return len(snapshot.dataset.files) if isinstance(snapshot.dataset, ds.FileSystemDataset) else 0


def column(name: str) -> Column:
    """The column of that name, whatever characters are in it."""
    return f.col("`" + name.replace("`", "``") + "`")


def source_condition(join: ViewJoin) -> Column:
    """The source's `where` as a Spark condition that compares as Arrow does: null and NaN meet no condition.

    Raises: InputError: a value that cannot be compared with its column.
    """
    filters.row_filter(join)
    met = f.lit(True)
    for name, operator, value in join.source.where:
        wanted = join.snapshot.dataset.schema.field(name).type
        field = column(name)
        if operator in ("in", "not in"):
            among = field.isin([_literal(each, wanted) for each in value]) if value else f.lit(False)
            one = among if operator == "in" else ~among & field.isNotNull()
        else:
            literal = _literal(value, wanted)
            one = {
                "==": field == literal,
                "!=": field != literal,
                "<": field < literal,
                "<=": field <= literal,
                ">": field > literal,
                ">=": field >= literal,
            }[operator]
        if pa.types.is_floating(wanted) and operator not in ("!=", "not in"):
            one = one & ~f.isnan(field)
        met = met & one
    return met


def moment(us: int) -> Column:
    """The moment that is so many microseconds after 1970 UTC, whatever the session's time zone."""
    return f.timestamp_micros(f.lit(us))


def check_moments(frame: DataFrame, name: str) -> None:
    """Raises PointInTimeError when the column holds no timestamps, or timestamps without a time zone."""
    found = frame.schema[name].dataType
    if isinstance(found, t.TimestampNTZType):
        raise PointInTimeError(f"column {name}: timestamps without a time zone; state one, for example UTC")
    if not isinstance(found, t.TimestampType):
        raise PointInTimeError(f"column {name}: expected timestamps, found {found.simpleString()}")


@contextmanager
def setting(spark: SparkSession, name: str, value: str) -> Iterator[None]:
    """Within it the session has this setting; what was there before comes back."""
    before = spark.conf.get(name, None)
    spark.conf.set(name, value)
    try:
        yield
    finally:
        if before is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, before)


def large_batches(spark: SparkSession) -> AbstractContextManager[None]:
    """Within it, what goes between Spark and Python goes in batches of ROWS_PER_BATCH."""
    return setting(spark, "spark.sql.execution.arrow.maxRecordsPerBatch", str(ROWS_PER_BATCH))


def _files(snapshot: TableSnapshot, where: ds.Expression | None) -> dict[str, tuple[int, dict[str, Any]]]:
    """Number and partition values by path, of the files that the condition does not rule out."""
    if not isinstance(snapshot.dataset, ds.FileSystemDataset):  # never written
        return {}
    number = {path: place for place, path in enumerate(snapshot.dataset.files)}
    return {
        fragment.path: (number[fragment.path], ds.get_partition_keys(fragment.partition_expression))
        for fragment in snapshot.dataset.get_fragments(where)
    }


def _sum(snapshot: TableSnapshot, fact: str) -> int:
    """The sum of what the Delta log says of each file."""
    if not isinstance(snapshot.dataset, ds.FileSystemDataset):
        return 0
    actions = pa.table(DeltaTable(snapshot.path, version=snapshot.version).get_add_actions(flatten=True))
    return sum(stated or 0 for stated in actions[fact].to_pylist()) if fact in actions.column_names else 0


def _one_slash(uri: str) -> str:
    return uri.replace("file:///", "file:/", 1)


def _long(name: str) -> t.StructField:
    return t.StructField(name, t.LongType())


def _literal(value: Any, wanted: pa.DataType) -> Any:
    if pa.types.is_timestamp(wanted):
        stated = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment(pa.scalar(in_utc(stated), pa.timestamp("us", "UTC")).cast(pa.int64()).as_py())
    literal = pa.scalar(value, wanted).as_py()
    return f.lit(literal) if not isinstance(literal, date) else f.lit(literal.isoformat()).cast("date")
