"""The rules of docs/online_stores.md on the stores themselves: what lands, what is taken back, what is found."""

from __future__ import annotations

import ast
import asyncio
import inspect
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String

from moonlake.feast_delta import home, online_sqlite
from moonlake.feast_delta.online import rules
from moonlake.feast_delta.online.rules import NEVER_US, FoundRow, OnlineRow, Overtaken, Served, times_of
from moonlake.maintenance.erasure import names_of
from moonlake.maintenance.erasure_search import Search, search_folder
from moonlake.maintenance.feature_store import names_a_key

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIRST = Served(epoch=1, visible_from=1, definition="d", table_id="t", version=1, end_us=1, reaching_us=1)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


def key(name: str) -> EntityKey:
    return EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=name)])


class Online:
    """An online store with one view of one feature, written as a materialisation or as a push writes."""

    def __init__(self, folder: Path, online: dict[str, Any], ttl: timedelta = timedelta(0)) -> None:
        self.folder = folder
        self.config = RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"now": NOON, **online},
            entity_key_serialization_version=3,
        )
        self.view = FeatureView(
            name="profile",
            entities=[user],
            source=FileSource(path="unread", timestamp_field="event_timestamp"),
            schema=[Field(name="user_id", dtype=String), Field(name="level", dtype=Int64)],
            ttl=ttl,
        )
        self.feast = FeatureStore(config=self.config)
        self.feast.apply([user, self.view])
        self.store: Any = get_online_store_from_config(self.config.online_store)

    def serve(self, *rows: OnlineRow, served: Served = FIRST) -> int:
        """Write rows as a materialisation that looked how far the view was served just now."""
        before = self.served()
        opened = before
        if served.epoch > before.epoch:
            opened = replace(served, version=None, visible_from=before.visible_from)
        with self.serving(opened, served) as write:
            return int(write(rows))

    def serving(self, opened: Served, done: Served) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.store.serving(self.config, self.view, opened, done)
        return context

    def served(self) -> Served:
        served: Served = self.store.served(self.config, self.view)
        return served

    def push(self, name: str, level: int, event: datetime, created: datetime | None = None) -> None:
        data = [(key(name), {"level": Value(int64_val=level)}, event, created)]
        self.store.online_write_batch(self.config, self.view, data, None)

    def read(self, name: str = "a") -> tuple[int, datetime] | None:
        ((event, row),) = self.found(name)
        return None if row is None or event is None else (row["level"].int64_val, event)

    def found(self, *names: str) -> list[FoundRow]:
        rows: list[FoundRow] = self.store.online_read(self.config, self.view, [key(name) for name in names], ["level"])
        waited = asyncio.run(self._read_async(names))
        assert waited == rows
        return rows

    async def _read_async(self, names: tuple[str, ...]) -> list[FoundRow]:
        store: Any = get_online_store_from_config(self.config.online_store)
        rows: list[FoundRow] = await store.online_read_async(self.config, self.view, [key(name) for name in names])
        if getattr(store, "_client_async", None) is not None:
            await store._client_async.aclose()
        return rows


def row(level: int | None, event: datetime, created: datetime | None = None, **more: Any) -> OnlineRow:
    values = None if level is None else {"level": Value(int64_val=level)}
    times = (NEVER_US, NEVER_US) if level is None else times_of(event, created)
    return OnlineRow(key("a"), values, times, **more)


def test_a_key_that_is_forgotten_leaves_no_trace_and_others_stay(shop: Online) -> None:
    def holds(content: bytes) -> bool:
        return Search(names_of("user", ["a"])).in_bytes(content)

    def traces() -> int:
        (searched,) = search_folder(str(shop.folder), Search(names_of("user", ["a"])), lambda _: "files")
        return len(searched.found) + shop.store.search(shop.config, holds)[1]

    other = replace(row(2, NOON), key=key("aa"))
    shop.serve(row(1, NOON), other)
    assert traces()
    named = names_a_key(names_of("user", ["a"]))
    assert [shop.store.forget(shop.config, [shop.view], named) for _ in range(2)] == [1, 0]
    assert (traces(), shop.read("a"), shop.read("aa")) == (0, None, (2, NOON))
    shop.serve(row(3, NOON), served=replace(FIRST, version=2))
    assert shop.read("a") == (3, NOON)


@pytest.fixture
def shop(tmp_path: Path, online: dict[str, Any]) -> Online:
    return Online(tmp_path, online)


@pytest.mark.parametrize("write", ["push", "serve"])
def test_only_what_is_not_older_lands(shop: Online, write: str) -> None:
    def put(level: int, event: datetime, created: datetime | None) -> None:
        if write == "push":
            shop.push("a", level, event, created)
        else:
            shop.serve(row(level, event, created))

    put(1, NOON, NOON)
    put(2, NOON - MICROSECOND, NOON + timedelta(days=1))
    assert shop.read() == (1, NOON)
    put(3, NOON, NOON - MICROSECOND)
    assert shop.read() == (1, NOON)
    put(4, NOON, NOON)  # the same times again: the later write wins
    put(5, NOON, NOON + MICROSECOND)
    assert shop.read() == (5, NOON)
    put(6, NOON + MICROSECOND, None)
    assert shop.read() == (6, NOON + MICROSECOND)


def test_times_before_1970_and_naive_ones_are_kept(shop: Online) -> None:
    shop.push("a", 1, datetime(1900, 1, 1))  # noqa: DTZ001 Feast hands naive times over that mean UTC
    assert shop.read() == (1, datetime(1900, 1, 1, tzinfo=UTC))
    shop.push("a", 2, datetime(1900, 1, 1, 0, 0, 1, tzinfo=UTC))
    assert shop.read() == (2, datetime(1900, 1, 1, 0, 0, 1, tzinfo=UTC))


def test_what_feast_pushes_beside_the_features_is_kept(shop: Online) -> None:
    values = {"user_id": Value(string_val="a"), "level": Value(int64_val=1)}  # an on-demand view has its keys so too
    shop.store.online_write_batch(shop.config, shop.view, [(key("a"), values, NOON, NOON)], None)
    ((event, found),) = shop.store.online_read(shop.config, shop.view, [key("a")], ["level", "user_id"])
    assert (event, found) == (NOON, values)


def test_a_push_keeps_to_the_same_rule_against_what_was_served(shop: Online) -> None:
    shop.serve(row(1, NOON, NOON))
    shop.push("a", 2, NOON - MICROSECOND)
    assert shop.read() == (1, NOON)
    shop.push("a", 3, NOON + MICROSECOND)
    assert shop.read() == (3, NOON + MICROSECOND)
    shop.serve(row(4, NOON, NOON), served=replace(FIRST, version=9))
    assert shop.read() == (3, NOON + MICROSECOND)
    shop.serve(row(5, NOON + 2 * MICROSECOND), served=replace(FIRST, version=9))
    assert shop.read() == (5, NOON + 2 * MICROSECOND)


def test_a_withdrawn_value_gives_way_to_an_older_one_and_to_nothing(shop: Online) -> None:
    shop.serve(row(2, NOON, NOON))
    withdrawn = times_of(NOON, NOON)
    shop.serve(row(1, NOON - timedelta(1), withdrawn=withdrawn), served=replace(FIRST, version=2))
    assert shop.read() == (1, NOON - timedelta(1))
    shop.serve(row(None, NOON, withdrawn=times_of(NOON - timedelta(1), None)), served=replace(FIRST, version=3))
    assert shop.read() is None
    assert shop.found("a") == [(None, None)]


def test_what_is_newer_than_all_that_was_withdrawn_stays(shop: Online) -> None:
    shop.serve(row(2, NOON, NOON))
    shop.push("a", 3, NOON + MICROSECOND)
    shop.serve(row(None, NOON, withdrawn=times_of(NOON, NOON)), served=replace(FIRST, version=2))
    assert shop.read() == (3, NOON + MICROSECOND)


def test_a_materialisation_that_was_overtaken_brings_nothing_back(shop: Online) -> None:
    """Two look at version 1; the one that read version 3 is done before the one that read version 2 begins to write."""
    shop.serve(row(1, NOON))
    before = shop.served()
    shop.serve(row(None, NOON, withdrawn=times_of(NOON, None)), served=replace(FIRST, version=3))
    with pytest.raises(Overtaken), shop.serving(before, replace(FIRST, version=2)):
        pytest.fail("nothing may be written")
    assert (shop.read(), shop.served().version) == (None, 3)
    assert shop.serve(row(2, NOON - timedelta(1)), served=replace(FIRST, version=4)) == 1
    assert shop.read() == (2, NOON - timedelta(1))


@pytest.mark.redis
def test_in_redis_it_may_be_overtaken_while_it_writes(tmp_path: Path, redis_online: dict[str, Any]) -> None:
    shop = Online(tmp_path, redis_online)
    shop.serve(row(1, NOON))
    with shop.serving(shop.served(), replace(FIRST, version=2)) as write:
        shop.serve(row(None, NOON, withdrawn=times_of(NOON, None)), served=replace(FIRST, version=3))
        assert write([row(2, NOON + timedelta(1))]) == 0
    assert (shop.read(), shop.served().version) == (None, 3)
    with shop.serving(shop.served(), replace(FIRST, version=4)) as write:
        second = replace(FIRST, epoch=2, visible_from=2, version=4)
        shop.serve(served=second)
        write([row(2, NOON + timedelta(1))])
    assert (shop.read(), shop.served()) == (None, second)


def test_an_epoch_is_opened_once(shop: Online) -> None:
    opened = replace(FIRST, version=None, visible_from=0)
    shop.serve(row(1, NOON))
    with pytest.raises(Overtaken), shop.serving(opened, FIRST):
        pytest.fail("nothing may be written")


def test_a_new_epoch_replaces_all_but_newer_pushes_and_an_old_one_nothing(shop: Online) -> None:
    other = OnlineRow(key("gone"), {"level": Value(int64_val=9)}, times_of(NOON, NOON))
    shop.serve(row(1, NOON, NOON), other)
    shop.push("pushed", 7, NOON)
    second = replace(FIRST, epoch=2, visible_from=2, version=0)
    shop.serve(row(2, NOON - timedelta(9)), served=second)
    assert [shop.read(name) for name in ("a", "gone", "pushed")] == [(2, NOON - timedelta(9)), None, (7, NOON)]
    with pytest.raises(Overtaken), shop.serving(FIRST, replace(FIRST, version=99)):
        pytest.fail("nothing may be written")
    assert shop.served() == second
    shop.push("gone", 1, NOON - timedelta(30))
    assert shop.read("gone") == (1, NOON - timedelta(30))


@pytest.mark.parametrize("other", [{"version": 4}, {"end_us": 6}, {"version": 9, "end_us": 6}, {"epoch": 0}])
def test_how_far_a_view_was_served_never_moves_back(other: dict[str, Any]) -> None:
    far = replace(FIRST, version=5, end_us=7, reaching_us=7)
    assert not replace(far, **other).may_follow(far)
    assert replace(far, version=6, end_us=8).may_follow(far)


def test_a_value_past_its_ttl_is_not_found(tmp_path: Path, online: dict[str, Any]) -> None:
    shop = Online(tmp_path, online, ttl=timedelta(hours=1))
    shop.push("a", 1, NOON - timedelta(hours=1))
    shop.push("b", 2, NOON - timedelta(hours=1) - MICROSECOND)
    assert [shop.read(name) for name in ("a", "b")] == [(1, NOON - timedelta(hours=1)), None]


def test_ages_are_measured_against_the_clock_or_what_was_served(tmp_path: Path, online: dict[str, Any]) -> None:
    by_clock = Online(tmp_path, {**online, "now": "clock"}, ttl=timedelta(hours=1))
    by_clock.push("a", 1, datetime.now(UTC) - timedelta(minutes=50))
    by_clock.push("b", 2, datetime.now(UTC) - timedelta(minutes=70))
    assert by_clock.read("a") is not None
    assert by_clock.read("b") is None
    by_served = Online(tmp_path, {**online, "now": "served"}, ttl=timedelta(hours=1))
    end_us = times_of(NOON, None)[0]
    rows = [replace(row(n, NOON - timedelta(minutes=m)), key=key(f"{m}")) for n, m in enumerate((60, 61))]
    by_served.serve(*rows, served=replace(FIRST, end_us=end_us, reaching_us=end_us))
    assert [by_served.read(name) is None for name in ("60", "61")] == [False, True]


def test_feast_says_not_found_for_a_missing_entity_and_an_expired_value(tmp_path: Path, online: dict[str, Any]) -> None:
    shop = Online(tmp_path, online, ttl=timedelta(hours=1))
    shop.push("a", 1, NOON)
    shop.push("old", 2, NOON - timedelta(hours=2))
    entities = [{"user_id": name} for name in ("a", "old", "nobody", "a")]

    async def waited() -> Any:
        found = await shop.feast.get_online_features_async(["profile:level"], entities)
        await shop.feast.close()
        return found

    for found in (shop.feast.get_online_features(["profile:level"], entities), asyncio.run(waited())):
        assert found.to_dict()["level"] == [1, None, None, 1]
        statuses = list(found.proto.results[-1].statuses)
        present, missing = FieldStatus.PRESENT, FieldStatus.NOT_FOUND
        assert statuses == [present, missing, missing, present]


def test_pushes_through_feasts_asynchronous_call_keep_to_the_rule(shop: Online) -> None:
    if not shop.store.async_supported.write:
        pytest.skip("a local file is written at once")

    async def push(level: int, event: datetime) -> None:
        store: Any = get_online_store_from_config(shop.config.online_store)
        data = [(key("a"), {"level": Value(int64_val=level)}, event, None)]
        await store.online_write_batch_async(shop.config, shop.view, data, None)
        await store._client_async.aclose()

    asyncio.run(push(1, NOON))
    asyncio.run(push(2, NOON - MICROSECOND))
    assert shop.read() == (1, NOON)


def test_a_view_that_was_deleted_and_applied_again_starts_anew(shop: Online) -> None:
    shop.serve(row(1, NOON), served=replace(FIRST, version=7))
    shop.feast.apply([], objects_to_delete=[shop.view], partial=False)
    shop.feast.apply([user, shop.view])
    assert (shop.read(), shop.served().version) == (None, None)
    again = replace(FIRST, epoch=shop.served().epoch + 1, visible_from=shop.served().epoch + 1)
    shop.serve(row(2, NOON - timedelta(1)), served=again)
    assert shop.read() == (2, NOON - timedelta(1))


def test_a_view_keeps_what_another_view_of_the_same_entity_loses(shop: Online) -> None:
    other = FeatureView(
        name="other",
        entities=[user],
        source=FileSource(path="unread", timestamp_field="event_timestamp"),
        schema=[Field(name="user_id", dtype=String), Field(name="level", dtype=Int64)],
    )
    shop.feast.apply([user, shop.view, other])
    shop.push("a", 1, NOON)
    shop.store.online_write_batch(shop.config, other, [(key("a"), {"level": Value(int64_val=2)}, NOON, None)], None)
    shop.feast.apply([], objects_to_delete=[other], partial=False)
    assert shop.read() == (1, NOON)


def test_the_sqlite_store_needs_no_redis() -> None:
    for module in (rules, online_sqlite, home):
        named = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in named if "redis" in str(node.module)]


def test_many_keys_are_read_at_once(shop: Online) -> None:
    count = 25_000  # more than SQLite takes in one query
    data = [(key(str(n)), {"level": Value(int64_val=n)}, NOON, None) for n in range(0, count, 1_000)]
    shop.store.online_write_batch(shop.config, shop.view, data, None)
    rows = shop.store.online_read(shop.config, shop.view, [key(str(n)) for n in range(count)], ["level"])
    assert [n for n, (_, found) in enumerate(rows) if found] == list(range(0, count, 1_000))
