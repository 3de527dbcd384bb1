import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from moonlake.lake.lake import Lake
from moonlake.lake.rejects import MAX_VALUE_CHARACTERS, canonical, reject_batches, reject_rows
from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.contract import Column, ColumnType, Table
from moonlake.schema.tables import REJECTS, TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import SPARK_TYPES, spark_schema
from moonlake.spark.writes import keep_rejects

TYPES: tuple[ColumnType, ...] = get_args(ColumnType)
EVERY_TYPE = Table(
    name="every_type",
    grain="One row per type.",
    key=("string",),
    writer="test",
    writing="append",
    event_time=None,
    columns=tuple(Column(kind, kind, kind) for kind in TYPES),
)
LATER = timezone(timedelta(hours=1))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = {width: st.floats(width=width) for width in (32, 64)}
INTS = {bits: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (32, 64)}
VALUES: dict[ColumnType, st.SearchStrategy[Any]] = {
    "string": TEXTS,
    "bool": st.booleans(),
    "int32": INTS[32],
    "int64": INTS[64],
    "float32": FLOATS[32],
    "float64": FLOATS[64],
    "timestamp": st.datetimes(timezones=st.just(UTC)),
    "binary": st.binary(max_size=8),
    "list<string>": st.lists(st.none() | TEXTS, max_size=3),
    "list<int64>": st.lists(INTS[64], max_size=3),
    "list<float32>": st.lists(FLOATS[32], max_size=3),
    "map<string,string>": st.dictionaries(TEXTS, st.none() | TEXTS, max_size=3),
}
RECORDS = st.fixed_dictionaries({kind: st.none() | VALUES[kind] for kind in TYPES})


def from_arrow(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `rejects` of a record that comes as a batch."""
    columns: dict[str, Any] = {kind: pa.array([record[kind]], ARROW_TYPES[kind]) for kind in TYPES}
    batch = pa.RecordBatch.from_pydict({**columns, "_rule": ["a_rule"], "_fate": ["rejected"]})
    (found,) = reject_batches(EVERY_TYPE, [batch], source="test")
    (row,) = found.to_pylist()
    return row


def from_python(record: Mapping[str, Any]) -> dict[str, Any]:
    (row,) = reject_rows(EVERY_TYPE, [("a_rule", record)], source="test").to_pylist()
    return row


@given(RECORDS)
def test_a_record_of_python_values_and_one_of_arrow_are_the_same_row(record: dict[str, Any]) -> None:
    row = from_arrow(record)
    assert row == from_python(record)
    assert row == from_python({kind: record[kind] for kind in reversed(TYPES) if record[kind] is not None})
    assert len(row["value"]) == MAX_VALUE_CHARACTERS or list(json.loads(row["value"])) == [
        kind for kind in TYPES if record[kind] is not None
    ]


@given(RECORDS, RECORDS)
def test_other_records_have_other_ids(one: dict[str, Any], other: dict[str, Any]) -> None:
    texts = {canonical(EVERY_TYPE, record) for record in (one, other)}
    assert len({from_python(record)["reject_id"] for record in (one, other)}) == len(texts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, JSON, max_size=4))
def test_a_record_of_plain_values_is_told_as_it_is(record: dict[str, Any]) -> None:
    known = {name: value for name, value in record.items() if name not in TYPES}
    expected = {name: value for name, value in known.items() if value is not None}
    assert json.loads(canonical(EVERY_TYPE, known)) == expected


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("string", 'Müller "日本"', r'"Müller \"日本\""'),
        ("string", "half \ud83d", r'"half \ud83d"'),
        ("float32", np.float32(0.1), "0.1"),
        ("float32", 0.10000000149011612, "0.1"),
        ("float32", 1e300, '"Infinity"'),
        ("float64", 5, "5.0"),
        ("float64", float("nan"), '"NaN"'),
        ("float64", -0.0, "-0.0"),
        ("int64", np.int64(7), "7"),
        ("int64", True, "true"),
        ("list<float32>", np.array([0.1, -np.inf], np.float32), '[0.1,"-Infinity"]'),
        ("map<string,string>", [("b", "2"), ("a", None)], '{"a":null,"b":"2"}'),
        ("timestamp", datetime(2026, 1, 2, 3, tzinfo=LATER), '"2026-01-02T02:00:00.000000+00:00"'),
        ("timestamp", "tomorrow", '"tomorrow"'),
        ("binary", memoryview(b""), '"0 bytes, hash cae66941d9efbd404e4d88758ea67670"'),
    ],
)  # fmt: skip
def test_a_value_has_one_text(column: str, value: Any, text: str) -> None:
    assert canonical(EVERY_TYPE, {column: value}) == f'{{"{column}":{text}}}'
    assert from_python({column: value})["value"] == f'{{"{column}":{text}}}'


def test_a_time_that_python_cannot_have_is_told_all_the_same() -> None:
    year = pa.array([2**58], pa.int64()).cast(ARROW_TYPES["timestamp"])
    batch = pa.RecordBatch.from_pydict({"timestamp": year, "_rule": ["timestamp_late"]})
    (found,) = reject_batches(EVERY_TYPE, [batch], source="test")
    assert found["value"].to_pylist() == [f'{{"timestamp":"{2**58} microseconds after 1970"}}']


def test_long_records_that_differ_behind_the_cut_are_two(lake: Lake, written_at: datetime) -> None:
    records = [("text_long", {"user_id": f"{'x' * MAX_VALUE_CHARACTERS}{one}"}) for one in "ab"]
    for _ in range(2):
        lake.keep_rejects("behaviors", records, source="test", written_at=written_at)
    rows = lake.read("rejects").to_pylist()
    assert [len(row["value"]) for row in rows] == [MAX_VALUE_CHARACTERS] * 2
    assert len({row["reject_id"] for row in rows}) == 2


def test_every_table_can_have_its_records_refused(lake: Lake, written_at: datetime) -> None:
    for name in TABLES:
        lake.keep_rejects(name, [("a_rule", {"source": "shop"})], source="test", written_at=written_at)
    assert sorted(lake.read("rejects")["table"].to_pylist()) == sorted(TABLES)


@pytest.mark.spark
def test_spark_and_arrow_give_one_record_one_row(
    spark: SparkSession, settings: Settings, lake: Lake, written_at: datetime
) -> None:
    """A record of every column type, with values that Spark's own JSON would write otherwise."""
    schema = t.StructType([t.StructField(kind, SPARK_TYPES[kind]) for kind in TYPES])
    records: list[dict[str, Any]] = [
        {
            "string": 'Müller "日本" \u2028 \x00 <&>',
            "bool": False,
            "int32": -(2**31),
            "int64": 2**63 - 1,
            "float32": 0.10000000149011612,
            "float64": 2e-3,
            "timestamp": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
            "binary": b"\x00\xff",
            "list<string>": ["ü", None, ""],
            "list<int64>": [],
            "list<float32>": [1e10, float("inf"), float("nan")],
            "map<string,string>": {"b": "2", "a": None},
        },
        dict.fromkeys(TYPES),
        {**dict.fromkeys(TYPES), "string": "é", "timestamp": datetime(9999, 12, 31, 23, tzinfo=UTC)},
    ]
    frame = spark.createDataFrame([tuple(record.values()) for record in records], schema)
    batches = frame.withColumn("_rule", f.lit("a_rule")).withColumn("_fate", f.lit("rejected"))
    found = batches.mapInArrow(
        partial(reject_batches, EVERY_TYPE, source="test"), spark_schema(REJECTS, REJECTS.facts)
    ).collect()
    expected = [from_python(record) for record in records]
    assert [row.asDict() for row in found] == expected

    merchants = [{"merchant_id": "ä", "tier": 9, "source": "test", "event_timestamp": written_at}]
    lake.keep_rejects("merchants", [("tier_above_maximum", merchants[0])], source="shop", written_at=written_at)
    refused = spark.createDataFrame(
        [(*merchants[0].values(), "tier_above_maximum")],
        "merchant_id string, tier int, source string, event_timestamp timestamp, _rule string",
    )
    keep_rejects(SparkLake(spark, settings), "merchants", refused, source="shop", written_at=written_at)
    (row,) = lake.read("rejects").to_pylist()
    assert json.loads(row["value"])["merchant_id"] == "ä"
    keep_rejects(SparkLake(spark, settings), "merchants", refused, source="another shop", written_at=written_at)
    assert len(lake.read("rejects")) == 2
