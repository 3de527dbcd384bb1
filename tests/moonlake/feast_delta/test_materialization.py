"""Online values after a materialisation: the rules of docs/online_stores.md, through Feast's calls, on each store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Int64, String

from moonlake.feast_delta.materialization import ViewServed, reports_of, serve_changes
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource

MOMENT = pa.timestamp("us", tz="UTC")
ENGINE = "moonlake.feast_delta.materialization.DeltaChangeEngine"
OFFLINE = "moonlake.feast_delta.offline_store.DeltaOfflineStore"
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)


def at(day: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day - 1)


TIMELESS = datetime(1970, 1, 1, tzinfo=UTC)


def feature_store(folder: Path, online: dict[str, Any], *, stock: bool = False) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"now": "served", **online} if not stock else online,
            offline_store={"type": OFFLINE},
            batch_engine={"type": ENGINE, "rows_per_write": 3},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )


class Prices:
    """A Delta table of prices by shop and item, with its change feed on."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, *rows: tuple[str, str, int, float, float], **options: Any) -> None:
        """Append rows (shop, item, price, event day, created day) in one commit."""
        shops, items, prices, events, created = zip(*rows, strict=True)
        table = {
            "shop_id": pa.array(shops, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "price": pa.array(prices, pa.int64()),
            "event_timestamp": pa.array([at(day) for day in events], MOMENT),
            "created_at": pa.array([at(day) for day in created], MOMENT),
        }
        options = {"configuration": {"delta.enableChangeDataFeed": "true"}, "mode": "append", **options}
        write_deltalake(self.path, pa.table(table), **options)

    def delete(self, where: str) -> None:
        DeltaTable(self.path).delete(where)

    def view(self, *, ttl: timedelta = timedelta(0), name: str = "prices", **source: Any) -> FeatureView:
        fields = [("shop_id", String), ("item_id", String), ("price", Int64)]
        return FeatureView(
            name=name,
            entities=[shop, item],
            source=DeltaSource(name=f"{name}_source", path=self.path, **source),
            schema=[Field(name=name, dtype=dtype) for name, dtype in fields],
            ttl=ttl,
        )


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    return Prices(tmp_path / "prices")


class Shop:
    """A feature store with the view `prices`, and what is online of it."""

    def __init__(self, store: FeatureStore, prices: Prices) -> None:
        self.store, self.prices = store, prices
        self.apply()

    def apply(self, **view: Any) -> None:
        self.store.apply([shop, item, self.prices.view(**view)])

    def serve(self, end: float, start: float | None = None) -> ViewServed:
        """Materialise up to a day; without a start by change alone."""
        self.store.materialize(at(end if start is None else start), at(end), ["prices"])
        return reports_of(self.store)["prices"]

    def online(self, *keys: str) -> list[int | None]:
        """Prices by item "i" of shop "s", or "shop/item"."""
        pairs = [key.split("/") if "/" in key else ("s", key) for key in keys]
        rows = [{"shop_id": one, "item_id": other} for one, other in pairs]
        found = self.store.get_online_features(["prices:price"], rows)
        prices: list[int | None] = found.to_dict()["price"]
        present = [status == FieldStatus.PRESENT for status in found.proto.results[-1].statuses]
        assert present == [price is not None for price in prices], "a key is PRESENT with a value, or NOT_FOUND"
        return prices


@pytest.fixture
def market(tmp_path: Path, online: dict[str, Any], prices: Prices) -> Shop:
    prices.write(("s", "a", 10, 1, 1), ("s", "b", 20, 1, 1))
    return Shop(feature_store(tmp_path, online), prices)


def test_the_first_run_serves_the_whole_snapshot_as_of_the_end(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 3, 3), ("s", "c", 30, 5, 5))
    report = market.serve(4)
    assert market.online("a", "b", "c") == [11, 20, None]
    assert (report.keys, report.written, report.why, report.version) == (2, 2, "first run", 1)


def test_late_and_back_filled_rows_are_served_and_nothing_else_is_touched(market: Shop) -> None:
    market.serve(5)
    market.prices.write(("s", "a", 11, 2, 6), ("s", "d", 40, -400, 6))
    report = market.serve(6)
    assert market.online("a", "b", "d") == [11, 20, 40]
    assert (report.keys, report.written, report.why) == (2, 2, "changed keys")


def test_a_row_whose_time_has_come_is_served_without_another_write(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 5, 1), ("s", "z", 1, 9, 1))
    market.serve(4)
    assert market.online("a", "z") == [10, None]
    assert market.serve(6).keys == 1
    assert market.online("a", "z") == [11, None]


def test_an_event_window_is_served_even_when_nothing_changed(market: Shop) -> None:
    market.serve(5)
    assert (market.serve(5).keys, market.serve(5, start=1).keys) == (0, 2)


def test_a_correction_with_the_same_event_time_lands(market: Shop) -> None:
    market.serve(5)
    market.prices.write(("s", "a", 12, 1, 2))
    market.serve(5)
    market.prices.write(("s", "a", 11, 1, 1.5))  # written later, created before the correction
    market.serve(5)
    assert market.online("a") == [12]


def test_at_equal_times_the_later_commit_wins(market: Shop) -> None:
    market.serve(5)
    market.prices.write(("s", "a", 12, 1, 1))
    market.serve(5)
    assert market.online("a") == [12]


def test_times_are_compared_in_microseconds(market: Shop) -> None:
    second = 1 / 86_400
    market.prices.write(("s", "a", 12, 2 + 0.5 * second, 2))
    market.serve(5)
    market.prices.write(("s", "a", 11, 2 + 0.25 * second, 3))
    market.serve(5)
    assert market.online("a") == [12]


def test_a_replay_of_an_old_window_changes_nothing_and_a_late_row_in_it_lands(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 5, 5))
    market.serve(6)
    market.prices.write(("s", "b", 21, 2, 7))
    report = market.serve(3, start=1)
    assert market.online("a", "b") == [11, 21]
    assert report.end == at(6)


def test_a_deleted_row_gives_way_to_what_remains_or_to_nothing(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 2, 2))
    market.serve(5)
    market.prices.delete("item_id = 'a' and price = 11")
    market.prices.delete("item_id = 'b'")
    assert market.serve(5).written == 2
    assert market.online("a", "b") == [10, None]
    market.serve(5, start=1)
    assert market.online("a", "b") == [10, None]
    market.prices.write(("s", "b", 22, 0, 9))
    market.serve(5)
    assert market.online("a", "b") == [10, 22]


def test_a_row_that_an_update_moved_into_the_past_is_served_as_it_now_is(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 3, 3))
    market.serve(5)
    earlier = at(1.5).isoformat()
    DeltaTable(market.prices.path).update(
        updates={"event_timestamp": f"'{earlier}'", "price": "13"}, predicate="price = 11"
    )
    market.serve(5)
    assert market.online("a") == [13]


def test_a_changed_definition_is_served_whole_and_what_it_does_not_have_is_gone(market: Shop, tmp_path: Path) -> None:
    market.serve(5)
    other = Prices(tmp_path / "other")
    other.write(("s", "b", 99, -100, -100), ("s", "c", 98, -100, -100))
    market.prices.path, first = other.path, market.prices.path
    market.apply()
    assert market.serve(5).why == "changed definition or table"
    assert market.online("a", "b", "c") == [None, 99, 98]
    market.prices.path = first
    market.apply()
    market.serve(5)
    assert market.online("a", "b", "c") == [10, 20, None]


def test_a_table_that_was_made_anew_is_served_whole(market: Shop) -> None:
    from shutil import rmtree

    market.serve(5)
    rmtree(market.prices.path)
    market.prices.write(("s", "b", 1, 0, 0))
    market.serve(5)
    assert market.online("a", "b") == [None, 1]


def test_a_pinned_version_is_served_as_it_was(market: Shop) -> None:
    market.prices.write(("s", "a", 11, 2, 2), ("s", "c", 30, 2, 2))
    market.serve(5)
    market.apply(version=0)
    market.serve(5)
    assert market.online("a", "b", "c") == [10, 20, None]
    market.apply()
    market.serve(5)
    assert market.online("a", "b", "c") == [11, 20, 30]


def test_without_a_change_feed_the_whole_snapshot_is_served(market: Shop) -> None:
    market.serve(5)
    DeltaTable(market.prices.path).alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    market.prices.write(("s", "a", 11, 2, 2), configuration=None)
    market.prices.delete("item_id = 'b'")
    assert "enableChangeDataFeed is not true" in market.serve(5).why
    assert market.online("a", "b") == [11, None]


def test_when_the_change_feed_was_vacuumed_the_whole_snapshot_is_served(market: Shop) -> None:
    market.serve(5)
    market.prices.write(("s", "a", 11, 2, 2))
    market.prices.write(("s", "c", 30, 2, 2))
    market.prices.delete("item_id = 'b'")
    table = DeltaTable(market.prices.path)
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert "no change feed since version 0" in market.serve(5).why
    assert market.online("a", "b", "c") == [11, None, 30]


def test_composite_keys_do_not_mix_and_a_key_with_a_null_is_left_out(market: Shop) -> None:
    market.prices.write(("1", "23", 1, 1, 1), ("12", "3", 2, 1, 1), (None, "a", 3, 1, 1))  # type: ignore[arg-type]
    market.serve(5)
    market.prices.write(("1", "23", 4, 2, 2), (None, "a", 5, 2, 2))  # type: ignore[arg-type]
    assert market.serve(5).keys == 1
    assert market.online("1/23", "12/3") == [4, 2]


def test_a_vector_that_is_true_for_ever_is_served_when_it_arrives(market: Shop) -> None:
    market.serve(5)
    write_deltalake(market.prices.path, timeless("a", "z"), mode="append")
    market.serve(6)
    assert market.online("a", "z") == [10, 0]


def timeless(*items: str) -> pa.Table:
    columns = {"shop_id": ["s"] * len(items), "item_id": list(items), "price": [0] * len(items)}
    times = pa.array([TIMELESS] * len(items), MOMENT)
    return pa.table({**columns, "event_timestamp": times, "created_at": times})


def test_feasts_incremental_command_serves_late_rows(market: Shop) -> None:
    market.store.materialize_incremental(at(5), ["prices"])
    market.prices.write(("s", "a", 11, 2, 6), ("s", "d", 40, -4000, 6))
    market.store.materialize_incremental(at(6), ["prices"])
    assert market.online("a", "b", "d") == [11, 20, 40]


def test_changes_are_served_without_a_word_to_the_registry(market: Shop, tmp_path: Path) -> None:
    market.store.materialize_incremental(at(5), ["prices"])
    registry = (tmp_path / "registry.db").read_bytes()
    market.prices.write(("s", "a", 11, 2, 6), ("s", "d", 40, 6, 6), ("s", "e", 50, 8, 8))
    (report,) = serve_changes(market.store, ["prices"], at(7))
    assert (report.written, report.why) == (2, "changed keys")
    assert market.online("a", "d", "e") == [11, 40, None]
    serve_changes(market.store, ["prices"], at(9))
    assert market.online("e") == [50]
    assert (tmp_path / "registry.db").read_bytes() == registry
    market.prices.write(("s", "f", 60, 3, 9))
    market.store.materialize_incremental(at(9), ["prices"])
    assert market.online("f") == [60]


def test_a_view_without_entities_is_served(tmp_path: Path, online: dict[str, Any], prices: Prices) -> None:
    prices.write(("s", "a", 10, 1, 1), ("t", "b", 20, 2, 2))
    source = DeltaSource(name="all_source", path=prices.path)
    view = FeatureView(name="all", entities=[], source=source, schema=[Field(name="price", dtype=Int64)])
    store = feature_store(tmp_path, online)
    store.apply([view])
    for day, price in ((1, 10), (2, 20), (3, 30)):
        if day == 3:
            prices.write(("u", "c", 30, 1.5, 9), ("u", "c", 30, 3, 9))
        store.materialize(at(day), at(day), ["all"])
        found = store.get_online_features(["all:price"], [{DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL}]).to_dict()
        assert found["price"] == [price]


def test_field_mappings_large_integers_and_nulls_arrive_as_they_are(
    tmp_path: Path, online: dict[str, Any], prices: Prices
) -> None:
    prices.write(("s", "a", 2**53 + 1, 1, 1), ("s", "b", None, 1, 1))  # type: ignore[arg-type]
    store_entity = Entity(name="store", join_keys=["shop"], value_type=ValueType.STRING)
    fields = [("shop", String), ("item_id", String), ("cents", Int64)]
    view = FeatureView(
        name="mapped",
        entities=[store_entity, item],
        source=DeltaSource(name="m", path=prices.path, field_mapping={"shop_id": "shop", "price": "cents"}),
        schema=[Field(name=name, dtype=dtype) for name, dtype in fields],
    )
    store = feature_store(tmp_path, online)
    store.apply([store_entity, item, view])
    store.materialize(at(5), at(5), ["mapped"])
    prices.write(("s", "a", 2**53 + 3, 2, 2))
    store.materialize(at(5), at(5), ["mapped"])
    rows = [{"shop": "s", "item_id": name} for name in "ab"]
    assert store.get_online_features(["mapped:cents"], rows).to_dict()["cents"] == [2**53 + 3, None]


def test_the_lag_of_a_source_is_not_taken_off_twice(market: Shop) -> None:
    market.apply(lag=timedelta(days=10))
    market.serve(5)
    assert market.online("a") == [10]


def test_a_store_that_keeps_no_state_gets_feasts_own_window(tmp_path: Path, prices: Prices) -> None:
    prices.write(("s", "a", 10, 1, 1), ("s", "b", 20, 3, 3), ("s", "c", 30, 9, 9))
    store = feature_store(tmp_path, {"type": "sqlite", "path": str(tmp_path / "stock.db")}, stock=True)
    store.apply([shop, item, prices.view(ttl=timedelta(days=3))])
    store.materialize(at(2), at(5), ["prices"])
    assert reports_of(store)["prices"].why == "event window"
    rows = [{"shop_id": "s", "item_id": name} for name in "abc"]
    assert store.get_online_features(["prices:price"], rows).to_dict()["price"] == [None, 20, None]


class Acts:
    """Packed behaviour of users, a row a month, merged as the packing job merges it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, *months: tuple[str, str, list[tuple[float, str | None]]]) -> None:
        """Merge rows (user, month, [(day, product)])."""
        users, names, acts = zip(*months, strict=True)
        table = pa.table(
            {
                "user_id": pa.array(users, pa.string()),
                "month": pa.array(names, pa.string()),
                "times_us": [[int(at(day).timestamp() * 1e6) for day, _ in each] for each in acts],
                "product_ids": pa.array([[product for _, product in each] for each in acts], pa.list_(pa.string())),
                "event_timestamp": pa.array([at(max(day for day, _ in each)) for each in acts], MOMENT),
            }
        )
        if not DeltaTable.is_deltatable(self.path):
            write_deltalake(self.path, table, configuration={"delta.enableChangeDataFeed": "true"})
            return
        merge = DeltaTable(self.path).merge(table, "s.user_id = t.user_id and s.month = t.month", "s", "t")
        merge.when_matched_update_all().when_not_matched_insert_all().execute()


def test_a_user_whose_packed_rows_changed_or_who_acted_gets_a_whole_new_sequence(
    tmp_path: Path, online: dict[str, Any]
) -> None:
    acts = Acts(tmp_path / "acts")
    acts.write(("u", "2026-01", [(1, "a"), (3, None), (20, "z")]), ("v", "2026-01", [(2, "b")]))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = BehaviorSequenceSource(name="acts_source", path=acts.path, length=3, month_column="month")
    schema = [Field(name="user_id", dtype=String), Field(name="product_ids", dtype=Array(String))]
    store = feature_store(tmp_path, online)
    ttl = timedelta(days=1)  # a sequence has no age
    store.apply([user, FeatureView(name="acts", entities=[user], source=source, schema=schema, ttl=ttl)])

    def served(day: float) -> tuple[int, list[Any]]:
        store.materialize(at(day), at(day), ["acts"])
        rows = [{"user_id": name} for name in ("u", "v", "w")]
        found = store.get_online_features(["acts:product_ids"], rows).to_dict()["product_ids"]
        return reports_of(store)["acts"].keys, found

    assert served(2)[1] == [["a"], None, None], "actions strictly before the moment"
    assert served(10) == (2, [["a", ""], ["b"], None])
    acts.write(("u", "2026-01", [(1, "a"), (2, "late"), (3, None), (20, "z")]))
    assert served(10) == (1, [["a", "late", ""], ["b"], None])
    acts.write(("w", "2026-02", [(35, "c")]), ("u", "2026-02", [(40, "y")]))
    assert served(36)[1] == [["late", "", "z"], ["b"], ["c"]]
    acts.write(("u", "2026-01", [(1, "a")]), ("u", "2026-02", [(40, "y")]))  # the late ones were withdrawn
    assert served(36)[1] == [["a"], ["b"], ["c"]]
    DeltaTable(acts.path).delete("user_id = 'v'")
    assert served(36)[1] == [["a"], None, ["c"]]
