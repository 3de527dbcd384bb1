from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from moonlake.errors import BatchRejected, ContractError, SchemaMismatch
from moonlake.lake.lake import Lake, WriteReport
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import (
    BEHAVIOR_SEQUENCES,
    CUBE_FEATURES,
    EMBEDDINGS,
    PRODUCT_IMAGES,
    PRODUCTS,
    TABLES,
    TIMELESS,
    USERS,
)
from moonlake.settings import Settings
from moonlake.spark import small_writes, writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import spark_schema

pytestmark = pytest.mark.spark

DAY = datetime(2026, 2, 1, tzinfo=UTC)
LATER = datetime(2026, 3, 2, tzinfo=UTC)


def frame(spark: SparkSession, name: str, rows: list[dict[str, Any]]) -> DataFrame:
    table = TABLES[name]
    schema = spark_schema(table, table.facts)
    for field in schema:
        field.nullable = True
    return spark.createDataFrame([tuple(row.get(column) for column in table.facts) for row in rows], schema)


def merchant(merchant_id: str | None, tier: int = 1, day: int = 0) -> dict[str, Any]:
    return {"merchant_id": merchant_id, "tier": tier, "source": "test", "event_timestamp": DAY + timedelta(days=day)}


def put(spark: SparkSession, settings: Settings, rows: list[dict[str, Any]], at: datetime) -> Any:
    merchants = frame(spark, "merchants", rows)
    return writes.append(SparkLake(spark, settings), "merchants", merchants, source="test", written_at=at)


def test_every_row_that_comes_in_is_accounted_for(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    rows = [merchant("a"), merchant("a"), merchant("b", tier=0), merchant("c"), merchant("c", tier=2), merchant(None)]
    report = put(spark, settings, rows, written_at)
    assert (report.rows_in, report.written, report.rejected, report.duplicates, report.unchanged) == (6, 2, 3, 1, 0)
    rejects = Lake(settings).read("rejects").to_pylist()
    assert sorted(row["rule"] for row in rejects) == ["conflicting_key", "merchant_id_missing", "tier_below_minimum"]
    assert {row["table"] for row in rejects} == {"merchants"}


def test_the_same_batch_again_writes_no_commit_in_any_table(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    rows = [merchant("a"), merchant("b"), merchant("c", tier=0)]
    put(spark, settings, rows, written_at)
    lake = Lake(settings)
    before = {name: lake.version(name) for name in TABLES}
    report = put(spark, settings, rows, LATER)
    assert report.written == 0
    assert report.unchanged == 2
    assert {name: lake.version(name) for name in TABLES} == before


def test_a_restated_fact_is_appended_beside_the_first_one(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    put(spark, settings, [merchant("a", tier=1), merchant("b")], written_at)
    put(spark, settings, [merchant("a", tier=2), merchant("b")], LATER)
    rows = Lake(settings).read("merchants").to_pylist()
    assert sorted((row["merchant_id"], row["tier"], row["created_at"]) for row in rows) == [
        ("a", 1, written_at),
        ("a", 2, LATER),
        ("b", 1, written_at),
    ]


def test_a_fact_restated_back_is_a_new_statement(spark: SparkSession, settings: Settings, written_at: datetime) -> None:
    for hours, tier in enumerate((1, 2, 1)):
        put(spark, settings, [merchant("a", tier=tier)], written_at + timedelta(hours=hours))
    assert len(Lake(settings).read("merchants")) == 3


def test_a_batch_of_which_too_much_is_bad_leaves_the_lake_untouched(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    put(spark, settings, [merchant("a")], written_at)
    before = {name: Lake(settings).version(name) for name in TABLES}
    with pytest.raises(BatchRejected, match=r"merchants: 2 of 3 rows.*tier_below_minimum \(2\)"):
        put(spark, settings, [merchant("b"), merchant("c", tier=0), merchant("d", tier=-1)], LATER)
    assert {name: Lake(settings).version(name) for name in TABLES} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop("tier"), "columns .'tier'. are missing"),
        (lambda rows: rows.withColumn("extra", rows.tier), "columns .'extra'. are not in the contract"),
        (lambda rows: rows.withColumn("tier", rows.tier.cast("string")), "column tier is string, not int"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_by_name(
    spark: SparkSession, settings: Settings, written_at: datetime, change: Any, message: str
) -> None:
    wrong = change(frame(spark, "merchants", [merchant("a")]))
    with pytest.raises(SchemaMismatch, match=message):
        writes.append(SparkLake(spark, settings), "merchants", wrong, source="test", written_at=written_at)
    assert not Lake(settings).exists("merchants")


def sequence(user: str, *products: str | None) -> dict[str, Any]:
    length = len(products)
    return {
        "user_id": user,
        "month": "2026-02",
        "times_us": list(range(length)),
        "actions": ["click"] * length,
        "product_ids": list(products),
        "content_ids": [None] * length,
        "query_content_ids": [None] * length,
        "event_timestamp": DAY,
    }


def test_merge_updates_what_changed_and_leaves_the_rest(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    def put_sequences(rows: list[dict[str, Any]], at: datetime) -> Any:
        packed = frame(spark, BEHAVIOR_SEQUENCES.name, rows)
        return writes.merge(SparkLake(spark, settings), BEHAVIOR_SEQUENCES.name, packed, source="test", written_at=at)

    put_sequences([sequence("u", "a", None), sequence("v", "c")], written_at)
    # The same products with the null elsewhere: a hash that passes over nulls would call this unchanged.
    report = put_sequences([sequence("u", None, "a"), sequence("v", "c"), sequence("w", "d")], LATER)
    assert (report.written, report.unchanged) == (2, 1)
    rows = Lake(settings).read(BEHAVIOR_SEQUENCES.name).to_pylist()
    assert {row["user_id"]: (row["product_ids"], row["created_at"]) for row in rows} == {
        "u": ([None, "a"], LATER),
        "v": (["c"], written_at),
        "w": (["d"], LATER),
    }


def test_insert_leaves_a_present_key_alone(spark: SparkSession, settings: Settings, written_at: datetime) -> None:
    def put_image(source: str, at: datetime) -> Any:
        facts = {"image_id": "0" * 32, "image_bytes": b"x", "format": "PNG", "width": 1, "height": 1}
        rows = frame(spark, PRODUCT_IMAGES.name, [facts | {"perceptual_hash": "0" * 16, "source": source}])
        return writes.merge(SparkLake(spark, settings), PRODUCT_IMAGES.name, rows, source="test", written_at=at)

    put_image("first", written_at)
    assert put_image("second", LATER).unchanged == 1
    assert Lake(settings).read(PRODUCT_IMAGES.name)["source"].to_pylist() == ["first"]


def vector(content: int, space: int) -> dict[str, Any]:
    ids = {"content_id": f"{content:032x}", "space_id": f"{space:032x}"}
    return ids | {"vector": [0.6, 0.8], "event_timestamp": TIMELESS}


def test_writers_at_once_insert_a_key_once(spark: SparkSession, settings: Settings, written_at: datetime) -> None:
    def put_vectors(first: int) -> WriteReport:
        rows = frame(spark, EMBEDDINGS.name, [vector(content, 1) for content in range(first, first + 20)])
        only = {"space_id": f"{1:032x}"}
        at = written_at + timedelta(seconds=first)
        return writes.merge(SparkLake(spark, settings), EMBEDDINGS.name, rows, only=only, source="test", written_at=at)

    put_vectors(100)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(put_vectors, (0, 10, 20)))
    assert sum(report.written for report in reports) == 40
    assert sum(report.unchanged for report in reports) == 20
    ids = Lake(settings).read(EMBEDDINGS.name)["content_id"].to_pylist()
    assert sorted(ids) == [f"{content:032x}" for content in [*range(40), *range(100, 120)]]


def test_a_merge_of_one_value_sees_no_rows_of_another(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    for space in (1, 2):
        rows, only = frame(spark, EMBEDDINGS.name, [vector(7, space)]), {"space_id": f"{space:032x}"}
        for wanted in (1, 0):
            report = writes.merge(
                SparkLake(spark, settings), EMBEDDINGS.name, rows, only=only, source="test", written_at=written_at
            )
            assert (report.written, report.unchanged) == (wanted, 1 - wanted)
    assert len(Lake(settings).read(EMBEDDINGS.name)) == 2


def cube(impression: str, day: int, mean: float = 0.5) -> dict[str, Any]:
    return {
        "impression_id": impression,
        "space_id": "0" * 32,
        "behavior_similarity_mean": mean,
        "behavior_similarity_histogram": [0.5, 0.5],
        "behaviors_used": 2,
        "behaviors_missing": 0,
        "search_similarity_histogram": [0.0, 0.0],
        "searches_used": 0,
        "searches_missing": 0,
        "event_timestamp": DAY + timedelta(days=day),
    }


def test_replace_window_rewrites_only_its_window_and_keeps_created_at_of_what_stays(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    def put_window(rows: list[dict[str, Any]], days: tuple[int, int], at: datetime) -> Any:
        start, end = (DAY + timedelta(days=day) for day in days)
        window = frame(spark, CUBE_FEATURES.name, rows)
        return writes.replace_window(
            SparkLake(spark, settings), CUBE_FEATURES.name, window, start=start, end=end, source="test", written_at=at
        )

    put_window([cube("a", 0), cube("b", 1), cube("c", 2)], (0, 3), written_at)
    report = put_window([cube("b", 1), cube("d", 1)], (1, 2), LATER)
    assert (report.written, report.unchanged) == (1, 1)
    put_window([cube("c", 2, mean=0.25)], (2, 3), LATER)
    stored = {row["impression_id"]: row["created_at"] for row in Lake(settings).read(CUBE_FEATURES.name).to_pylist()}
    assert stored == {"a": written_at, "b": written_at, "c": LATER, "d": LATER}
    version = Lake(settings).version(CUBE_FEATURES.name)
    put_window([cube("b", 1), cube("d", 1)], (1, 2), LATER)
    assert Lake(settings).version(CUBE_FEATURES.name) == version
    put_window([cube("b", 1)], (1, 2), LATER)
    assert sorted(Lake(settings).read(CUBE_FEATURES.name)["impression_id"].to_pylist()) == ["a", "b", "c"]
    with pytest.raises(ContractError, match="1 rows lie outside the window"):
        put_window([cube("z", 5)], (1, 2), LATER)


def test_replace_window_with_values_leaves_the_other_rows_of_the_window_alone(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    spaces = {"one": "1" * 32, "two": "2" * 32}

    def put_space(space: str, impressions: list[str], at: datetime) -> Any:
        rows = [cube(impression, 0) | {"space_id": spaces[space]} for impression in impressions]
        window = frame(spark, CUBE_FEATURES.name, rows)
        start, end, only = DAY, DAY + timedelta(days=1), {"space_id": spaces[space]}
        return writes.replace_window(
            SparkLake(spark, settings),
            CUBE_FEATURES.name,
            window,
            start=start,
            end=end,
            only=only,
            source="test",
            written_at=at,
        )

    put_space("one", ["a", "b"], written_at)
    put_space("two", ["a", "c"], LATER)
    report = put_space("one", ["b"], LATER)
    assert (report.written, report.unchanged) == (0, 1)
    rows = Lake(settings).read(CUBE_FEATURES.name).to_pylist()
    stored = sorted((row["space_id"][0], row["impression_id"], row["created_at"]) for row in rows)
    assert stored == [("1", "b", written_at), ("2", "a", LATER), ("2", "c", LATER)]
    version = Lake(settings).version(CUBE_FEATURES.name)
    put_space("two", ["a", "c"], LATER)
    assert Lake(settings).version(CUBE_FEATURES.name) == version
    wrong = frame(spark, CUBE_FEATURES.name, [cube("z", 0) | {"space_id": spaces["two"]}])
    window: dict[str, Any] = {"start": DAY, "end": DAY + timedelta(days=1), "only": {"space_id": spaces["one"]}}
    with pytest.raises(ContractError, match=r"1 rows lie outside the window .* of .'space_id'"):
        writes.replace_window(
            SparkLake(spark, settings), CUBE_FEATURES.name, wrong, **window, source="test", written_at=written_at
        )


def test_the_wrong_kind_of_write_is_an_error(spark: SparkSession, settings: Settings, written_at: datetime) -> None:
    merchants = frame(spark, "merchants", [merchant("a")])
    with pytest.raises(ContractError, match="merchants is written by append, not by merge"):
        writes.merge(SparkLake(spark, settings), "merchants", merchants, source="test", written_at=written_at)


def test_a_new_table_is_clustered_and_feeds_its_changes(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    rows = [{"user_id": "u", "source": "test", "event_timestamp": DAY}]
    writes.append(
        SparkLake(spark, settings), USERS.name, frame(spark, USERS.name, rows), source="test", written_at=written_at
    )
    writes.create_table(SparkLake(spark, settings), PRODUCTS)
    lake = Lake(settings)
    assert lake.open(PRODUCTS.name).metadata().configuration["delta.enableChangeDataFeed"] == "true"
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{lake.path(PRODUCTS.name)}`").first()
    assert detail is not None
    assert detail["clusteringColumns"] == list(PRODUCTS.cluster_by)
    changes = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", 0)
    assert changes.load(lake.path(USERS.name)).count() == 1


def test_row_rules_name_the_first_rule_broken(spark: SparkSession, settings: Settings, written_at: datetime) -> None:
    good = {
        "product_id": "p",
        "title": "t",
        "attributes": {"material": "oak"},
        "image_ids": [],
        "listed_at": DAY,
        "deleted": False,
        "content_id": "0" * 32,
        "source": "test",
        "event_timestamp": DAY,
    }
    bad: dict[str, dict[str, Any]] = {
        "has_content": {"title": None},
        "listed_before_change": {"listed_at": LATER},
        "title_long": {"title": "x" * 1_001},
        "image_ids_long": {"image_ids": ["i"] * 17},
        "content_id_wrong_form": {"content_id": "zz"},
        "price_cents_below_minimum": {"price_cents": -1},
        "product_id_short": {"product_id": ""},
    }
    rows = [good | {"product_id": f"good-{number}"} for number in range(len(bad))]
    rows += [good | {"product_id": rule} | change for rule, change in bad.items()]
    writes.append(
        SparkLake(spark, settings), "products", frame(spark, "products", rows), source="test", written_at=written_at
    )
    assert sorted(Lake(settings).read("rejects")["rule"].to_pylist()) == sorted(bad)


def test_a_guarded_table_is_written_by_its_writer_alone(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    row = {"use": "similar_products", "space_id": "0" * 32, "event_timestamp": DAY}
    with pytest.raises(ContractError, match=r"releases is written by moonlake\.embeddings\.releases alone"):
        writes.append(
            SparkLake(spark, settings), "releases", frame(spark, "releases", [row]), source="t", written_at=written_at
        )
    rows = pa.Table.from_pylist([row], arrow_schema(TABLES["releases"], TABLES["releases"].facts))
    with pytest.raises(ContractError, match=r"releases is written by moonlake\.embeddings\.releases alone"):
        small_writes.append_few(SparkLake(spark, settings), "releases", rows, written_at=written_at)
    assert not Lake(settings).exists("releases")
