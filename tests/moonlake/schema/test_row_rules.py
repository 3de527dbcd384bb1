from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from moonlake.schema.arrow import arrow_schema
from moonlake.schema.contract import Column, Table
from moonlake.schema.row_rules import broken_rules, column_rules, expectation_suite
from moonlake.schema.tables import REJECTS, TABLES, TEXT

EVERYTHING = Table(
    name="everything",
    grain="One row per kind of bound.",
    key=("name",),
    writer="test",
    writing="merge",
    event_time=None,
    columns=(
        Column("name", "string", "a string", min_length=2, max_length=4, pattern="[a-z]+"),
        Column("kind", "string", "one of", nullable=True, values=("x", "y's")),
        Column("count", "int64", "a number", nullable=True, minimum=0, maximum=9),
        Column("vector", "list<float32>", "numbers", nullable=True, min_length=2, max_length=3),
        Column("facts", "map<string,string>", "a map", nullable=True, max_length=1),
        Column("blob", "binary", "bytes", nullable=True, min_length=1, max_length=3),
        Column("text", "string", "a text", nullable=True, pattern=TEXT),
    ),
)
GOOD: dict[str, Any] = {
    "name": "abc", "kind": "y's", "count": 3, "vector": [0.0, 1.0], "facts": [("k", "v")], "blob": b"ab",
}  # fmt: skip
BROKEN: dict[str, dict[str, Any]] = {
    "name_missing": {"name": None},
    "name_short": {"name": "a"},
    "name_long": {"name": "abcde"},
    "name_wrong_form": {"name": "ab1"},
    "kind_not_allowed": {"kind": "z"},
    "count_below_minimum": {"count": -1},
    "count_above_maximum": {"count": 10},
    "vector_short": {"vector": [1.0]},
    "vector_long": {"vector": [1.0, 1.0, 1.0, 1.0]},
    "vector_not_finite": {"vector": [1.0, float("nan")]},
    "facts_long": {"facts": [("k", "v"), ("l", "w")]},
    "blob_short": {"blob": b""},
    "blob_long": {"blob": b"abcd"},
    "text_wrong_form": {"text": "red\x1b[31m shoe"},
}
CONTROLS = [chr(code) for code in range(32) if chr(code) not in "\t\n\r"]
TEXTS = [
    "",
    "two\tcells\r\n and a line\n",
    "\u0643\u0631\u0633\u064a",
    "\u202egnp.exe",
    "men\x92s\x7f shoe\u200b\U0001f45f",
]
ROWS = [
    GOOD,
    *(GOOD | change for change in BROKEN.values()),
    {"name": "ab"},
    *(GOOD | {"text": text} for text in TEXTS),
    *(GOOD | {"text": text} for mark in CONTROLS for text in (mark, f"a{mark}b\n", f"\n{mark}")),
]
EXPECTED = [None, *BROKEN, None, *[None] * len(TEXTS), *["text_wrong_form"] * 3 * len(CONTROLS)]


def test_every_bound_is_a_rule_and_an_absent_value_breaks_none_but_missing() -> None:
    rows = pa.Table.from_pylist(
        ROWS, schema=pa.schema([field.with_nullable(True) for field in arrow_schema(EVERYTHING)])
    )
    assert broken_rules(EVERYTHING, rows) == EXPECTED
    assert {rule.name for rule in column_rules(EVERYTHING)} == BROKEN.keys()


@pytest.mark.spark
def test_spark_and_arrow_find_the_same_rule(spark: Any) -> None:
    from pyspark.sql import functions as f

    from moonlake.schema.row_rules import first_broken_rule_sql
    from moonlake.spark.session import spark_schema

    schema = spark_schema(EVERYTHING)
    for field in schema:
        field.nullable = True
    rows = [{**dict.fromkeys(EVERYTHING.names), **row, "facts": dict(row.get("facts") or []) or None} for row in ROWS]
    frame = spark.createDataFrame([tuple(row[name] for name in EVERYTHING.names) for row in rows], schema)
    found = frame.coalesce(1).withColumn("rule", f.expr(first_broken_rule_sql(EVERYTHING))).collect()
    assert [row["rule"] for row in found] == EXPECTED


@pytest.mark.slow
def test_the_expectation_suite_finds_what_the_row_rules_find() -> None:
    import great_expectations as gx

    suite = expectation_suite(EVERYTHING)
    context = gx.get_context(mode="ephemeral")
    source = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = source.add_batch_definition_whole_dataframe("all")
    columns = list(EVERYTHING.names)

    def failed(rows: list[dict[str, Any]]) -> set[str]:
        frame = pd.DataFrame(rows, columns=columns).astype({"count": "Int64"})
        found = batch.get_batch({"dataframe": frame}).validate(suite)
        return {
            (result.expectation_config.meta or {}).get("rule", result.expectation_config.type)
            for result in found.results
            if not result.success
        }

    assert failed([GOOD]) == set()
    for rule in ("name_missing", "name_long", "name_wrong_form", "kind_not_allowed", "count_above_maximum"):
        assert rule in failed([GOOD | BROKEN[rule]])
    assert failed([GOOD, GOOD]) == {"expect_column_values_to_be_unique"}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_contract_states_what_a_contract_must(table: Table) -> None:
    assert table.grain.endswith(".")
    assert table.names[-1] == "created_at"
    assert all(column.meaning for column in table)
    assert table.event_time is None or not table[table.event_time].nullable
    assert not any(table[name].nullable for name in table.key)
    assert len(expectation_suite(table).expectations) > 1
    names = [*(rule.name for rule in column_rules(table)), *(rule.name for rule in table.rules)]
    assert len(set(names)) == len(names)


def test_a_contract_that_names_a_column_that_it_has_not_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"table bad: .*name no column: \['event_timestamp', 'nowhere'\]"):
        Table("bad", "One row.", ("nowhere",), "test", "merge", (Column("a", "string", "a"),))
    with pytest.raises(KeyError, match="table rejects has no column colour"):
        REJECTS["colour"]
