"""Cases of Spark's own: hot keys, large inputs, label rows that change, session settings, results that stay in Spark.

The embedded engine, which knows nothing of shards and shuffles, says what is right.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from moonlake.errors import InputError, PointInTimeError, SchemaMismatch
from moonlake.feast_delta.joins.arrow_engine import EmbeddedEngine
from moonlake.feast_delta.joins.plan import Engine, Pull, ViewJoin
from moonlake.feast_delta.joins.spark_engine import SparkEngine
from moonlake.feast_delta.joins.spark_join import Limits, in_shards, label_side
from moonlake.feast_delta.joins.spark_labels import spark_labels
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource, SavedDatasetDeltaStorage
from moonlake.lake.versions import open_path
from moonlake.settings import Settings

pytestmark = pytest.mark.spark

MOMENT = pa.timestamp("us", tz="UTC")
KEYS, ROWS, LABELS = 12, 900, 400
REGIONS = ["north", "south", None]
NOTHING_FITS = Limits(
    rows_per_shard=500, log_bytes_per_shard=20_000, labels_per_key=30, pointers_broadcast=0, bytes_broadcast=0
)
EARLY = "1970-01-01T00:00:00.000200+00:00"


@pytest.fixture
def engine(spark: SparkSession, settings: Settings) -> SparkEngine:
    return SparkEngine(settings)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random rows in three commits and as many partitions, in a folder whose name is no plain word."""
    path = str(tmp_path_factory.mktemp("spark engine") / "rows a+b")
    rng = np.random.default_rng(1)
    keys = [number if number < KEYS else None for number in rng.integers(0, KEYS + 1, ROWS)]
    rows = pa.table(
        {
            "key": pa.array(keys, pa.int32()),
            "event_timestamp": pa.array(rng.integers(0, 300, ROWS), MOMENT),
            "created_at": pa.array(rng.integers(0, 300, ROWS), MOMENT),
            "row": pa.array(range(ROWS), pa.int64()),
            "name": pa.array([f"{key}-{number}" for key, number in zip(keys, rng.integers(0, 40, ROWS), strict=True)]),
            "kind": pa.array(rng.choice(["click", "buy", "view"], ROWS)),
            "score": pa.array([float("nan") if number % 7 == 0 else number / 9 for number in range(ROWS)]),
            "vector": pa.array([[float(row), 0.5] for row in range(ROWS)], pa.list_(pa.float32())),
            "region": pa.array([REGIONS[number % 3] for number in range(ROWS)]),
        }
    )
    for first in range(0, ROWS, 300):
        write_deltalake(path, rows.slice(first, 300), mode="append", partition_by=["region"])
    return path


def labels_at_random(key: int | None = None) -> pa.Table:
    rng = np.random.default_rng(2)
    keys = [number if number <= KEYS else None for number in rng.integers(0, KEYS + 2, LABELS)]  # the last has no rows
    keys = keys if key is None else [key] * LABELS
    times = pa.array(rng.integers(-5, 320, LABELS), MOMENT)
    return pa.table({"key": pa.array(keys, pa.int64()), "event_timestamp": times, "label": range(LABELS)})


def view(path: str, name: str = "rows", ttl_us: int = 0, **source: Any) -> ViewJoin:
    stated = DeltaSource(name=name, path=path, **source)
    return join_of(stated, [(column, f"{name}_{column}") for column in ("row", "vector", "region")], ttl_us=ttl_us)


def log(path: str, name: str = "log", length: int = 4, **source: Any) -> ViewJoin:
    stated = BehaviorSequenceSource(
        name=name, path=path, packed=False, created_timestamp_column="created_at", event_type_column="kind", **source
    )
    return join_of(stated, [("row", f"{name}_row"), ("event_timestamp", f"{name}_time")], length=length)


def join_of(source: DeltaSource, features: Sequence[tuple[str, str]], **options: int) -> ViewJoin:
    return ViewJoin(
        view=source.name,
        source=source,
        snapshot=open_path(str(source.path)),
        keys=(("key", "key"),),
        features=tuple(features),
        event_column="event_timestamp",
        created_column="created_at",
        **options,
    )


def pulled(engine: Engine[Any], labels: Any, joins: Sequence[ViewJoin], **pull: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        engine.historical(engine.labels(labels, {}), joins, Pull(**pull)).to_arrow().to_pylist()
    )
    return rows


def test_inputs_too_large_for_one_shard_or_for_a_broadcast(spark: SparkSession, settings: Settings, path: str) -> None:
    some = [("region", "==", "north"), ("kind", "in", ["click", "buy"]), ("score", ">", 9.5), ("row", "!=", 801)]
    joins = [
        view(path, ttl_us=20, lag=timedelta(microseconds=3)),
        view(path, "some", where=[*some, ("event_timestamp", "<", EARLY)]),
        log(path, "clicks", event_types=["click"], lag=timedelta(microseconds=9), order=["name"]),
        log(path, "named", length=100, identity="name", where=[("region", "not in", ["south"])]),
    ]
    expected = pulled(EmbeddedEngine(), labels_at_random(), joins)
    assert pulled(SparkEngine(settings, NOTHING_FITS), labels_at_random(), joins) == expected


def test_what_had_been_written_by_then(engine: SparkEngine, path: str) -> None:
    joins = [view(path), log(path), log(path, "named", identity="name")]
    expected = pulled(EmbeddedEngine(), labels_at_random(), joins, known_by="written")
    assert pulled(engine, labels_at_random(), joins, known_by="written") == expected


def test_the_label_rows_of_a_hot_key_are_dealt_to_several_shards(
    spark: SparkSession, settings: Settings, path: str
) -> None:
    labels, joins = labels_at_random(key=3), [view(path), log(path)]
    expected = pulled(EmbeddedEngine(), labels, joins)
    assert pulled(SparkEngine(settings, NOTHING_FITS), labels, joins) == expected

    held = label_side(spark_labels(spark, labels, {}), joins[0])
    features = held.withColumnRenamed("__label", "__position")
    met = in_shards(held, features, labels=LABELS, shards=8, labels_per_key=100)
    rows = met.groupBy(f.spark_partition_id().alias("shard")).agg(f.count("__label"), f.count("__position")).collect()
    assert [(own, all_of_them) for _, own, all_of_them in sorted(rows)] == [(100, LABELS)] * 4


def test_session_time_zones_change_nothing(engine: SparkEngine, spark: SparkSession, path: str) -> None:
    joins = [view(path, where=[("event_timestamp", ">=", "1970-01-01T00:00:00.00001+00:00")]), log(path)]
    labels = labels_at_random()
    expected = pulled(EmbeddedEngine(), labels, joins)
    spark.conf.set("spark.sql.session.timeZone", "Pacific/Auckland")
    try:
        job = engine.historical(engine.labels(labels, {}), joins, Pull())
        found = job.to_arrow()
        assert found.to_pylist() == expected
        assert found.schema.field("event_timestamp").type == MOMENT
        assert found.schema.field("log_time").type.value_type == MOMENT
        assert pa.concat_tables(job.to_batches()) == found
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")


def test_label_rows_of_every_kind(engine: SparkEngine, spark: SparkSession, tmp_path: Path) -> None:
    labels = labels_at_random().slice(0, 20)
    write_deltalake(str(tmp_path / "labels"), labels)
    frame = labels.to_pandas().astype({"key": "Int64"})
    kinds: list[Any] = [
        labels,
        spark.createDataFrame(labels),
        DeltaTable(str(tmp_path / "labels")),
        frame.assign(event_timestamp=pd.to_datetime(frame["event_timestamp"]).dt.tz_convert("Asia/Tokyo")),
        f"SELECT * FROM delta.`{tmp_path / 'labels'}`",
        ds.dataset(labels),
        labels.to_reader(),
    ]
    for kind in kinds:
        rows = engine.labels(kind, {}).rows.orderBy("__label").drop("__label").toArrow()
        assert rows.to_pylist() == labels.to_pylist(), type(kind)
    with pytest.raises(InputError, match="expected a pandas, Arrow or Spark frame, a Delta table or SQL, found int"):
        engine.labels(7, {})


def test_sql_names_lake_tables_at_their_pinned_versions(
    engine: SparkEngine, spark: SparkSession, tmp_path: Path
) -> None:
    place = str(tmp_path / "labels")
    for first in (0, 10):
        write_deltalake(place, labels_at_random().slice(first, 10), mode="append")
    tables = {"users": open_path(place, 0), "queries": open_path(place, -1, empty=labels_at_random().schema)}
    assert engine.labels("SELECT * FROM users WHERE label < 5", tables).count == 5
    assert engine.labels("SELECT users.* FROM users", tables).count == 10
    with pytest.raises(InputError, match="table queries has not been written yet"):
        engine.labels("SELECT * FROM queries", tables)
    with pytest.raises(InputError, match=r"the query cannot be run: .*nowhere"):
        engine.labels("SELECT * FROM nowhere", tables)
    assert not spark.catalog.tableExists("users")
    spark.range(3).createTempView("users")
    with pytest.raises(InputError, match="has a temporary view users"):
        engine.labels("SELECT * FROM users", tables)
    spark.catalog.dropTempView("users")


def test_label_rows_without_usable_times_are_refused(engine: SparkEngine, spark: SparkSession) -> None:
    with pytest.raises(PointInTimeError, match="event_timestamp: timestamps without a time zone"):
        engine.labels("SELECT 1 AS key, TIMESTAMP_NTZ '2026-01-01' AS event_timestamp", {})
    with pytest.raises(PointInTimeError, match="event_timestamp: expected timestamps, found string"):
        engine.labels("SELECT 1 AS key, '2026-01-01' AS event_timestamp", {})
    nulls = labels_at_random().slice(0, 1).to_pylist() * 2
    nulls[1] = {**nulls[1], "event_timestamp": None}
    with pytest.raises(PointInTimeError, match="event_timestamp: 1 of 2 times are null"):
        engine.labels(pa.Table.from_pylist(nulls, schema=labels_at_random().schema), {})


def test_label_rows_that_come_out_differently_each_time_are_held(
    engine: SparkEngine, spark: SparkSession, path: str, tmp_path: Path
) -> None:
    def stamped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.append_column("stamp", pa.array([uuid.uuid4().hex for _ in range(len(batch))]))

    rows = spark.createDataFrame(labels_at_random())
    changing = rows.mapInArrow(stamped, f"{rows._jdf.schema().toDDL()}, stamp string")
    job = engine.historical(engine.labels(changing, {}), [view(path)], Pull())
    found = job.to_arrow()
    job.to_parquet(str(tmp_path / "found"))
    assert ds.dataset(str(tmp_path / "found")).to_table().sort_by("label")["stamp"] == found["stamp"]
    assert [{name: value for name, value in row.items() if name != "stamp"} for row in found.to_pylist()] == pulled(
        EmbeddedEngine(), labels_at_random(), [view(path)]
    )


def test_results_stay_in_spark_and_are_written_in_order(
    engine: SparkEngine, spark: SparkSession, path: str, tmp_path: Path
) -> None:
    labels = spark.createDataFrame(labels_at_random()).repartition(3)
    job = engine.historical(engine.labels(labels, {}), [view(path)], Pull())
    expected = job.to_arrow()
    assert job.versions == {path: 2}
    assert job.to_spark_df().columns == expected.column_names
    assert sorted(row["label"] for row in job.to_spark_df().select("label").collect()) == list(range(LABELS))
    job.to_parquet(str(tmp_path / "parquet"))
    files = sorted((tmp_path / "parquet").glob("*.parquet"))
    assert len(files) == 3
    assert [row for file in files for row in ds.dataset(file).to_table().to_pylist()] == expected.to_pylist()
    job.persist(SavedDatasetDeltaStorage(str(tmp_path / "delta")))
    written = open_path(str(tmp_path / "delta")).dataset.to_table()
    assert written.sort_by("label").to_pylist() == expected.sort_by("label").to_pylist()
    blocks = list(job.to_batches())
    assert len(blocks) == 3
    assert pa.concat_tables(blocks) == expected


def test_latest_rows_and_rows_of_a_window(engine: SparkEngine, path: str) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    start, end = epoch + timedelta(microseconds=40), epoch + timedelta(microseconds=200)
    joins = [
        ViewJoin(
            view="rows",
            source=DeltaSource(name="rows", path=path, where=[("kind", "!=", "view")]),
            snapshot=open_path(path),
            keys=keys,
            features=(("row", "row"), ("vector", "vector")),
            event_column="event_timestamp",
            created_column="created_at",
        )
        for keys in ((("key", "key"),), ())
    ]
    source = BehaviorSequenceSource(name="log", path=path, packed=False, created_timestamp_column="created_at")
    sequences = join_of(source, [("row", "row")], length=4)
    for join in [*joins, sequences, replace(sequences, keys=())]:
        expected = EmbeddedEngine().latest(join, start, end).to_arrow()
        found = engine.latest(join, start, end).to_arrow()
        assert found.column_names == expected.column_names
        assert sorted(map(str, found.to_pylist())) == sorted(map(str, expected.to_pylist()))
    for join in joins:
        expected = EmbeddedEngine().between(join, start, end).to_arrow()
        assert engine.between(join, start, end).to_arrow().cast(expected.schema) == expected


def test_keys_of_a_window_take_the_place_of_label_rows(engine: SparkEngine, path: str) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    window = epoch + timedelta(microseconds=100), epoch + timedelta(microseconds=120)
    joins = [view(path)]
    found = engine.historical(engine.labels_between(joins, *window), joins, Pull()).to_arrow()
    embedded = EmbeddedEngine()
    expected = embedded.historical(embedded.labels_between(joins, *window), joins, Pull()).to_arrow()
    assert found.sort_by("key").to_pylist() == expected.sort_by("key").to_pylist()


def test_what_spark_does_not_do_is_said(engine: SparkEngine, path: str, tmp_path: Path) -> None:
    job = engine.historical(engine.labels(labels_at_random(), {}), [log(path)], Pull(sequences="pointers"))
    with pytest.raises(InputError, match="pull sequences as pointers with engine: embedded"):
        job.to_arrow()
    on_demand = Pull(on_demand_feature_views=[SimpleNamespace(name="ratio")])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"on-demand feature views \['ratio'\] are computed by Python"):
        engine.historical(engine.labels(labels_at_random(), {}), [], on_demand).to_delta(str(tmp_path / "out"))


def test_what_is_wrong_with_rows_is_said_by_our_own_errors(engine: SparkEngine, tmp_path: Path) -> None:
    rows = labels_at_random(key=3).append_column("created_at", pa.array([None, *range(1, LABELS)], MOMENT))
    write_deltalake(str(tmp_path / "rows"), rows)
    source = DeltaSource(name="rows", path=str(tmp_path / "rows"))
    with pytest.raises(PointInTimeError, match="column created_at: 1 of 400 times are null"):
        pulled(engine, labels_at_random(key=3), [join_of(source, [("label", "seen")])])
    types = [("key", pa.int64()), ("event_timestamp", MOMENT), ("times_us", pa.list_(pa.int64()))]
    uneven = [{"key": 3, "event_timestamp": datetime(2026, 1, 1, tzinfo=UTC), "times_us": [1, 2], "items": [5]}]
    schema = pa.schema([*types, ("items", pa.list_(pa.int64()))])
    write_deltalake(str(tmp_path / "log"), pa.Table.from_pylist(uneven, schema=schema))
    packed = join_of(BehaviorSequenceSource(name="log", path=str(tmp_path / "log")), [("items", "items")], length=2)
    with pytest.raises(SchemaMismatch, match="lists of items and times_us differ in length"):
        pulled(engine, labels_at_random(key=3), [packed])
