"""The feature repository on a lake: historical features equal a plain-Python oracle, and online equals historical."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureStore
from feast.feature_view import FeatureViewState

from moonlake.errors import NotFound
from moonlake.feast_delta import materialize
from moonlake.feast_delta.store import (
    apply,
    definitions_hash,
    feature_store,
    online_features,
    service_views,
)
from moonlake.schema.tables import TIMELESS, USES
from moonlake.settings import Settings

Row = dict[str, Any]
Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]

START = datetime(2026, 1, 20, tzinfo=UTC)
END = datetime(2026, 2, 12, tzinfo=UTC)
SEQUENCE = {  # column of the packed table -> feature
    "product_ids": "behavior_product_ids",
    "content_ids": "behavior_content_ids",
    "query_content_ids": "behavior_query_content_ids",
    "actions": "behavior_actions",
    "times_us": "behavior_times_us",
}
COUNTS = ("impressions_7d", "clicks_7d", "purchases_7d", "ctr_7d")
LENGTH = 50


@dataclass
class World:
    """A small shop: facts as they happened, and label rows among them."""

    products: list[Row] = field(default_factory=list)
    users: list[Row] = field(default_factory=list)
    product_stats: list[Row] = field(default_factory=list)
    user_stats: list[Row] = field(default_factory=list)
    behaviors: list[Row] = field(default_factory=list)
    labels: list[Row] = field(default_factory=list)


def make_world(seed: int) -> World:
    """Whole hours only, so that labels fall on the very moments of facts."""
    dice = random.Random(seed)
    world = World()

    def moment() -> datetime:
        return START + timedelta(hours=dice.randrange(23 * 24))

    for number in range(8):
        for _ in range(dice.randrange(1, 5)):
            fact = {"category": dice.choice(["shoes", "bags", None]), "brand": dice.choice(["b1", "b2", None])}
            price = dice.choice([None, 100, 2**53 + 1])
            ids = {"product_id": f"p{number}", "merchant_id": f"m{dice.randrange(3)}", "content_id": f"{number:032x}"}
            written = END - timedelta(hours=dice.randrange(3))  # some facts are stated twice, and the last one counts
            world.products.append(
                {**ids, **fact, "price_cents": price, "event_timestamp": moment(), "created_at": written}
            )
    world.products += [{**row, "brand": "restated", "created_at": END} for row in world.products[:3]]
    for number in range(6):
        for _ in range(dice.randrange(1, 3)):
            segment = {"user_id": f"u{number}", "segment": dice.choice(["new", "loyal"])}
            world.users.append({**segment, "event_timestamp": moment(), "created_at": END})
    for rows, key, letter in ((world.product_stats, "product_id", "p"), (world.user_stats, "user_id", "u")):
        for number in range(6):
            for day in range(23):
                if dice.random() < 0.6:
                    counts = dict(
                        zip(COUNTS, (number + day, dice.randrange(9), 0, dice.choice([None, 0.25])), strict=True)
                    )
                    end = START + timedelta(days=day)
                    rows.append({key: f"{letter}{number}", **counts, "event_timestamp": end, "created_at": END})
    for _ in range(500):
        searched = dice.random() < 0.3
        product = None if searched else f"p{dice.randrange(8)}"
        world.behaviors.append(
            {
                "user_id": f"u{dice.randrange(5)}",
                "time": moment() + timedelta(minutes=dice.randrange(60)),
                "actions": "search" if searched else dice.choice(["click", "cart", "purchase"]),
                "product_ids": product,
                "content_ids": None if product is None else f"{int(product[1:]):032x}",
                "query_content_ids": dice.choice([None, "f" * 32]),
            }
        )
    for _ in range(250):
        keys = {"user_id": f"u{dice.randrange(7)}", "product_id": f"p{dice.randrange(10)}"}  # some of them unknown
        world.labels.append({**keys, "event_timestamp": moment()})
    return world


def microseconds(moment: datetime) -> int:
    return (moment - TIMELESS) // timedelta(microseconds=1)


def write_world(world: World, settings: Settings, write_rows: Write) -> None:
    for table in ("products", "users", "product_stats", "user_stats"):
        rows = getattr(world, table)
        write_rows(settings, table, rows[: len(rows) // 2])  # two commits
        write_rows(settings, table, rows[len(rows) // 2 :])
    packed: dict[tuple[str, str], Row] = {}
    for action in sorted(world.behaviors, key=lambda action: action["time"]):
        user, month = action["user_id"], action["time"].strftime("%Y-%m")
        row = packed.setdefault((user, month), {"user_id": user, "month": month, **{name: [] for name in SEQUENCE}})
        for name in SEQUENCE:
            row[name].append(microseconds(action["time"]) if name == "times_us" else action[name])
        row["event_timestamp"] = action["time"]
    write_rows(settings, "behavior_sequences", list(packed.values())[::-1])


def oracle(world: World, label: Row) -> Row:
    """The features of one label row, by looking at every fact."""
    features: Row = {}
    for name, key, ttl, columns, prefix in (
        ("products", "product_id", None, ("category", "brand", "merchant_id", "price_cents"), ""),
        ("product_stats", "product_id", timedelta(days=1), COUNTS, "product_"),
        ("user_stats", "user_id", timedelta(days=1), COUNTS, "user_"),
        ("users", "user_id", None, ("segment",), ""),
    ):
        rows = [row for row in getattr(world, name) if row[key] == label[key]]
        known = [row for row in rows if row["event_timestamp"] <= label["event_timestamp"]]
        last: Row = {}
        for row in known:  # in the order of writing, so that what is equal goes to the later one
            if not last or (row["event_timestamp"], row["created_at"]) >= (last["event_timestamp"], last["created_at"]):
                last = row
        if ttl and last and label["event_timestamp"] - last["event_timestamp"] > ttl:
            last = {}
        features |= {prefix + column: last.get(column) for column in columns}
    acted = [row for row in world.behaviors if row["user_id"] == label["user_id"]]
    before = sorted((row for row in acted if row["time"] < label["event_timestamp"]), key=lambda row: row["time"])
    for column, name in SEQUENCE.items():
        column_values = [microseconds(row["time"]) if column == "times_us" else row[column] for row in before]
        features[name] = column_values[-LENGTH:]
    return features


def label_table(labels: Sequence[Row]) -> pa.Table:
    schema = pa.schema(
        [("user_id", pa.string()), ("product_id", pa.string()), ("event_timestamp", pa.timestamp("us", "UTC"))]
    )
    return pa.Table.from_pylist(list(labels), schema=schema)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=11)


@pytest.fixture(scope="module")
def home(world: World, write_rows: Write, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    write_world(world, settings, write_rows)
    return settings


@pytest.fixture(scope="module")
def store(home: Settings) -> FeatureStore:
    return apply(home)


def historical(store: FeatureStore, labels: Sequence[Row]) -> list[Row]:
    rows = store.get_historical_features(label_table(labels), store.get_feature_service("ctr_ranking_v1")).to_arrow()
    return [{name: row[name] for name in row if name not in labels[0]} for row in rows.to_pylist()]


def test_features_of_a_training_row_have_their_names_and_no_others(store: FeatureStore, world: World) -> None:
    columns = set(historical(store, world.labels[:1])[0])
    stats = {f"{who}_{count}" for who in ("product", "user") for count in COUNTS}
    assert columns == {"category", "brand", "merchant_id", "price_cents", "segment", *stats, *SEQUENCE.values()}


def test_every_use_of_the_vectors_has_its_service_and_no_other_is_defined(store: FeatureStore) -> None:
    assert sorted(service.name for service in store.list_feature_services()) == sorted(USES.values())


def test_historical_features_equal_the_oracle(store: FeatureStore, world: World) -> None:
    found = historical(store, world.labels)
    assert found == [oracle(world, label) for label in world.labels]
    assert any(row["behavior_times_us"] == [] for row in found)
    assert any(len(row["behavior_times_us"]) == LENGTH for row in found)
    assert any(row["product_impressions_7d"] is None for row in found)


def test_a_large_integer_beside_nulls_stays_exact(store: FeatureStore, world: World) -> None:
    prices = [row["price_cents"] for row in historical(store, world.labels)]
    assert {None, 100, 2**53 + 1} == set(prices)


def test_online_features_equal_the_historical_ones_at_the_moment_of_materialisation(
    home: Settings, store: FeatureStore, world: World
) -> None:
    materialize.run(home, END)
    keys = [{"user_id": f"u{user}", "product_id": f"p{product}"} for user in range(7) for product in range(9)]
    columns = {name: [key[name] for key in keys] for name in ("user_id", "product_id")}
    online = online_features(store, "ctr_ranking_v1", columns)
    assert online.to_pylist() == [{**oracle(world, {**key, "event_timestamp": END}), **key} for key in keys]
    labels = label_table([{**key, "event_timestamp": END} for key in keys])
    offline = store.get_historical_features(labels, store.get_feature_service("ctr_ranking_v1")).to_arrow()
    assert dict(zip(online.column_names, online.schema.types, strict=True)) == {
        field.name: field.type for field in offline.drop_columns("event_timestamp").schema
    }


def test_vectors_are_keyed_by_content_and_space(store: FeatureStore, home: Settings, write_rows: Write) -> None:
    pairs = [("1", "23", [1.0, 0.0]), ("12", "3", [0.0, 1.0])]
    rows = [{"content_id": content, "space_id": space, "vector": vector} for content, space, vector in pairs]
    write_rows(home, "embeddings", rows)
    keys = {"content_id": ["1", "12", "12", "1"], "space_id": ["23", "3", "23", "3"]}
    wanted = [[1.0, 0.0], [0.0, 1.0], None, None]
    service = store.get_feature_service("similar_products_v1")
    times = pa.array([START] * 4, pa.timestamp("us", "UTC"))
    rows_then = store.get_historical_features(pa.table({**keys, "event_timestamp": times}), service).to_arrow()
    assert rows_then["vector"].to_pylist() == wanted
    materialize.run(home, END, ["content_embedding_v1"])
    assert store.get_online_features(service, keys).to_dict()["vector"] == wanted


def test_stats_past_their_ttl_are_not_served(settings: Settings, write_rows: Write) -> None:
    counts = dict.fromkeys(("impressions_7d", "clicks_7d", "purchases_7d"), 1)
    write_rows(settings, "product_stats", [{"product_id": "p", **counts, "event_timestamp": START}])
    store = apply(settings)
    features, keys = ["product_stats_v1:product_clicks_7d"], [{"product_id": "p"}]
    materialize.run(settings, START + timedelta(days=1), ["product_stats_v1"])
    assert store.get_online_features(features, keys).to_dict()["product_clicks_7d"] == [1]
    materialize.run(settings, START + timedelta(days=2), ["product_stats_v1"])
    assert store.get_online_features(features, keys).to_dict()["product_clicks_7d"] == [None]


def test_session_time_zones_change_nothing(world: World, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for zone in ("UTC", "Asia/Kolkata", "America/St_Johns"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        found.append(historical(feature_store(home), world.labels))
    monkeypatch.undo()
    time.tzset()
    assert found[0] == found[1] == found[2]


def test_a_lake_without_tables_has_features_that_are_all_null(settings: Settings) -> None:
    store = apply(settings)
    row = historical(store, [{"user_id": "u", "product_id": "p", "event_timestamp": START}])[0]
    assert {name: value for name, value in row.items() if value is not None} == {name: [] for name in SEQUENCE.values()}


def test_the_definitions_hash_is_the_same_after_another_apply_and_says_what_changed(settings: Settings) -> None:
    first = definitions_hash(service_views(apply(settings), "ctr_ranking_v1"))
    again = definitions_hash(service_views(apply(settings), "ctr_ranking_v1"))
    other = definitions_hash(service_views(feature_store(settings), "similar_products_v1"))
    assert first == again != other


def test_an_unknown_service_and_an_unknown_view_are_named(store: FeatureStore, home: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no feature service ctr_v9; registered: ctr_ranking_v1, similar_products_v1"):
        service_views(store, "ctr_v9")
    with pytest.raises(NotFound, match="registered: none"):
        service_views(feature_store(Settings(home=tmp_path / "fresh")), "ctr_ranking_v1")
    with pytest.raises(NotFound, match=r"no feature views \['stats'\]"):
        materialize.run(home, END, ["stats"])
    with pytest.raises(NotFound, match="no feature repository at"):
        feature_store(home.model_copy(update={"feature_repo": tmp_path}))


@pytest.mark.slow
def test_feasts_own_command_meets_the_api_in_one_registry(settings: Settings, write_rows: Write) -> None:
    """`feast` runs in its own process, as a person starts it; everything is found by MOONLAKE_HOME."""
    segments = [{"user_id": "u", "segment": "loyal", "event_timestamp": START}]
    write_rows(settings, "users", segments)
    environment = {**os.environ, **settings.environment(), "TZ": "Asia/Tokyo"}
    feast = [str(Path(sys.executable).with_name("feast")), "-c", str(settings.feature_repo)]
    window = [TIMELESS.isoformat(), END.isoformat()]
    for command in (["apply"], ["materialize", *window, "--views", "user_profile_v1"]):
        subprocess.run([*feast, *command], env=environment, check=True, capture_output=True, timeout=180)
    store = feature_store(settings)
    assert {view.name for view in service_views(store, "ctr_ranking_v1")} >= {"user_profile_v1", "product_stats_v1"}
    online = store.get_online_features(["user_profile_v1:segment"], [{"user_id": "u"}]).to_dict()
    assert online["segment"] == ["loyal"]


def test_readers_are_served_while_a_view_is_materialised(settings: Settings, write_rows: Write) -> None:
    write_rows(settings, "products", [{"product_id": "p", "price_cents": 5}])
    materialize.run(settings, END, ["product_profile_v1"])
    store = feature_store(settings)
    store.set_feature_view_state("product_profile_v1", FeatureViewState.MATERIALIZING)
    store.refresh_registry()  # type: ignore[no-untyped-call]
    found = store.get_online_features(["product_profile_v1:price_cents"], [{"product_id": "p"}]).to_dict()
    assert found["price_cents"] == [5]
