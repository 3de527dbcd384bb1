"""Writes by contract with Spark: append, insert and merge by key, replace a window.

Every write follows the same steps: fit the frame to the contract, find for each row what becomes of it (its fate),
check the batch, and commit what is new. What the lake holds already is not written again, and where nothing is new
there is no commit. A batch that is refused leaves the table as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
)
from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f
from pyspark.sql import types as t

from moonlake.errors import BatchRejected, ContractError, SchemaMismatch
from moonlake.files import exclusive
from moonlake.lake.lake import WriteReport
from moonlake.lake.rejects import reject_batches
from moonlake.schema.arrow import contract
from moonlake.schema.contract import Table
from moonlake.schema.row_rules import CONFLICTING_KEY, first_broken_rule_sql
from moonlake.schema.tables import REJECTS
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import spark_schema

MERGE_TRIES = 5
"""A merge that another writer's commit crossed is tried again so often in all."""

COMMITS_PER_CHECKPOINT = 100
"""Delta's own 10 would make every tenth small write wait two seconds; `moonlake.spark.small_writes` writes its own."""

CROSSED = (ConcurrentAppendException, ConcurrentDeleteReadException, ConcurrentDeleteDeleteException)
"""What Delta raises then."""

_NEW, _REJECTED, _DUPLICATE, _UNCHANGED = "new", "rejected", "duplicate", "unchanged"


def append(lake: SparkLake, name: str, frame: DataFrame, *, source: str, written_at: datetime) -> WriteReport:
    """Append the facts that the table does not hold yet; a restated fact stands beside the first one.

    Args:
        frame: the columns of the contract, without `created_at`.
        source: where the rows came from; stands in `rejects`.

    Raises:
        SchemaMismatch: a column is missing, unknown or of another type.
        BatchRejected: too large a share of the rows breaks rules.
    """
    table = _writing(name, "append")
    return _write(lake, table, frame, source, written_at, _append, lake.frame(name))


def merge(
    lake: SparkLake,
    name: str,
    frame: DataFrame,
    *,
    only: Mapping[str, str | int] | None = None,
    source: str,
    written_at: datetime,
) -> WriteReport:
    """Write one row a key: an absent key is inserted; a present one is updated, or left alone if its contract inserts.

    Writers may do so at once: a key that two of them bring is written by one.

    Args: only: values that all rows of the frame have in columns of the key: nothing else of the table is looked at.

    Other arguments and errors as for `append`.
    """
    table = _writing(name, "merge", "insert")
    present = lake.frame(name)
    part = _values_sql(table, only or {})
    for condition in part:
        present = present.where(condition)
    return _write(lake, table, frame, source, written_at, _merging(part), present)


def replace_window(
    lake: SparkLake,
    name: str,
    frame: DataFrame,
    *,
    start: datetime,
    end: datetime,
    only: Mapping[str, str | int] | None = None,
    source: str,
    written_at: datetime,
) -> WriteReport:
    """Make the frame the only rows of the table with an event time in [start, end); rows that stay keep `created_at`.

    Args:
        only: values of columns: of the window's rows those alone are replaced that have them, and the frame has no
            others. Without it all are.

    Other arguments and errors as for `append`, and ContractError when a row lies outside.
    """
    table = _writing(name, "replace_window")
    span = _span_sql(table, start, end, only or {})
    within = f.expr(span)
    if outside := frame.where(~f.coalesce(within, f.lit(False))).count():
        part = f" of {dict(only)}" if only else ""
        raise ContractError(f"table {name}: {outside} rows lie outside the window [{start}, {end}){part}")
    present = lake.frame(name).where(within)
    return _write(lake, table, frame, source, written_at, _replacing(span), present, replaces=True)


_Commit = Callable[[SparkLake, Table, DataFrame], int | None]
"""Writes rows, and says how many it wrote where another writer may have been first with some."""


def _writing(name: str, *kinds: str) -> Table:
    table = contract(name)
    table.require_writer(None)
    if table.writing not in kinds:
        raise ContractError(f"table {name} is written by {table.writing}, not by {' or '.join(kinds)}")
    return table


def _write(
    lake: SparkLake,
    table: Table,
    frame: DataFrame,
    source: str,
    written_at: datetime,
    commit: _Commit,
    present: DataFrame,
    *,
    replaces: bool = False,
) -> WriteReport:
    """Args: present: rows of the table that may be meant.   replaces: whether they go where the frame has them not."""
    rows = _with_fate(table, _fit(table, frame), present).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        counts = {row["_fate"]: row["count"] for row in rows.groupBy("_fate").count().collect()}
        total = sum(counts.values())
        check_batch(table, rows, counts.get(_REJECTED, 0), total)
        by_rule: dict[str, int] = {}
        if counts.get(_REJECTED, 0):
            refused = rows.where(f.col("_fate") == _REJECTED)
            keep_rejects(lake, table.name, refused, source=source, written_at=written_at)
            by_rule = rows_by_rule(refused)
        kept = counts.get(_UNCHANGED, 0)
        if counts.get(_NEW, 0) or (replaces and kept != present.count()):
            stamp = f.coalesce(f.col("_created_at"), f.lit(written_at)) if replaces else f.lit(written_at)
            chosen = rows.where(f.col("_fate").isin(_NEW, *([_UNCHANGED] if replaces else [])))
            fresh = chosen.withColumn("created_at", stamp).select(*table.names)
            if (done := commit(lake, table, fresh)) is not None:
                kept += counts[_NEW] - done
                counts[_NEW] = done
        return WriteReport(
            table=table.name,
            rows_in=total,
            written=counts.get(_NEW, 0),
            rejected=counts.get(_REJECTED, 0),
            duplicates=counts.get(_DUPLICATE, 0),
            unchanged=kept,
            version=lake.lake.version(table.name),
            by_rule=by_rule,
        )
    finally:
        rows.unpersist()


def _fit(table: Table, frame: DataFrame) -> DataFrame:
    """The frame in contract order with contract types."""
    if missing := set(table.facts) - set(frame.columns):
        raise SchemaMismatch(f"table {table.name}: columns {sorted(missing)} are missing; found {frame.columns}")
    if unknown := set(frame.columns) - set(table.facts):
        raise SchemaMismatch(f"table {table.name}: columns {sorted(unknown)} are not in the contract")
    for field in spark_schema(table, table.facts):
        found = frame.schema[field.name].dataType
        if not _fits(found, field.dataType):
            names = f"{found.simpleString()}, not {field.dataType.simpleString()}"
            raise SchemaMismatch(f"table {table.name}: column {field.name} is {names}")
    return frame.select(
        *(f.col(field.name).cast(field.dataType).alias(field.name) for field in spark_schema(table, table.facts))
    )


_NUMBERS: tuple[type[t.DataType], ...] = (t.IntegerType, t.LongType, t.FloatType, t.DoubleType)


def _fits(found: t.DataType, wanted: t.DataType) -> bool:
    """True when no value can be lost or misread by the cast: the same type, a narrower number, or all null."""
    if isinstance(found, t.NullType) or found.simpleString() == wanted.simpleString():
        return True
    if isinstance(found, t.ArrayType) and isinstance(wanted, t.ArrayType):
        return _fits(found.elementType, wanted.elementType)
    if type(found) in _NUMBERS and type(wanted) in _NUMBERS:
        whole = type(found) is t.LongType and type(wanted) in (t.FloatType, t.DoubleType)
        return _NUMBERS.index(type(found)) <= _NUMBERS.index(type(wanted)) and not whole
    return False


def _with_fate(table: Table, frame: DataFrame, present: DataFrame) -> DataFrame:
    """The rows with `_rule` (first rule broken), `_fate` and `_created_at` (of the same row in the lake, if any)."""
    identity = list(table.identity)
    judged = frame.withColumn("_rule", f.expr(first_broken_rule_sql(table))).withColumn("_hash", _facts_hash(table))
    # Rows that break a rule are numbered apart, so that they never make a good row with their key a duplicate.
    group = Window.partitionBy(*identity, f.isnotnull("_rule")).orderBy("_hash")
    group_first = f.first("_hash").over(group.rowsBetween(Window.unboundedPreceding, Window.currentRow))
    numbered = judged.withColumn("_place", f.row_number().over(group)).withColumn("_first", group_first)
    twin = f.col("_rule").isNull() & (f.col("_place") > 1)
    conflict = twin & (f.col("_hash") != f.col("_first"))
    marked = numbered.withColumn("_rule", f.when(conflict, f.lit(CONFLICTING_KEY)).otherwise(f.col("_rule")))

    inserts = table.writing == "insert"  # what a present row says does not matter then, and is not read
    known = (
        present.withColumn("_hash", f.lit(0) if inserts else _facts_hash(table))
        .groupBy(*identity)
        .agg(f.max_by("_hash", "created_at").alias("_known"), f.max("created_at").alias("_created_at"))
        .select(*(f.col(name).alias(f"_key_{name}") for name in identity), "_known", "_created_at")
    )
    same_key = [f.col(name).eqNullSafe(f.col(f"_key_{name}")) for name in identity]
    joined = marked.join(known, on=same_key, how="left")
    there = f.col("_known").isNotNull() if inserts else f.col("_known") == f.col("_hash")
    fate = (
        f.when(f.col("_rule").isNotNull(), _REJECTED)
        .when(f.col("_place") > 1, _DUPLICATE)
        .when(there, _UNCHANGED)
        .otherwise(_NEW)
    )
    created = f.when(there, f.col("_created_at"))
    return joined.select(*table.facts, "_rule", fate.alias("_fate"), created.alias("_created_at"))


def _facts_hash(table: Table) -> Column:
    """int64: a hash of all facts of a row. Nulls are spelled out, since xxhash64 passes over them."""
    parts: list[Column] = []
    for column in table:
        if column.name == "created_at":
            continue
        value = f.col(column.name)
        if column.type == "map<string,string>":
            value = f.array_sort(f.map_entries(value))
        elif column.type == "list<string>":
            value = f.transform(value, lambda item: f.coalesce(item, f.lit("\0")))
        parts += [value, f.isnull(value)]
    return f.xxhash64(*parts)


def check_batch(table: Table, rows: DataFrame, rejected: int, total: int) -> None:
    """Raise BatchRejected unless a batch may lose so many of its rows.

    Args: rows: the batch, with the rule that a row breaks in `_rule`, null for a good one.
    Raises: BatchRejected: too large a share breaks rules; the message names the three that most rows break.
    """
    if not total or rejected / total <= table.max_reject_share:
        return
    by_rule = rows.where("_rule IS NOT NULL").groupBy("_rule").count().orderBy(f.desc("count"), "_rule").limit(3)
    worst = ", ".join(f"{row['_rule']} ({row['count']})" for row in by_rule.collect())
    raise BatchRejected(
        f"table {table.name}: {rejected} of {total} rows break rules, more than the share of "
        f"{table.max_reject_share:g} that a batch may lose: {worst}. The table was left untouched"
    )


def keep_rejects(lake: SparkLake, name: str, refused: DataFrame, *, source: str, written_at: datetime) -> None:
    """Write refused records to `rejects`, each once however often it is submitted.

    Arguments as for `as_rejects` and `append`.
    """
    known = lake.frame(REJECTS.name).select("reject_id")
    rejects = as_rejects(name, refused, source).dropDuplicates(["reject_id"])
    fresh = rejects.join(known, on="reject_id", how="left_anti").withColumn("created_at", f.lit(written_at))
    if not fresh.isEmpty():
        _append(lake, REJECTS, fresh.select(*REJECTS.names))


def with_refused(
    lake: SparkLake,
    report: WriteReport,
    refused: DataFrame,
    *,
    source: str,
    written_at: datetime,
) -> WriteReport:
    """The report of a write with the records that never became rows of its frame: they go to `rejects` and count.

    Arguments as for `as_rejects` and `append`.
    """
    rules = Counter(rows_by_rule(refused))
    if rules:
        keep_rejects(lake, report.table, refused, source=source, written_at=written_at)
    count, by_rule = rules.total(), dict(rules + Counter(report.by_rule))
    return replace(report, rows_in=report.rows_in + count, rejected=report.rejected + count, by_rule=by_rule)


def rows_by_rule(refused: DataFrame) -> dict[str, int]:
    """The number of refused records by the rule that they broke, which stands in `_rule`."""
    return {row["_rule"]: row["count"] for row in refused.groupBy("_rule").count().orderBy("_rule").collect()}


def as_rejects(name: str, refused: DataFrame, source: str) -> DataFrame:
    """Refused records in the form of the `rejects` table, by the code that has them so without Spark too.

    Args:
        name: table that the records were meant for.
        refused: the records, with the rule that they broke in `_rule`; other columns named `_...` are left out.
    """
    chosen = [column for column in refused.columns if column == "_rule" or not column.startswith("_")]
    work = partial(reject_batches, contract(name), source=source)
    return refused.select(*chosen).mapInArrow(work, spark_schema(REJECTS, REJECTS.facts))


def create_table(lake: SparkLake, table: Table) -> None:
    """Create an empty table by its contract, clustered, with its change data feed on; one that is there stays."""
    if lake.lake.exists(table.name):
        return
    builder = (
        DeltaTable.createIfNotExists(lake.session)
        .location(lake.lake.path(table.name))
        .addColumns(spark_schema(table))
        .comment(table.grain)
        .property("delta.enableChangeDataFeed", "true")
        .property("delta.enableDeletionVectors", "false")
        .property("delta.checkpointInterval", str(COMMITS_PER_CHECKPOINT))
    )
    if table.cluster_by:
        builder = builder.clusterBy(*table.cluster_by)
    builder.execute()


def lock_of(settings: Settings, table: Table) -> Path:
    """The file that writers hold which look what a table has and then append what it has not.

    Two merges that cross are told apart by Delta. An append in small writes reads nothing that Delta knows of, so that
    only this keeps a key from being written by both.
    """
    return settings.locks / f"{table.name}.lock"


def _append(lake: SparkLake, table: Table, fresh: DataFrame) -> None:
    create_table(lake, table)
    fresh.write.format("delta").mode("append").save(lake.lake.path(table.name))


def _merging(part: Sequence[str]) -> _Commit:
    """Args: part: conditions that every row of the table meets that may be meant."""

    def commit(lake: SparkLake, table: Table, fresh: DataFrame) -> int:
        create_table(lake, table)
        same_key = [f"there.`{name}` = new.`{name}`" for name in table.key]
        of_part = [f"there.{condition}" for condition in part]
        for again in reversed(range(MERGE_TRIES)):
            target = DeltaTable.forPath(lake.session, lake.lake.path(table.name)).alias("there")
            merging = target.merge(fresh.alias("new"), " AND ".join([*same_key, *of_part])).whenNotMatchedInsertAll()
            if table.writing != "insert":
                merging = merging.whenMatchedUpdateAll()
            try:
                with exclusive(lock_of(lake.settings, table)):
                    return int(merging.execute().collect()[0]["num_affected_rows"])
            except CROSSED:
                if not again:
                    raise
        raise AssertionError("unreachable")

    return commit


def _replacing(span: str) -> _Commit:
    def commit(lake: SparkLake, table: Table, fresh: DataFrame) -> None:
        create_table(lake, table)
        writer = fresh.write.format("delta").mode("overwrite").option("replaceWhere", span)
        writer.save(lake.lake.path(table.name))

    return commit


def _span_sql(table: Table, start: datetime, end: datetime, only: Mapping[str, str | int]) -> str:
    """The rows that a window replaces, as a condition in SQL."""
    bounds = (f"TIMESTAMP '{moment.isoformat(sep=' ')}'" for moment in (start, end))
    window = "`{0}` >= {1} AND `{0}` < {2}".format(table.event_time, *bounds)
    return " AND ".join([window, *_values_sql(table, only)])


def _values_sql(table: Table, values: Mapping[str, str | int]) -> list[str]:
    """Conditions in SQL: columns have these values."""
    said = {table[name].name: f"'{value}'" if isinstance(value, str) else str(value) for name, value in values.items()}
    return [f"`{name}` = {value}" for name, value in said.items()]
