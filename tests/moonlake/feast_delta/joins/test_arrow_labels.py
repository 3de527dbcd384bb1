"""Label rows of every kind give the same features; without any, the keys that the views have give the rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.types import Int64, String

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.sources import DeltaSource
from moonlake.settings import Settings

MOMENT = pa.timestamp("us", tz="UTC")
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)


def at(day: int) -> datetime:
    return datetime(2026, 1, day, tzinfo=UTC)


def rows(key: str, values: list[tuple[str, int, int]]) -> pa.Table:
    """(key, value, day) rows."""
    keys, numbers, days = zip(*values, strict=True)
    return pa.table(
        {key: keys, "value": pa.array(numbers), "event_timestamp": pa.array([at(day) for day in days], MOMENT)}
    )


def view(name: str, entity: Entity, path: str, **options: Any) -> FeatureView:
    source = DeltaSource(name=f"{name}_source", path=path, created_timestamp_column="", **options)
    source.field_mapping["value"] = name
    key = Field(name=entity.join_key, dtype=String)
    return FeatureView(
        name=f"{name}_view", entities=[entity], source=source, schema=[key, Field(name=name, dtype=Int64)]
    )


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Views `size` of shops and `price` of items; items have no row on day 1 and 2."""
    sizes, prices = str(tmp_path / "sizes"), str(tmp_path / "prices")
    write_deltalake(sizes, rows("shop_id", [("s1", 1, 1), ("s2", 2, 3), ("s1", 3, 5)]))
    write_deltalake(prices, rows("item_id", [("i1", 10, 3), ("i2", 20, 9)]))
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            offline_store={
                "type": "moonlake.feast_delta.offline_store.DeltaOfflineStore",
                "lake": Settings(home=tmp_path).lake,
            },
            entity_key_serialization_version=3,
            repo_path=tmp_path,
        )
    )
    store.apply([shop, item, view("size", shop, sizes), view("price", item, prices)])
    return store


REFS = ["size_view:size", "price_view:price"]
LABELS = pa.table(
    {
        "shop_id": ["s1", "s2", "s1"],
        "item_id": ["i1", "i2", "i2"],
        "event_timestamp": pa.array([at(4), at(4), at(10)], MOMENT),
    }
)


def features(store: FeatureStore, labels: Any) -> list[tuple[int | None, int | None]]:
    found = store.get_historical_features(labels, REFS).to_arrow()
    return list(zip(found["size"].to_pylist(), found["price"].to_pylist(), strict=True))


def test_every_kind_of_label_rows_gives_the_same_features(store: FeatureStore, tmp_path: Path) -> None:
    path = str(tmp_path / "labels")
    write_deltalake(path, LABELS)
    kinds: list[Any] = [
        LABELS,
        LABELS.to_pandas(),
        LABELS.to_pandas().assign(event_timestamp=lambda frame: frame["event_timestamp"].dt.tz_localize(None)),
        LABELS.to_reader(),
        ds.dataset(LABELS),
        DeltaTable(path),
        f"SELECT shop_id, item_id, event_timestamp FROM delta.`{path}`",
    ]
    for labels in kinds:
        assert features(store, labels) == [(1, 10), (2, None), (3, 20)], type(labels)


def test_sql_may_name_several_tables(store: FeatureStore, tmp_path: Path) -> None:
    orders, shops = str(tmp_path / "orders"), str(tmp_path / "shops")
    write_deltalake(orders, LABELS.drop_columns("shop_id"))
    write_deltalake(shops, pa.table({"item": ["i1", "i2"], "shop_id": ["s1", "s2"]}))
    sql = f"SELECT o.*, s.shop_id FROM delta.`{orders}` o JOIN delta.`{shops}` s ON o.item_id = s.item ORDER BY 1, 2"
    assert features(store, sql) == [(1, 10), (2, None), (2, 20)]


def test_sql_reads_lake_tables_by_name(store: FeatureStore, tmp_path: Path) -> None:
    users = rows("user_id", [("u1", 1, 4)]).append_column("segment", pa.array(["new"]))
    write_deltalake(f"{Settings(home=tmp_path).lake}/users", users)
    sql = "SELECT 's1' AS shop_id, 'i1' AS item_id, event_timestamp FROM users"
    assert features(store, sql) == [(1, 10)]
    with pytest.raises(InputError, match="table queries has not been written yet"):
        features(store, "SELECT * FROM queries")


def test_sql_that_cannot_be_run_is_refused_with_the_reason(store: FeatureStore) -> None:
    with pytest.raises(InputError, match=r"the query cannot be run: .*nowhere"):
        features(store, "SELECT * FROM nowhere")
    with pytest.raises(NotFound, match="no Delta table at /no/such"):
        features(store, "SELECT * FROM delta.`/no/such`")


def test_what_is_no_label_rows_is_refused(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="expected a pandas, Arrow or Spark frame, a Delta table or SQL, found list"):
        features(store, [{"shop_id": "s1"}])


def test_without_label_rows_each_key_of_a_view_in_the_window_has_one(store: FeatureStore) -> None:
    job = store.get_historical_features(None, REFS, start_date=at(2), end_date=at(6))
    found = job.to_df().sort_values(["shop_id", "item_id"]).astype(object)
    found = found.where(pd.notna(found), None)
    assert found[["shop_id", "item_id", "size", "price"]].to_numpy().tolist() == [
        ["s1", None, 3, None],
        ["s2", None, 2, None],
        [None, "i1", None, 10],
    ]
    assert set(found["event_timestamp"]) == {pd.Timestamp(at(6))}


def test_a_source_is_pinned_by_version_or_moment(store: FeatureStore, tmp_path: Path) -> None:
    path = str(tmp_path / "sizes")
    before = DeltaTable(path).history()[0]["timestamp"]
    write_deltalake(path, rows("shop_id", [("s1", 7, 6)]), mode="append")
    moment = datetime.fromtimestamp(before / 1000, UTC)
    label = pa.table({"shop_id": ["s1"], "event_timestamp": pa.array([at(20)], MOMENT)})
    for pin, expected in (({}, 7), ({"version": 0}, 3), ({"timestamp": moment}, 3)):
        store.apply([shop, view("size", shop, path, **pin)])
        assert store.get_historical_features(label, ["size_view:size"]).to_arrow()["size"].to_pylist() == [expected]


def test_a_pin_is_either_a_version_or_a_moment_with_its_zone() -> None:
    with pytest.raises(InputError, match="not both"):
        DeltaSource(name="s", path="/t", version=1, timestamp=at(1))
    with pytest.raises(InputError, match="has no time zone"):
        DeltaSource(name="s", path="/t", timestamp=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(InputError, match=r"unknown operators \['like'\]"):
        DeltaSource(name="s", path="/t", where=[("a", "like", "b")])


def test_lag_and_ttl_hold_without_label_rows_too(store: FeatureStore, tmp_path: Path) -> None:
    store.apply([shop, view("size", shop, str(tmp_path / "sizes"), lag=timedelta(days=2))])
    found = store.get_historical_features(None, ["size_view:size"], start_date=at(2), end_date=at(6)).to_df()
    assert dict(zip(found["shop_id"], found["size"], strict=True)) == {"s1": 1, "s2": 2}
