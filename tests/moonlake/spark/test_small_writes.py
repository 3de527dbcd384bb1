from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from moonlake.embeddings.contents import content_of
from moonlake.errors import ContractError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, PRODUCTS, TIMELESS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.small_writes import append_few, judge

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DAY = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def products(*rows: dict[str, Any]) -> pa.Table:
    filled = [
        {
            "attributes": [("a", "1"), ("b", "2")], "image_ids": [], "listed_at": DAY, "deleted": False, "source": "t",
            "content_id": content_of(row["title"], []).content_id, "event_timestamp": DAY,
        } | row
        for row in rows
    ]  # fmt: skip
    schema = pa.schema(field.with_nullable(True) for field in arrow_schema(PRODUCTS, PRODUCTS.facts))
    return pa.Table.from_pylist(filled, schema)


def vectors(*names: str, vector: float = 1.0) -> pa.Table:
    rows = [
        {"content_id": stable_hash(name), "space_id": stable_hash("s"), "vector": [vector, 0.0],
         "event_timestamp": TIMELESS}
        for name in names
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, arrow_schema(EMBEDDINGS, EMBEDDINGS.facts))


def test_rows_are_judged_as_a_batch_is(spark: SparkSession) -> None:
    rows = products(
        {"product_id": "good", "title": "mug"},
        {"product_id": "long", "title": "x" * 1001},
        {"product_id": None, "title": "x"},
        {"product_id": "late", "title": "x", "listed_at": DAY + HOUR},
        {"product_id": "nothing", "title": None},
    )
    assert judge(spark, "products", rows) == [
        None, "title_long", "product_id_missing", "listed_before_change", "has_content"
    ]  # fmt: skip
    assert judge(spark, "embeddings", vectors("a", vector=float("nan"))) == ["vector_not_finite"]


def test_what_is_there_is_left_alone_and_a_restated_fact_stands_beside_the_first(
    spark: SparkSession, settings: Settings, lake: Lake
) -> None:
    def append(*rows: dict[str, Any], at: datetime) -> list[bool]:
        return append_few(SparkLake(spark, settings), "products", products(*rows), written_at=at)

    mug, cup = {"product_id": "p", "title": "mug"}, {"product_id": "p", "title": "cup"}
    assert append(mug, mug, cup, mug, at=DAY) == [True, False, True, True]
    version = lake.version("products")
    assert append(mug, at=DAY) == [False]
    assert lake.version("products") == version
    assert append(cup, at=DAY + HOUR) == [True]
    rows = lake.read("products").sort_by("created_at")
    assert rows["title"].to_pylist() == ["mug", "cup", "mug", "cup"]
    stamps = rows["created_at"].to_pylist()
    assert stamps == [DAY, DAY + timedelta(microseconds=1), DAY + timedelta(microseconds=2), DAY + HOUR]
    again = writes.append(
        SparkLake(spark, settings),
        "products",
        spark.createDataFrame(products(cup)),
        source="t",
        written_at=DAY + 2 * HOUR,
    )
    assert (again.written, again.unchanged) == (0, 1)  # both doors say what is there alike


def test_an_inserted_key_stays_as_it_was(spark: SparkSession, settings: Settings, lake: Lake) -> None:
    assert append_few(SparkLake(spark, settings), "embeddings", vectors("a", "b", "a"), written_at=DAY) == [
        True,
        True,
        False,
    ]
    assert append_few(SparkLake(spark, settings), "embeddings", vectors("a", "c", vector=0.5), written_at=DAY) == [
        False,
        True,
    ]
    assert sorted(row[0] for row in lake.read("embeddings")["vector"].to_pylist()) == [0.5, 1.0, 1.0]
    assert append_few(SparkLake(spark, settings), "embeddings", vectors(), written_at=DAY) == []


def test_a_table_that_is_merged_is_not_appended_to(spark: SparkSession, settings: Settings) -> None:
    with pytest.raises(ContractError, match="queries is written by merge"):
        append_few(SparkLake(spark, settings), "queries", products({"product_id": "p", "title": "x"}), written_at=DAY)


def test_small_and_large_writes_at_once_write_each_key_once(
    spark: SparkSession, settings: Settings, lake: Lake
) -> None:
    names = [f"content {number}" for number in range(8)]
    writes.create_table(SparkLake(spark, settings), EMBEDDINGS)

    def small(name: str) -> None:
        append_few(SparkLake(spark, settings), "embeddings", vectors(name), written_at=DAY)

    def large() -> None:
        frame = spark.createDataFrame(vectors(*names))
        writes.merge(SparkLake(spark, settings), "embeddings", frame, source="t", written_at=DAY)

    with ThreadPoolExecutor(3) as pool:
        for task in [pool.submit(large), *(pool.submit(small, name) for name in names)]:
            task.result()
    found = lake.read("embeddings")["content_id"].to_pylist()
    assert sorted(found) == sorted(stable_hash(name) for name in names)


def test_one_commit_in_ten_leaves_a_checkpoint_from_which_spark_reads_all_that_it_knew(
    spark: SparkSession, settings: Settings
) -> None:
    for number in range(10):
        append_few(SparkLake(spark, settings), "embeddings", vectors(f"content {number}"), written_at=DAY)
    path = Path(Lake(settings).path("embeddings"))
    checkpoint = json.loads((path / "_delta_log" / "_last_checkpoint").read_text())["version"]
    assert checkpoint == 10
    kept = {path / "_delta_log" / f"{checkpoint:020}.{ending}" for ending in ("json", "checkpoint.parquet")}
    for file in (path / "_delta_log").glob("0*"):  # what the checkpoint stands for
        if file not in kept:
            file.unlink()
    elsewhere = settings.model_copy(update={"home": settings.home.with_name("elsewhere")})
    settings.home.rename(elsewhere.home)
    found = spark.sql(f"DESCRIBE DETAIL delta.`{Lake(elsewhere).path('embeddings')}`").first()
    assert found is not None
    assert found["clusteringColumns"] == list(EMBEDDINGS.cluster_by)
    assert found["properties"]["delta.enableChangeDataFeed"] == "true"
    more = spark.createDataFrame(vectors("content 3", "another"))
    report = writes.merge(SparkLake(spark, elsewhere), "embeddings", more, source="t", written_at=DAY)
    assert (report.written, report.unchanged) == (1, 1)
