"""Requests are logged as they were served, and what differs offline is counted: exactly that, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.types import Array, Float32, Float64, Int64, String, UnixTimestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.feature_writes import DeltaLoggingDestination
from moonlake.feast_delta.serving_logs.consistency import Consistency, edit_distance, replay
from moonlake.feast_delta.serving_logs.request_log import RequestLog
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource
from moonlake.feast_delta.store import online_features
from moonlake.lake.versions import open_path

MOMENT = pa.timestamp("us", tz="UTC")
ITEMS = ("a", "b", "c", "d", "e")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


def at(day: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)


class Shop:
    """A feature store over two tables, an online store, and a log of its requests."""

    def __init__(self, folder: Path, online: dict[str, Any], ttl: timedelta) -> None:
        self.folder = folder
        config = RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"path": str(folder / "online.db"), **online},
            offline_store={"type": "moonlake.feast_delta.offline_store.DeltaOfflineStore"},
            batch_engine={"type": "moonlake.feast_delta.materialization.DeltaChangeEngine"},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
        self.store = FeatureStore(config=config)
        self.items([(name, 10, 1.0, [1.0, 0.0], 1, 1) for name in ITEMS if name != "c"])
        self.actions([1, 2, 3])
        views = [
            FeatureView(
                name="items",
                entities=[item],
                source=DeltaSource(name="items_source", path=str(folder / "items"), field_mapping={"seen": "seen_at"}),
                schema=[
                    Field(name="item_id", dtype=String),
                    Field(name="price", dtype=Int64),
                    Field(name="share", dtype=Float64),
                    Field(name="vector", dtype=Array(Float32)),
                    Field(name="seen_at", dtype=UnixTimestamp),
                ],
                ttl=ttl,
            ),
            FeatureView(
                name="acts",
                entities=[user],
                source=BehaviorSequenceSource(
                    name="acts_source", path=str(folder / "acts"), length=3, month_column=None
                ),
                schema=[Field(name="user_id", dtype=String), Field(name="product_ids", dtype=Array(String))],
            ),
        ]
        self.store.apply([item, user, *views, FeatureService(name="shop_v1", features=[*views])])
        self.destination = DeltaLoggingDestination(str(folder / "log"))

    def items(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append (item, price, share, vector, event day, created day)."""
        names, prices, shares, vectors, events, created = zip(*rows, strict=True)
        columns = {
            "item_id": pa.array(names, pa.string()),
            "price": pa.array(prices, pa.int64()),
            "share": pa.array(shares, pa.float64()),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "seen": pa.array([at(day) + timedelta(microseconds=123_456) for day in events], MOMENT),
            "event_timestamp": pa.array([at(day) for day in events], MOMENT),
            "created_at": pa.array([at(day) for day in created], MOMENT),
        }
        properties = {"delta.enableChangeDataFeed": "true"}
        write_deltalake(str(self.folder / "items"), pa.table(columns), mode="append", configuration=properties)

    def delete(self, name: str) -> None:
        """Rewrite the table without an item."""
        path = str(self.folder / "items")
        rows = open_path(path).dataset.to_table()
        write_deltalake(path, rows.filter(pc.not_equal(rows["item_id"], name)), mode="overwrite")

    def actions(self, days: Sequence[float]) -> None:
        """The whole log of user u: a product for each day."""
        packed = {
            "user_id": ["u"],
            "times_us": pa.array([[int(at(day).timestamp() * 1e6) for day in days]], pa.list_(pa.int64())),
            "product_ids": pa.array([[f"p{day}" for day in days]], pa.list_(pa.string())),
            "event_timestamp": pa.array([at(max(days))], MOMENT),
        }
        properties = {"delta.enableChangeDataFeed": "true"}
        write_deltalake(str(self.folder / "acts"), pa.table(packed), mode="overwrite", configuration=properties)

    def request(self, day: float, *names: str) -> pa.Table:
        """Read items for user u at a time, and log it."""
        rows = online_features(self.store, "shop_v1", {"item_id": names, "user_id": ["u"] * len(names)})
        with RequestLog(self.store, "shop_v1", self.destination, clock=lambda: at(day)) as log:
            log(rows, f"r{day}")
        return rows

    def replayed(self, **options: Any) -> Consistency:
        return replay(self.store, "shop_v1", self.destination.path, **options)

    def wrong(self, **options: Any) -> dict[str, dict[str, int]]:
        """The counts that are not zero, without matches, by feature."""
        kinds = ("mismatch", "missing", "extra", "unknown")
        found = {
            each.feature: {kind: getattr(each, kind) for kind in kinds if getattr(each, kind)}
            for each in self.replayed(**options).features
        }
        return {name: counts for name, counts in found.items() if counts}


DELTA_ONLINE = {"type": "moonlake.feast_delta.online_sqlite.DeltaSqliteOnlineStore", "now": "served"}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, DELTA_ONLINE, ttl=timedelta(0))


def serve(shop: Shop, day: float) -> None:
    shop.store.materialize(at(0), at(day))


def test_what_was_served_right_matches_by_both_comparisons(shop: Shop) -> None:
    serve(shop, 5)
    shop.request(6, *ITEMS)
    for as_of in ("request", "served"):
        found = shop.replayed(as_of=as_of)
        assert (found.rows, found.share, found.as_of) == (5, 1.0, as_of)
        assert {each.feature: each.rows for each in found.features} == dict.fromkeys(
            ["items__price", "items__share", "items__vector", "items__seen_at", "acts__product_ids"], 5
        )
        assert {each.neither for each in found.features[:4]} == {1}  # item c is nowhere
        assert found.features[2].cosines.mean == 1.0
        assert found.features[4].edit_distances.greatest == 0.0


def test_each_kind_of_difference_is_counted_and_nothing_else(shop: Shop) -> None:
    serve(shop, 5)
    shop.request(6, *ITEMS)
    shop.items(
        [
            ("b", 11, 1.0 + 1e-9, [1.0, 1.0], 4, 5.5),  # late: written after online was filled, before the request
            ("c", 12, 1.0, [1.0, 0.0], 5.5, 5.5),  # new since online was filled
            ("e", 99, 9.0, [0.0, 1.0], 4, 9),  # written after the request: no training row could know it then
        ]
    )
    shop.delete("d")
    shop.actions([1, 2, 3, 5.5])
    wrong = shop.wrong(as_of="request")
    assert wrong == {
        "items__price": {"mismatch": 1, "missing": 1, "extra": 1},
        "items__share": {"missing": 1, "extra": 1},
        "items__vector": {"mismatch": 1, "missing": 1, "extra": 1},
        "items__seen_at": {"mismatch": 1, "missing": 1, "extra": 1},
        "acts__product_ids": {"mismatch": 5},
    }
    found = shop.replayed(as_of="request")
    vectors, sequences = found.features[2], found.features[4]
    assert vectors.cosines.least == pytest.approx(math.sqrt(0.5))
    assert vectors.cosines.count == 3
    assert sequences.edit_distances.mean == pytest.approx(2 / 3)  # p1 p2 p3 against p2 p3 p5.5
    assert [example["kind"] for example in found.features[0].examples] == ["mismatch", "missing", "extra"]
    late = found.features[0].examples[0]
    assert (late["item_id"], late["online"], late["offline"]) == ("b", 10, 11)
    assert late["__request_id"] == "r6"
    assert found.share == pytest.approx(1 - 16 / 25)
    assert shop.wrong(as_of="served") == {}


def test_a_lag_forgives_what_became_true_since(shop: Shop) -> None:
    serve(shop, 5)
    shop.request(6, "a", "b")
    shop.items([("b", 11, 1.0, [1.0, 0.0], 5.5, 5.5)])
    assert shop.wrong(as_of="request") == {"items__price": {"mismatch": 1}, "items__seen_at": {"mismatch": 1}}
    assert shop.wrong(as_of="request", lag=timedelta(days=1)) == {}


def test_a_value_that_no_materialisation_served_differs_from_what_was_served(shop: Shop) -> None:
    serve(shop, 5)
    pushed = {
        "item_id": "b",
        "price": 77,
        "share": 1.0,
        "vector": [1.0, 0.0],
        "seen_at": at(1),
        "event_timestamp": at(2),
    }
    shop.store.write_to_online_store("items", pd.DataFrame([pushed | {"created_at": at(2)}]))
    shop.request(6, "a", "b")
    assert shop.wrong(as_of="served") == {"items__price": {"mismatch": 1}}


def test_each_request_is_held_against_the_state_that_served_it(shop: Shop) -> None:
    serve(shop, 5)
    shop.request(6, "b", "c")
    shop.items([("b", 11, 1.0, [1.0, 0.0], 5.5, 5.5), ("c", 1, 1.0, [1.0, 0.0], 2, 5.5)])
    serve(shop, 7)
    after = shop.request(8, "b", "c")
    assert after["price"].to_pylist() == [11, 1]
    assert shop.wrong(as_of="served") == {}
    assert shop.wrong(as_of="request", since=at(7)) == {}
    assert shop.wrong(as_of="request", until=at(7))["items__price"] == {"mismatch": 1, "missing": 1}


@pytest.mark.parametrize("now", ["served", "clock", at(2.5)])
def test_a_ttl_is_measured_as_the_online_store_measures_it(tmp_path: Path, now: Any) -> None:
    shop = Shop(tmp_path, {**DELTA_ONLINE, "now": now}, ttl=timedelta(days=2))
    shop.items([("b", 11, 1.0, [1.0, 0.0], 4, 4)])
    serve(shop, 5)
    requested = datetime.now(UTC) if now == "clock" else at(6)
    rows = online_features(shop.store, "shop_v1", {"item_id": ["a", "b"], "user_id": ["u", "u"]})
    with RequestLog(shop.store, "shop_v1", shop.destination, clock=lambda: requested) as log:
        log(rows)
    expected = {"served": [None, 11], "clock": [None, None]}
    assert rows["price"].to_pylist() == (expected[now] if isinstance(now, str) else [10, 11])
    assert shop.wrong(as_of="served") == {}
    assert shop.replayed().as_of == ("request" if now == "clock" else "served")


def test_requests_that_no_known_state_served_are_unknown_and_not_wrong(tmp_path: Path) -> None:
    shop = Shop(tmp_path, {"type": "sqlite"}, ttl=timedelta(0))
    serve(shop, 5)
    shop.request(6, "a", "b")
    assert shop.replayed().share == 1.0
    assert shop.wrong(as_of="served") == {each.feature: {"unknown": 2} for each in shop.replayed().features}
    assert shop.replayed(as_of="served").share == 0.0


def test_the_log_has_feasts_layout(shop: Shop) -> None:
    serve(shop, 5)
    shop.request(6.25, "a", "c")
    table = DeltaTable(shop.destination.path)
    assert table.metadata().partition_columns == ["__log_date"]
    first, second = open_path(shop.destination.path).dataset.to_table().to_pylist()
    assert (first["item_id"], first["user_id"], first["items__price"]) == ("a", "u", 10)
    assert (first["items__price__status"], second["items__price__status"]) == (1, 2)
    assert (first["__log_timestamp"], first["__log_date"], first["__request_id"]) == (
        at(6.25),
        date(2026, 1, 7),
        "r6.25",
    )
    assert (first["__items__served_version"], first["__acts__served_version"]) == (0, 0)
    assert first["__items__served_until"] == at(5)
    assert second["items__price"] is None


def test_rows_are_committed_many_at_a_time_and_requests_are_sampled(shop: Shop) -> None:
    serve(shop, 5)
    rows = online_features(shop.store, "shop_v1", {"item_id": ["a"], "user_id": ["u"]})
    with RequestLog(shop.store, "shop_v1", shop.destination, sample_rate=0.0) as log:
        log(rows)
    assert not Path(shop.destination.path).exists()
    with RequestLog(shop.store, "shop_v1", shop.destination, rows_per_commit=2) as log:
        for _ in range(5):
            log(rows)
    assert DeltaTable(shop.destination.path).version() == 2
    logged = open_path(shop.destination.path).dataset.to_table()
    assert len(logged) == len(set(logged["__request_id"].to_pylist())) == 5


def test_requests_of_many_threads_are_all_logged(shop: Shop) -> None:
    serve(shop, 5)
    rows = online_features(shop.store, "shop_v1", {"item_id": ["a", "b"], "user_id": ["u", "u"]})
    with RequestLog(shop.store, "shop_v1", shop.destination, rows_per_commit=30) as log, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: log(rows, f"r{number}"), range(40)))
    logged = open_path(shop.destination.path).dataset.to_table()["__request_id"].to_pylist()
    assert sorted(logged) == sorted([f"r{number}" for number in range(40)] * 2)


def test_a_sample_is_of_that_size_and_always_the_same(shop: Shop) -> None:
    serve(shop, 5)
    for day in (6, 7, 8):
        shop.request(day, *ITEMS)
    shop.items([("b", 11, 1.0, [1.0, 0.0], 4, 4.5)])
    assert shop.replayed(sample=7).rows == 7
    assert shop.replayed(sample=7).as_dict() == shop.replayed(sample=7).as_dict()
    assert shop.replayed(sample=100).rows == 15
    assert 0 < sum(counts["mismatch"] for counts in shop.wrong(sample=14, as_of="request").values()) <= 6


def test_what_cannot_be_replayed_is_named(shop: Shop) -> None:
    with pytest.raises(NotFound, match="no Delta table at"):
        shop.replayed()
    serve(shop, 5)
    shop.request(6, "a")
    with pytest.raises(InputError, match="holds no request of shop_v1 in"):
        shop.replayed(since=at(7))
    with pytest.raises(NotFound, match="no feature service shop_v2"):
        replay(shop.store, "shop_v2", shop.destination.path)
    whole = open_path(shop.destination.path).dataset.to_table()
    feasts = whole.select([name for name in whole.column_names if not name.endswith(("__served_version", "_until"))])
    write_deltalake(str(shop.folder / "other"), feasts)
    assert replay(shop.store, "shop_v1", str(shop.folder / "other"), as_of="request").share == 1.0
    with pytest.raises(InputError, match=r"has no columns \['__items__served_version'.* as of the time of requests"):
        replay(shop.store, "shop_v1", str(shop.folder / "other"), as_of="served")


def slow_edit_distance(left: Sequence[Any], right: Sequence[Any]) -> int:
    if not left or not right:
        return len(left) + len(right)
    if left[-1] == right[-1]:
        return slow_edit_distance(left[:-1], right[:-1])
    shorter = (left[:-1], right), (left, right[:-1]), (left[:-1], right[:-1])
    return 1 + min(slow_edit_distance(*pair) for pair in shorter)


words = st.lists(st.sampled_from(["a", "b", None]), max_size=5)


@settings(max_examples=100, deadline=None)
@given(left=words, right=words)
def test_the_edit_distance_is_that_of_the_recursion(left: list[Any], right: list[Any]) -> None:
    assert edit_distance(left, right) == slow_edit_distance(left, right)


def test_the_edit_distance_of_long_sequences_is_exact() -> None:
    dice = np.random.default_rng(0)
    left = dice.integers(0, 9, 300).tolist()
    assert edit_distance(left, left[5:]) == 5
    assert edit_distance(left[:-7] + [10] * 7, left) == 7
