"""Tables as Spark writes them (clustered, rewritten by merges and compaction) join as those that delta-rs wrote."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from moonlake.feast_delta.store import apply
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import spark_schema
from spark_jobs import pack_behavior_sequences

pytestmark = pytest.mark.spark

DAY = datetime(2026, 1, 30, tzinfo=UTC)
WRITTEN = datetime(2026, 3, 1, tzinfo=UTC)


def put(
    spark: SparkSession, settings: Settings, name: str, rows: Sequence[dict[str, Any]], written_at: datetime
) -> None:
    table = TABLES[name]
    frame = spark.createDataFrame(
        [tuple(row.get(column) for column in table.facts) for row in rows], spark_schema(table, table.facts)
    )
    writes.append(SparkLake(spark, settings), name, frame, source="test", written_at=written_at)


def product(price: int, day: int) -> dict[str, Any]:
    return {
        "product_id": "p",
        "title": "chair",
        "attributes": {},
        "price_cents": price,
        "image_ids": [],
        "listed_at": DAY,
        "deleted": False,
        "content_id": "0" * 32,
        "source": "test",
        "event_timestamp": DAY + timedelta(days=day),
    }


def action(number: int) -> dict[str, Any]:
    return {
        "behavior_id": f"b{number}",
        "user_id": "u",
        "action": "click",
        "product_id": f"p{number}",
        "source": "test",
        "event_timestamp": DAY + timedelta(days=number, microseconds=number),
    }


def test_features_of_clustered_and_rewritten_tables(spark: SparkSession, settings: Settings) -> None:
    put(spark, settings, "products", [product(100, 0), product(200, 2)], WRITTEN)
    put(spark, settings, "products", [product(250, 2)], WRITTEN + timedelta(days=1))  # restated
    spark.sql(f"OPTIMIZE delta.`{Lake(settings).path('products')}`")
    put(spark, settings, "behaviors", [action(number) for number in range(4)], WRITTEN)
    pack_behavior_sequences.run(SparkLake(spark, settings), written_at=WRITTEN)
    put(spark, settings, "behaviors", [action(number) for number in range(4, 6)], WRITTEN)
    pack_behavior_sequences.run(SparkLake(spark, settings), written_at=WRITTEN)

    store = apply(settings)
    days = [1, 2, 4]
    times = pa.array([DAY + timedelta(days=day, microseconds=day) for day in days], pa.timestamp("us", "UTC"))
    labels = pa.table({"product_id": ["p"] * 3, "user_id": ["u"] * 3, "event_timestamp": times})
    features = ["product_profile_v1:price_cents", "user_behavior_sequence_v1:behavior_product_ids"]
    rows = store.get_historical_features(labels, features).to_arrow()
    assert rows["price_cents"].to_pylist() == [100, 250, 250]
    assert rows["behavior_product_ids"].to_pylist() == [[f"p{earlier}" for earlier in range(day)] for day in days]
