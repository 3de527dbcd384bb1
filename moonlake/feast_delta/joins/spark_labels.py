"""Label rows of every kind as a frame of Spark that gives the same rows, numbered alike, each time it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import DeltaTable
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t
from pyspark.sql.pandas.types import from_arrow_schema

from moonlake.errors import InputError, PointInTimeError
from moonlake.feast_delta.joins.plan import time_column_of
from moonlake.feast_delta.joins.spark_join import SparkLabels
from moonlake.feast_delta.joins.spark_shards import LABEL
from moonlake.feast_delta.joins.spark_tables import check_moments, column, large_batches
from moonlake.lake.versions import NEVER_WRITTEN, TableSnapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def spark_labels(spark: SparkSession, rows: object, tables: Mapping[str, TableSnapshot]) -> SparkLabels:
    """The label rows: a frame of Spark, pandas or Arrow, a Delta table, or SQL.

    SQL is run by Spark: beside all that the session knows, it may name the lake's tables, at their pinned versions.

    Raises:
        InputError: rows of another kind, SQL that cannot be run, or no event time.
        PointInTimeError: event times that are null or have no time zone.
    """
    frame = _frame(spark, rows, tables)
    timestamps = [
        field.name for field in frame.schema if isinstance(field.dataType, t.TimestampType | t.TimestampNTZType)
    ]
    return numbered(frame, time_column_of(frame.columns, timestamps))


def numbered(frame: DataFrame, time_column: str) -> SparkLabels:
    """The rows with LABEL, held by the executors: computed again they might come in another order."""
    check_moments(frame, time_column)
    rows = frame.withColumn(LABEL, f.monotonically_increasing_id()).localCheckpoint(eager=False)
    time = f.unix_micros(column(time_column))
    facts = rows.agg(f.count("*"), f.count(time), f.min(time), f.max(time), f.max(LABEL)).first()
    assert facts is not None
    count, times, earliest, latest, last = facts
    if times < count:
        raise PointInTimeError(f"column {time_column}: {count - times} of {count} times are null")
    return SparkLabels(rows, tuple(frame.columns), time_column, _moment(earliest), _moment(latest), count, last or 0)


def _frame(spark: SparkSession, rows: object, tables: Mapping[str, TableSnapshot]) -> DataFrame:
    if isinstance(rows, DataFrame):
        return rows
    if isinstance(rows, str):
        return _query(spark, rows, tables)
    if isinstance(rows, SparkDeltaTable):
        return rows.toDF()
    if isinstance(rows, DeltaTable):
        path = rows.table_uri.removeprefix("file://").rstrip("/")
        return spark.read.format("delta").option("versionAsOf", rows.version()).load(path)
    if isinstance(rows, pd.DataFrame):
        return _arrow_frame(spark, pa.Table.from_pandas(rows, preserve_index=False))
    if isinstance(rows, ds.Dataset):
        return _arrow_frame(spark, rows.to_table())
    if isinstance(rows, pa.RecordBatchReader):
        return _arrow_frame(spark, rows.read_all())
    if isinstance(rows, pa.Table):
        return _arrow_frame(spark, rows)
    raise InputError(
        f"label rows: expected a pandas, Arrow or Spark frame, a Delta table or SQL, found {type(rows).__name__}"
    )


def _arrow_frame(spark: SparkSession, rows: pa.Table) -> DataFrame:
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":  # a cast would round towards 1970
            rows = rows.set_column(place, field.name, pc.floor_temporal(rows[field.name], unit="microsecond"))
    plain = pa.schema([pa.field(field.name, _plain(field.type)) for field in rows.schema])
    with large_batches(spark):  # a batch is a partition
        return spark.createDataFrame(rows.cast(plain, safe=False), from_arrow_schema(plain))


def _query(spark: SparkSession, sql: str, tables: Mapping[str, TableSnapshot]) -> DataFrame:
    named = [name for name in tables if re.search(rf"(?<![\w`./]){re.escape(name)}(?![\w`./])", sql)]
    try:
        with _views(spark, {name: tables[name] for name in named}):
            return spark.sql(sql)
    except PySparkException as error:
        raise InputError(f"label rows: the query cannot be run: {error}") from error


@contextmanager
def _views(spark: SparkSession, tables: Mapping[str, TableSnapshot]) -> Iterator[None]:
    """The tables by name while a query is analysed; a frame keeps what its names meant."""
    made = []
    try:
        for name, snapshot in tables.items():
            if snapshot.version == NEVER_WRITTEN:
                raise InputError(f"label rows: table {name} has not been written yet")
            frame = spark.read.format("delta").option("versionAsOf", snapshot.version).load(snapshot.path)
            try:
                frame.createTempView(name)
            except AnalysisException:
                raise InputError(
                    f"label rows: the session has a temporary view {name}, so that the lake's table cannot be meant"
                ) from None
            made.append(name)
        yield
    finally:
        for name in made:
            spark.catalog.dropTempView(name)


def _plain(found: pa.DataType) -> pa.DataType:
    """The type as Spark has it: dictionaries decoded, times in microseconds."""
    if pa.types.is_dictionary(found):
        return _plain(found.value_type)
    return pa.timestamp("us", found.tz) if pa.types.is_timestamp(found) else found


def _moment(us: int | None) -> datetime | None:
    return None if us is None else _EPOCH + timedelta(microseconds=us)
