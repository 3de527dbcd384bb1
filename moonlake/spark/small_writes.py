"""Writes of few rows by contract, at once: what `moonlake.spark.writes` does to a frame, for rows that lie in memory.

A write there costs some seconds whatever it holds, since every step is a job of Spark's. Here rows are looked up
without one, and only the commit is left to Spark: half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from moonlake.errors import ContractError
from moonlake.files import exclusive
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import ARROW_TYPES, contract
from moonlake.schema.contract import Table
from moonlake.schema.row_rules import broken_rules, first_broken_rule_sql
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import spark_schema
from moonlake.spark.writes import create_table, lock_of

MICROSECOND = timedelta(microseconds=1)
COMMITS_PER_CHECKPOINT = 10
"""Whoever looks rows up reads the log from its last checkpoint, a millisecond a commit; delta-rs writes one in ten."""


def judge(spark: SparkSession, name: str, rows: pa.Table) -> list[str | None]:
    """For each row the first rule of its contract that it breaks, None for a good row.

    Args: rows: the facts of the contract; nulls may stand anywhere.
    """
    table = contract(name)
    if not table.rules or not len(rows):
        return broken_rules(table, rows)
    judged = _frame(spark, table, rows).select(f.expr(first_broken_rule_sql(table)).alias("rule"))
    return [row["rule"] for row in judged.collect()]


def append_few(lake: SparkLake, name: str, rows: pa.Table, *, written_at: datetime) -> list[bool]:
    """Write what is new in one commit; which rows that were.

    Of an "insert" table a key that is there is left alone. Of an "append" table a fact is restated when it is another
    one than was written last; facts of one identity in one call are each written a microsecond after the one before.

    Args: rows: few (hundreds), the facts of the contract with its types, judged good.
    Raises: ContractError: the table is written otherwise.
    """
    table = contract(name)
    table.require_writer(None)
    if table.writing not in ("append", "insert"):
        raise ContractError(f"table {name} is written by {table.writing}, not by append or insert")
    if not len(rows):
        return []
    rows = rows.select(table.facts)
    with exclusive(lock_of(lake.settings, table)):
        known = _present(lake.lake, table, rows)
        stamps: list[datetime | None] = []
        for row in rows.to_pylist():
            identity = tuple(row[one] for one in table.identity)
            before, facts = known.get(identity), _facts(table, row)
            if before is not None and before.facts == facts:
                stamps.append(None)
                continue
            at = max(written_at, before.created_at + MICROSECOND) if before else written_at
            stamps.append(at)
            known[identity] = _Present(facts, at)
        created = pa.array(stamps, ARROW_TYPES["timestamp"])
        fresh = rows.append_column("created_at", created).filter(created.is_valid())
        if len(fresh):
            create_table(lake, table)
            frame = _frame(lake.session, table, fresh.select(table.names)).coalesce(1)
            frame.write.format("delta").mode("append").save(lake.lake.path(name))
            delta = DeltaTable(lake.lake.path(name))
            if delta.version() % COMMITS_PER_CHECKPOINT == 0:
                delta.create_checkpoint()
    return [at is not None for at in stamps]


@dataclass(frozen=True, slots=True)
class _Present:
    """The latest row of an identity in the table. `facts` are None where they do not matter."""

    facts: tuple[Any, ...] | None
    created_at: datetime


def _present(lake: Lake, table: Table, rows: pa.Table) -> dict[tuple[Any, ...], _Present]:
    """The latest row in the table of each identity in `rows`, and of some others."""
    wanted = pc.scalar(True)
    for name in table.key:
        wanted &= pc.field(name).isin(pc.unique(rows[name]))
    columns = dict.fromkeys([*table.identity, *(table.facts if table.writing == "append" else ()), "created_at"])
    found: dict[tuple[Any, ...], _Present] = {}
    for row in lake.read(table.name, list(columns), where=wanted).to_pylist():
        identity = tuple(row[name] for name in table.identity)
        if identity not in found or found[identity].created_at < row["created_at"]:
            found[identity] = _Present(_facts(table, row), row["created_at"])
    return found


def _facts(table: Table, row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    if table.writing == "insert":
        return None
    maps = {column.name for column in table if column.type == "map<string,string>"}
    return tuple(sorted(row[name] or ()) if name in maps else row[name] for name in table.facts)


def _frame(spark: SparkSession, table: Table, rows: pa.Table) -> DataFrame:
    """The rows for Spark; a null where none may be is for the rules to find."""
    fields = spark_schema(table, rows.column_names)
    return spark.createDataFrame(rows, t.StructType([t.StructField(one.name, one.dataType) for one in fields]))
