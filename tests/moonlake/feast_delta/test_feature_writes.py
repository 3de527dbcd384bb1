"""Feast's writes reach the Delta tables: pushed rows, rows of the lake, logs of served features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, RepoConfig, ValueType
from feast.data_source import PushMode
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.types import Array, Float32, Int64, String

from moonlake.errors import ContractError, InputError, SchemaMismatch
from moonlake.feast_delta.feature_writes import DeltaLoggingDestination, append_features
from moonlake.feast_delta.sources import DeltaSource
from moonlake.lake.lake import Lake
from moonlake.lake.versions import open_path
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]

MOMENT = pa.timestamp("us", tz="UTC")
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A Delta table of shops with one row."""
    rows = {
        "shop_id": pa.array(["s"]),
        "sales": pa.array([1], pa.int64()),
        "vector": pa.array([[0.5, 0.25]], pa.list_(pa.float32())),
        "event_timestamp": pa.array([at(1)], MOMENT),
        "created_at": pa.array([at(1)], MOMENT),
    }
    write_deltalake(str(tmp_path / "shops"), pa.table(rows), configuration={"delta.enableChangeDataFeed": "true"})
    return str(tmp_path / "shops")


def view_of(source: DeltaSource | PushSource) -> FeatureView:
    schema = [Field(name="turnover", dtype=Int64), Field(name="vector", dtype=Array(Float32))]
    return FeatureView(
        name="shops", entities=[shop], source=source, schema=[Field(name="shop_id", dtype=String), *schema]
    )


def shops(path: str) -> DeltaSource:
    return DeltaSource(name="shops_source", path=path, field_mapping={"sales": "turnover"})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
        offline_store={
            "type": "moonlake.feast_delta.offline_store.DeltaOfflineStore",
            "lake": str(tmp_path / "home" / "lake"),
        },
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )
    return FeatureStore(config=config)


def frame(**stated: Any) -> pd.DataFrame:
    row = {"shop_id": "t", "sales": 7, "vector": [0.5], "event_timestamp": at(2), "created_at": at(3), **stated}
    return pd.DataFrame([row])


def rows_of(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_path(path).dataset.to_table().sort_by("shop_id").to_pylist()
    return found


def test_a_frame_written_through_feast_is_read_back_through_feast(store: FeatureStore, path: str) -> None:
    store.apply([shop, view_of(shops(path))])
    store.write_to_offline_store("shops", frame()[["created_at", "vector", "sales", "event_timestamp", "shop_id"]])
    assert rows_of(path)[1] == frame().to_dict("records")[0]
    labels = pa.table({"shop_id": ["s", "t"], "event_timestamp": pa.array([at(4), at(4)], MOMENT)})
    found = store.get_historical_features(labels, ["shops:turnover", "shops:vector"]).to_arrow()
    assert found["turnover"].to_pylist() == [1, 7]
    assert found["vector"].to_pylist() == [[0.5, 0.25], [0.5]]


def test_a_push_reaches_the_table_behind_the_push_source(store: FeatureStore, path: str) -> None:
    source = PushSource(name="shops_push", batch_source=shops(path))
    store.apply([shop, view_of(source)])
    pushed = pd.concat([frame(), frame(shop_id="v")]).iloc[[1, 0]]  # its index is no column
    store.push("shops_push", pushed, to=PushMode.OFFLINE)
    assert [row["shop_id"] for row in rows_of(path)] == ["s", "t", "v"]
    assert DeltaTable(path).version() == 1


def test_the_created_column_is_stamped_where_it_is_missing_or_null(store: FeatureStore, path: str) -> None:
    before = datetime.now(UTC)
    rows = pa.Table.from_pandas(frame())
    appended: list[int] = []
    append_features(store.config, view_of(shops(path)), rows.drop_columns("created_at"), appended.append)
    nulls = rows.set_column(4, "created_at", pa.array([None], MOMENT))
    append_features(store.config, view_of(shops(path)), nulls)
    append_features(store.config, view_of(shops(path)), rows)
    stamped = sorted(row["created_at"] for row in rows_of(path) if row["shop_id"] == "t")
    assert stamped[0] == at(3)
    assert all(before <= moment <= datetime.now(UTC) for moment in stamped[1:])
    assert appended == [1]


def test_naive_times_are_utc_and_narrower_numbers_are_taken(store: FeatureStore, path: str) -> None:
    naive = frame(event_timestamp=datetime(2026, 1, 2)).astype({"sales": "int32"})  # noqa: DTZ001
    append_features(store.config, view_of(shops(path)), pa.Table.from_pandas(naive))
    assert rows_of(path)[1]["event_timestamp"] == at(2)
    assert rows_of(path)[1]["sales"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns("vector"), r"columns \['vector'\] are missing; found shop_id"),
        (lambda rows: rows.append_column("more", pa.array([1])), r"columns \['more'\] are unknown; it has"),
        (lambda rows: rows.set_column(1, "sales", pa.array(["7"])), "column sales: expected int64, found string"),
        (lambda rows: rows.set_column(1, "sales", pa.array([7.5])), "column sales: double to int64: .*truncated"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    store: FeatureStore, path: str, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(SchemaMismatch, match=message):
        append_features(store.config, view_of(shops(path)), change(pa.Table.from_pandas(frame())))
    assert DeltaTable(path).version() == 0


def user_view(table: str, feature: str) -> FeatureView:
    return FeatureView(
        name=table,
        entities=[user],
        source=DeltaSource(name=table, table=table),
        schema=[Field(name="user_id", dtype=String), Field(name=feature, dtype=String)],
    )


def test_an_unclustered_table_of_the_lake_is_written_by_its_rules(store: FeatureStore, settings: Settings) -> None:
    rows = pa.table(
        {
            "user_id": ["u", "v"],
            "segment": pa.array(["loyal", None], pa.string()),
            "source": ["crm", "crm"],
            "event_timestamp": pa.array([at(1), at(1)], MOMENT),
        }
    )
    for _ in range(2):  # what is there already is left out
        append_features(store.config, user_view("users", "segment"), rows)
    found = Lake(settings).read("users")
    assert found.select(rows.column_names).sort_by("user_id") == rows.cast(found.select(rows.column_names).schema)
    assert Lake(settings).version("users") == 0
    with pytest.raises(ContractError, match="1 of 2 rows break rules"):
        append_features(store.config, user_view("users", "segment"), rows.set_column(0, "user_id", pa.array(["", "w"])))


def test_a_clustered_table_of_the_lake_is_refused_with_the_name_of_its_writer(store: FeatureStore) -> None:
    with pytest.raises(ContractError, match=r"clustered by user_id.* compute_stats, or to moonlake\.spark\.writes"):
        append_features(store.config, user_view("user_stats", "ctr_7d"), pa.table({"user_id": ["u"]}))


@pytest.fixture
def service(store: FeatureStore, path: str, tmp_path: Path) -> FeatureService:
    view = view_of(shops(path))
    destination = DeltaLoggingDestination(str(tmp_path / "log"))
    found = FeatureService(name="shop_v1", features=[view], logging_config=LoggingConfig(destination, sample_rate=0.5))
    store.apply([shop, view, found])
    return store.get_feature_service("shop_v1")


def logs(store: FeatureStore, service: FeatureService, days: Sequence[int]) -> pa.Table:
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    rows = [
        {
            "shop_id": f"s{day}",
            "shops__turnover": day,
            "shops__turnover__timestamp": at(1),
            "shops__turnover__status": 1,
            "shops__vector": None,
            "shops__vector__status": 3,
            "__log_timestamp": at(day, 5),
            "__log_date": date(2026, 1, day),
            "__request_id": f"r{day}",
        }
        for day in days
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def test_a_logging_destination_survives_the_registry(service: FeatureService, tmp_path: Path) -> None:
    logging = service.logging_config
    assert logging is not None
    assert logging.destination == DeltaLoggingDestination(str(tmp_path / "log"), partition_by=["__log_date"])
    assert logging.sample_rate == 0.5
    bare = DeltaLoggingDestination("elsewhere", partition_by=[])
    assert DeltaLoggingDestination.from_proto(bare.to_proto()) == bare


def test_logs_from_arrow_and_from_a_folder_of_parquet_are_read_back_by_time(
    store: FeatureStore, service: FeatureService, tmp_path: Path
) -> None:
    store.write_logged_features(logs(store, service, [1, 2]), service)
    folder = tmp_path / "parquet"
    folder.mkdir()
    for day in (3, 4):
        pq.write_table(logs(store, service, [day]), folder / f"{day}.parquet")
    store.write_logged_features(folder, service)
    assert DeltaTable(str(tmp_path / "log")).metadata().partition_columns == ["__log_date"]
    provider = store._get_provider()
    read = provider.retrieve_feature_service_logs(service, at(2), at(4), store.config, store.registry).to_arrow()
    rows = sorted(read.to_pylist(), key=lambda row: row["shop_id"])
    assert [row["shops__turnover"] for row in rows] == [2, 3]
    assert rows[0]["__log_timestamp"] == at(2, 5)
    assert rows[0]["shops__turnover__timestamp"] == at(1)
    assert rows[0]["shops__vector__status"] == 3
    assert rows[0]["shops__vector"] is None


def test_a_feature_that_the_service_gains_is_a_new_column_of_its_log(
    store: FeatureStore, service: FeatureService, tmp_path: Path
) -> None:
    destination = DeltaLoggingDestination(str(tmp_path / "log"))
    table = logs(store, service, [1])
    fewer = table.drop_columns("shops__vector")
    destination.append(fewer, fewer.schema)
    destination.append(table, table.schema)
    assert set(table.column_names) == set(open_path(destination.path).dataset.schema.names)
    with pytest.raises(SchemaMismatch, match=r"log of served features .* \['shops__vector'\] are missing"):
        destination.append(fewer, table.schema)


def test_another_kind_of_destination_is_refused(store: FeatureStore, path: str, tmp_path: Path) -> None:
    view = view_of(shops(path))
    elsewhere = LoggingConfig(FileLoggingDestination(path=str(tmp_path / "files")))
    service = FeatureService(name="shop_v1", features=[view], logging_config=elsewhere)
    store.apply([shop, view, service])
    with pytest.raises(InputError, match="found FileLoggingDestination"):
        store.write_logged_features(logs(store, service, [1]), service)
