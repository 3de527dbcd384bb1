"""The rules of DESIGN.md section 4 through Feast's own API, in a Feast project that knows nothing of the lake."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, RepoConfig, RequestSource, ValueType
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String

from moonlake.errors import InputError, NotFound, PointInTimeError
from moonlake.feast_delta.offline_store import DeltaOfflineStore
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource, SavedDatasetDeltaStorage

MOMENT = pa.timestamp("us", tz="UTC")
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, tzinfo=UTC)


@pytest.fixture(params=["embedded", pytest.param("spark", marks=pytest.mark.spark)])
def config(request: pytest.FixtureRequest) -> Callable[..., RepoConfig]:
    """A function that gives the configuration of a project in a folder, for each engine in turn."""
    if request.param == "spark":
        request.getfixturevalue("spark")

    def make(folder: Path, **offline: Any) -> RepoConfig:
        store = "moonlake.feast_delta.offline_store.DeltaOfflineStore"
        return RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": store, "engine": request.param, **offline},
            batch_engine={"type": "moonlake.feast_delta.materialization.DeltaChangeEngine"},
            entity_key_serialization_version=3,
            repo_path=folder,
        )

    return make


@pytest.fixture
def store(tmp_path: Path, config: Callable[..., RepoConfig]) -> FeatureStore:
    return FeatureStore(config=config(tmp_path))


@pytest.fixture
def prices(tmp_path: Path) -> Callable[[Sequence[tuple[Any, ...]]], str]:
    """A function that appends (shop, item, price, event day, created day) rows in one commit, and gives the path."""
    path = str(tmp_path / "prices")

    def write(rows: Sequence[tuple[Any, ...]]) -> str:
        shops, items, values, events, created = zip(*rows, strict=True)
        table = {
            "shop_id": pa.array(shops, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "price": pa.array(values, pa.int64()),
            "event_timestamp": pa.array([at(day) for day in events], MOMENT),
            "created_at": pa.array([at(day) for day in created], MOMENT),
        }
        write_deltalake(path, pa.table(table), mode="append")
        return path

    return write


def price_view(path: str, *, ttl: timedelta = timedelta(0), **source: Any) -> FeatureView:
    return FeatureView(
        name="prices",
        entities=[shop, item],
        source=DeltaSource(name="prices_source", path=path, **source),
        schema=[
            Field(name="shop_id", dtype=String),
            Field(name="item_id", dtype=String),
            Field(name="price", dtype=Int64),
        ],
        ttl=ttl,
    )


def label_table(rows: Sequence[tuple[Any, Any, datetime]]) -> pa.Table:
    shops, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"shop_id": pa.array(shops, pa.string()), "item_id": pa.array(items, pa.string())}
    return pa.table({**columns, "event_timestamp": pa.array(times, MOMENT)})


def joined(store: FeatureStore, labels: Any, **options: Any) -> list[Any]:
    return store.get_historical_features(labels, ["prices:price"], **options).to_arrow()["price"].to_pylist()


def test_every_label_row_comes_back_once_in_its_place(store: FeatureStore, prices: Callable[..., str]) -> None:
    store.apply([shop, item, price_view(prices([("s", "i", 10, 1, 1), ("s", "i", 20, 3, 3), ("s", "i", 30, 3, 3)]))])
    labels = label_table(
        [("s", "i", at(9)), ("t", "i", at(9)), ("s", "i", at(2)), ("s", "i", at(9)), (None, "i", at(9))]
    )
    result = store.get_historical_features(labels, ["prices:price"]).to_arrow()
    assert result.select(labels.column_names) == labels
    assert result["price"].to_pylist() == [30, None, 10, 30, None]


def test_composite_keys_do_not_mix(store: FeatureStore, prices: Callable[..., str]) -> None:
    store.apply([shop, item, price_view(prices([("1", "23", 123, 1, 1), ("12", "3", 999, 1, 1)]))])
    labels = label_table([("1", "23", at(2)), ("12", "3", at(2)), ("123", "", at(2))])
    assert joined(store, labels) == [123, 999, None]


def test_the_later_commit_wins_what_times_leave_open(store: FeatureStore, prices: Callable[..., str]) -> None:
    for price in (10, 30, 20):
        path = prices([("s", "i", price, 1, 2)])
    store.apply([shop, item, price_view(path)])
    assert joined(store, label_table([("s", "i", at(5))])) == [20]


def test_a_view_with_ttl_forgets_and_keeps_the_exact_edge(store: FeatureStore, prices: Callable[..., str]) -> None:
    path = prices([("s", "i", 10, 1, 1)])
    store.apply([shop, item, price_view(path, ttl=timedelta(days=2))])
    edge = at(3)
    labels = label_table([("s", "i", edge), ("s", "i", edge + timedelta(microseconds=1))])
    assert joined(store, labels) == [10, None]


def test_a_lag_of_the_source_hides_what_was_not_yet_served(store: FeatureStore, prices: Callable[..., str]) -> None:
    path = prices([("s", "i", 10, 1, 1), ("s", "i", 20, 3, 3)])
    store.apply([shop, item, price_view(path, lag=timedelta(days=1))])
    assert joined(store, label_table([("s", "i", at(3)), ("s", "i", at(4))])) == [10, 20]


def test_what_was_written_later_is_hidden_when_that_is_asked_for(
    store: FeatureStore, prices: Callable[..., str]
) -> None:
    path = prices([("s", "i", 10, 1, 1), ("s", "i", 11, 1, 8)])
    store.apply([shop, item, price_view(path)])
    labels = label_table([("s", "i", at(5)), ("s", "i", at(8))])
    assert joined(store, labels) == [11, 11]
    assert joined(store, labels, filter_by_created_timestamp=True) == [10, 11]


def test_a_source_and_a_store_can_be_pinned_to_a_version(
    store: FeatureStore, prices: Callable[..., str], config: Callable[..., RepoConfig], tmp_path: Path
) -> None:
    labels = label_table([("s", "i", at(5))])
    path = prices([("s", "i", 10, 1, 1)])
    prices([("s", "i", 20, 2, 2)])
    store.apply([shop, item, price_view(path)])
    assert joined(store, labels) == [20]
    assert joined(FeatureStore(config=config(tmp_path, versions={path: 0})), labels) == [10]
    store.apply([price_view(path, version=0)])
    assert joined(store, labels) == [10]


def test_a_job_reads_the_version_that_was_there_when_it_was_made(
    store: FeatureStore, prices: Callable[..., str]
) -> None:
    path = prices([("s", "i", 10, 1, 1)])
    store.apply([shop, item, price_view(path)])
    job = store.get_historical_features(label_table([("s", "i", at(5))]), ["prices:price"])
    prices([("s", "i", 20, 2, 2)])
    assert job.to_arrow()["price"].to_pylist() == [10]
    assert job.versions == {path: 0}  # type: ignore[attr-defined]


def test_pandas_label_rows_are_utc_when_naive_and_may_name_their_time_otherwise(
    store: FeatureStore, prices: Callable[..., str]
) -> None:
    store.apply([shop, item, price_view(prices([("s", "i", 10, 1, 1), ("s", "i", 20, 3, 3)]))])
    frame = pd.DataFrame(
        {"shop_id": ["s", "s"], "item_id": ["i", "i"], "seen": pd.to_datetime(["2026-01-02", "2026-01-03"])}
    )
    assert joined(store, frame) == [10, 20]
    tokyo = frame.assign(seen=frame["seen"].dt.tz_localize("Asia/Tokyo"))  # nine hours earlier
    assert joined(store, tokyo) == [10, 10]


def test_naive_times_of_an_arrow_table_are_refused(store: FeatureStore, prices: Callable[..., str]) -> None:
    store.apply([shop, item, price_view(prices([("s", "i", 10, 1, 1)]))])
    labels = label_table([("s", "i", at(5))])
    naive = labels.set_column(2, "event_timestamp", labels["event_timestamp"].cast(pa.timestamp("us")))
    with pytest.raises(PointInTimeError, match="event_timestamp: timestamps without a time zone"):
        joined(store, naive)


def test_no_label_rows_give_no_rows_and_no_feature_rows_give_nulls(
    store: FeatureStore, prices: Callable[..., str]
) -> None:
    path = prices([("s", "i", 10, 9, 9)])
    store.apply([shop, item, price_view(path)])
    assert joined(store, label_table([])) == []
    assert joined(store, label_table([("s", "i", at(5))])) == [None]


def test_the_same_labels_give_the_same_features_whatever_keys_are_pushed_down(
    store: FeatureStore, prices: Callable[..., str]
) -> None:
    many = 1_500  # more than are filtered while reading
    store.apply([shop, item, price_view(prices([("s", f"i{n}", n, 1 + n % 7, 9) for n in range(many)]))])
    labels = label_table([("s", f"i{n}", at(4)) for n in range(many)])
    expected = [n if 1 + n % 7 <= 4 else None for n in range(many)]
    assert joined(store, labels) == expected
    assert joined(store, labels.slice(3, 20)) == expected[3:23]


def test_full_names_aliases_and_field_mappings(store: FeatureStore, prices: Callable[..., str]) -> None:
    path = prices([("s", "i", 10, 1, 1), ("s", "j", 40, 1, 1)])
    view = FeatureView(
        name="prices",
        entities=[shop, item],
        source=DeltaSource(name="prices_source", path=path, field_mapping={"price": "cents"}),
        schema=[
            Field(name="shop_id", dtype=String),
            Field(name="item_id", dtype=String),
            Field(name="cents", dtype=Int64),
        ],
    )
    store.apply([shop, item, view])
    labels = label_table([("s", "i", at(5))]).append_column("other_id", pa.array(["j"]))
    plain = store.get_historical_features(labels, ["prices:cents"], full_feature_names=True).to_arrow()
    assert plain["prices__cents"].to_pylist() == [10]

    twin = view.with_name("other").with_join_key_map({"item_id": "other_id"})
    service = FeatureService(name="both", features=[view.with_name("own"), twin])
    store.apply([service])
    both = store.get_historical_features(labels, service, full_feature_names=True).to_arrow()
    assert (both["own__cents"].to_pylist(), both["other__cents"].to_pylist()) == ([10], [40])


def test_a_view_without_entities_has_one_row_for_all(store: FeatureStore, prices: Callable[..., str]) -> None:
    path = prices([("s", "i", 10, 1, 1), ("t", "j", 20, 3, 3)])
    view = FeatureView(
        name="prices",
        source=DeltaSource(name="prices_source", path=path),
        schema=[Field(name="price", dtype=Int64)],
    )
    store.apply([view])
    assert joined(store, label_table([("s", "i", at(2)), ("s", "i", at(3))])) == [10, 20]
    store.materialize(datetime(1970, 1, 1, tzinfo=UTC), at(2))
    assert store.get_online_features(["prices:price"], [{DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL}]).to_dict()["price"] == [10]
    assert view.batch_source is not None
    pulled = DeltaOfflineStore.pull_all_from_table_or_query(
        store.config, view.batch_source, [], ["price"], "event_timestamp"
    )  # as Feast's own batch engine does
    assert pulled.to_arrow()[DUMMY_ENTITY_ID].to_pylist() == [DUMMY_ENTITY_VAL, DUMMY_ENTITY_VAL]


def test_an_on_demand_view_sees_features_and_request_data(store: FeatureStore, prices: Callable[..., str]) -> None:
    view = price_view(prices([("s", "i", 10, 1, 1)]))
    request = RequestSource(name="request", schema=[Field(name="paid", dtype=Int64)])

    @on_demand_feature_view(sources=[view, request], schema=[Field(name="rate", dtype=Float64)])
    def discount(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"rate": inputs["paid"] / inputs["price"]})

    store.apply([shop, item, view, discount])
    labels = label_table([("s", "i", at(5))]).append_column("paid", pa.array([5]))
    result = store.get_historical_features(labels, ["prices:price", "discount:rate"]).to_arrow()
    assert (result["price"].to_pylist(), result["rate"].to_pylist()) == ([10], [0.5])


def test_a_saved_dataset_is_written_once_and_read_back(
    store: FeatureStore, prices: Callable[..., str], tmp_path: Path
) -> None:
    store.apply([shop, item, price_view(prices([("s", "i", 10, 1, 1)]))])
    job = store.get_historical_features(label_table([("s", "i", at(5)), ("s", "j", at(6))]), ["prices:price"])
    storage = SavedDatasetDeltaStorage(str(tmp_path / "saved"))
    store.create_saved_dataset(job, "kept", storage)
    kept = store.get_saved_dataset("kept").to_df().sort_values("item_id")
    assert kept["price"].tolist()[0] == 10
    assert kept["item_id"].tolist() == ["i", "j"]

    shutil.rmtree(storage.path)
    gone = store.get_saved_dataset("kept")  # Feast asks for one, with a profile of it at hand, that it will not read
    with pytest.raises(NotFound, match=f"no Delta table at {storage.path}"):
        gone.to_df()


def test_mistakes_are_named(
    store: FeatureStore, prices: Callable[..., str], config: Callable[..., RepoConfig], tmp_path: Path
) -> None:
    path = prices([("s", "i", 10, 1, 1)])
    store.apply([shop, item, price_view(path)])
    labels = label_table([("s", "i", at(5))])
    with pytest.raises(InputError, match=r"feature view prices: label rows lack its join keys \['item_id'\]"):
        joined(store, labels.drop_columns("item_id"))
    with pytest.raises(InputError, match=r"columns named as features: \['price'\]"):
        joined(store, labels.append_column("price", pa.array([1])))
    with pytest.raises(InputError, match="name the event time event_timestamp"):
        joined(store, "SELECT 1")
    with pytest.raises(InputError, match="name the event time event_timestamp"):
        joined(store, labels.drop_columns("event_timestamp"))
    with pytest.raises(PointInTimeError, match="key item_id: label rows hold int64, feature rows string"):
        joined(store, labels.set_column(1, "item_id", pa.array([1])))
    with pytest.raises(NotFound, match="has no version 7"):
        joined(FeatureStore(config=config(tmp_path, versions={path: 7})), labels)


# Sequences

USERS = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


def us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Packed rows, months not in order; u acted on days 1, 2, 2 of January and on 1 February, v once."""
    february = datetime(2026, 2, 1, tzinfo=UTC)
    rows: list[dict[str, Any]] = [
        {"user_id": "u", "month": "2026-02", "times_us": [us(february)], "words": ["d"]},
        {"user_id": "v", "month": "2026-01", "times_us": [us(at(9))], "words": [None]},
        {"user_id": "u", "month": "2026-01", "times_us": [us(at(1)), us(at(2)), us(at(2))], "words": ["a", "b", "c"]},
    ]
    for row in rows:
        row["event_timestamp"] = datetime.fromtimestamp(row["times_us"][-1] / 1e6, UTC)
    types = {"user_id": pa.string(), "month": pa.string(), "times_us": pa.list_(pa.int64())}
    schema = pa.schema([*types.items(), ("words", pa.list_(pa.string())), ("event_timestamp", MOMENT)])
    write_deltalake(str(tmp_path / "log"), pa.Table.from_pylist(rows, schema=schema))
    return str(tmp_path / "log")


def sequence_view(path: str, length: int = 3) -> FeatureView:
    return FeatureView(
        name="words",
        entities=[USERS],
        source=BehaviorSequenceSource(name="words_source", path=path, length=length),
        schema=[Field(name="user_id", dtype=String), Field(name="words", dtype=Array(String))],
    )


def sequences(store: FeatureStore, rows: Sequence[tuple[Any, datetime]]) -> list[Any]:
    users, times = zip(*rows, strict=True)
    labels = pa.table({"user_id": pa.array(users, pa.string()), "event_timestamp": pa.array(times, MOMENT)})
    return store.get_historical_features(labels, ["words:words"]).to_arrow()["words"].to_pylist()


def test_a_sequence_ends_strictly_before_the_label_and_runs_across_months(store: FeatureStore, log: str) -> None:
    store.apply([USERS, sequence_view(log)])
    february = datetime(2026, 2, 1, tzinfo=UTC)
    rows = [
        ("u", february + timedelta(microseconds=1)),
        ("u", february),
        ("u", at(2)),
        ("u", at(1)),
        ("w", at(2)),
    ]
    assert sequences(store, rows) == [["b", "c", "d"], ["a", "b", "c"], ["a"], [], []]


def test_a_missing_id_in_a_sequence_is_null_and_a_null_key_has_no_sequence(store: FeatureStore, log: str) -> None:
    store.apply([USERS, sequence_view(log)])
    assert sequences(store, [("v", at(20)), (None, at(20))]) == [[None], None]


def test_a_pull_may_ask_for_another_length_than_the_view(
    store: FeatureStore, log: str, config: Callable[..., RepoConfig], tmp_path: Path
) -> None:
    store.apply([USERS, sequence_view(log)])
    longer = FeatureStore(config=config(tmp_path, sequence_length=100))
    assert sequences(longer, [("u", datetime(2026, 3, 1, tzinfo=UTC))]) == [["a", "b", "c", "d"]]


def online_words(store: FeatureStore) -> list[Any]:
    return store.get_online_features(["words:words"], [{"user_id": "u"}, {"user_id": "v"}]).to_dict()["words"]


def test_materialised_sequences_are_those_known_at_the_end(store: FeatureStore, log: str) -> None:
    store.apply([USERS, sequence_view(log)])
    february = datetime(2026, 2, 1, tzinfo=UTC)
    store.materialize(datetime(1970, 1, 1, tzinfo=UTC), february)
    assert online_words(store) == [["a", "b", "c"], [""]]
    store.materialize(february, february + timedelta(days=1))  # only u acted since, and the tail reaches back
    assert online_words(store) == [["b", "c", "d"], [""]]


def test_session_time_zones_change_nothing(
    store: FeatureStore, prices: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply([shop, item, price_view(prices([("s", "i", 10, 1, 1), ("s", "i", 20, 3, 3)]))])
    frame = pd.DataFrame({"shop_id": ["s"] * 3, "item_id": ["i"] * 3, "event_timestamp": [at(2), at(2, 23), at(3)]})
    found = set()
    for zone in ("UTC", "Pacific/Auckland", "America/Los_Angeles"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        store.materialize(datetime(1970, 1, 1, tzinfo=UTC), at(2, 23))
        online = store.get_online_features(["prices:price"], [{"shop_id": "s", "item_id": "i"}]).to_dict()["price"]
        found.add((*joined(store, frame), *online))
    monkeypatch.undo()
    time.tzset()
    assert found == {(10, 10, 20, 10)}
