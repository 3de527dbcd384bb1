"""1,000 random histories on each online store: after every materialisation, what is online is what is true.

A history is what happens to one key: rows that arrive in time, late, or ahead of their time, corrections, updates,
deletes, tables overwritten, compacted, vacuumed or made anew, definitions changed and pinned, replays of old windows,
and materialisations that are cut off anywhere, or overtaken by another one. To make 1,000 of them cheap, 25 keys share
a world: one Delta table, one view and one order of events. So their rows differ and are written at random, but a
materialisation, a kill or a changed definition befalls all 25 at once: there are 1,000 histories of rows in 40
independent worlds.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureView, Field, RepoConfig, ValueType
from feast.infra.common.materialization_job import MaterializationTask
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String

from moonlake.feast_delta.materialization import DeltaChangeEngine, ViewServed
from moonlake.feast_delta.offline_store import DeltaOfflineStore
from moonlake.feast_delta.online.rules import OnlineRow, Served, ServedOnlineStore, moment_of
from moonlake.feast_delta.online_sqlite import DeltaSqliteOnlineStore
from moonlake.feast_delta.sources import DeltaSource

WORLDS, KEYS, STEPS = 40, 25, 12
MOMENT = pa.timestamp("us", tz="UTC")
START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("shop", pa.string()),
        ("item", pa.string()),
        ("row", pa.int64()),
        ("price", pa.int64()),
        ("rank", pa.int64()),
        ("event_timestamp", MOMENT),
        ("created_at", MOMENT),
    ]
)
ENTITIES = [Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("shop", "item")]
WHY = (
    "first run",
    "changed keys",
    "changed definition",
    "is older than",
    "enableChangeDataFeed is not true",
    "no change feed since",
    "was cut off",
)
FIELDS = {"shop": String, "item": String, "value": Int64}
HAPPENINGS = {
    "usual": ("write", "write", "write", "delete", "update", "overwrite", "compact", "make anew"),
    "ties": ("write", "write again"),  # a rewrite of files would change which of two equal rows was written last
    "vacuum": ("write", "write", "delete", "update", "vacuum", "vacuum", "feed off and on"),
    "pins": ("write", "write", "delete", "update", "pin a version", "unpin"),
    "reads": ("write", "write", "delete", "read at a version", "read at a version"),
}


Online = dict[int, tuple[int, datetime]]
"""Value and event time by key."""


@dataclass(frozen=True)
class Row:
    key: int
    row: int
    price: int
    rank: int
    event: int
    created: int


def moment(microseconds: int) -> datetime:
    return START + timedelta(microseconds=microseconds)


class World:
    """A Delta table and a list of rows that should be the same; times are microseconds behind START."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.kind = list(HAPPENINGS)[seed % len(HAPPENINGS)]
        self.path = str(folder / f"world_{seed}")
        self.rows: list[Row] = []
        self.at: dict[int, list[Row]] = {}
        self.number = 0
        self.now = 100
        self.column = "price"
        self.pinned: int | None = None
        self.read_at: int | None = None
        self.write()

    @property
    def version(self) -> int:
        """The version that is to be served."""
        return next(pin for pin in (self.pinned, self.read_at, max(self.at)) if pin is not None)

    def view(self) -> FeatureView:
        return FeatureView(
            name="offers",
            entities=ENTITIES,
            source=DeltaSource(
                name="offers_source", path=self.path, version=self.pinned, field_mapping={self.column: "value"}
            ),
            schema=[
                Field(name="shop", dtype=String),
                Field(name="item", dtype=String),
                Field(name="value", dtype=Int64),
            ],
        )

    def true_at(self, version: int, end: datetime) -> Online:
        """The oracle: value and event time of each key, from the rows that a version had."""
        found: Online = {}
        for row in sorted(self.at[version], key=lambda row: (row.event, row.created)):  # equal ones stay as written
            if moment(row.event) <= end:
                found[row.key] = (row.price if self.column == "price" else row.rank, moment(row.event))
        return found

    def happen(self) -> None:
        """Something happens to the table or to the definition."""
        self.now += self.random.randrange(3)
        happening = self.random.choice(HAPPENINGS[self.kind]) if self.rows else "write"
        getattr(self, happening.replace(" ", "_"))()
        if self.random.random() < 0.12:
            self.column = "rank" if self.column == "price" else "price"

    def write(self) -> None:
        """New rows: around now, late, or ahead of their time; some correct an event that is there."""
        rows = [self.new_row() for _ in range(self.random.randint(1, 12))]
        if self.rows and self.random.random() < 0.7:
            rows += [replace(self.new_row(), key=old.key, event=old.event) for old in self.some()]
        self.append(rows)

    def write_again(self) -> None:
        """Rows with the key, event time and created time of others: what was written last counts."""
        self.append([replace(self.new_row(), key=old.key, event=old.event, created=old.created) for old in self.some()])

    def delete(self) -> None:
        gone = {row.row for row in self.some(6)}
        DeltaTable(self.path).delete(f"row in ({', '.join(map(str, gone))})")
        self.became([row for row in self.rows if row.row not in gone])

    def update(self) -> None:
        """Some rows are given other values, and now and then another event time, in place."""
        changed = {row.row: self.new_row() for row in self.some()}
        moves = self.random.random() < 0.5
        for row, to in changed.items():
            updates = {"price": str(to.price), "rank": str(to.rank)}
            if moves:
                updates["event_timestamp"] = f"'{moment(to.event).isoformat()}'"
            DeltaTable(self.path).update(updates=updates, predicate=f"row = {row}")
        self.became(
            [
                replace(row, price=new.price, rank=new.rank, event=new.event if moves else row.event)
                if (new := changed.get(row.row))
                else row
                for row in self.rows
            ]
        )

    def overwrite(self) -> None:
        kept = [row for row in self.rows if self.random.random() < 0.7] or self.rows[:1]
        self.save(kept, mode="overwrite")
        self.became(kept)

    def compact(self) -> None:
        DeltaTable(self.path).optimize.compact()
        self.became(self.rows)

    def vacuum(self) -> None:
        self.write()
        self.compact()
        DeltaTable(self.path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        self.became(self.rows)

    def make_anew(self) -> None:
        rmtree(self.path)
        self.at.clear()
        self.rows = []
        self.write()

    def feed_off_and_on(self) -> None:
        on = DeltaTable(self.path).metadata().configuration.get("delta.enableChangeDataFeed") == "true"
        DeltaTable(self.path).alter.set_table_properties({"delta.enableChangeDataFeed": "false" if on else "true"})
        self.became(self.rows)

    def pin_a_version(self) -> None:
        self.pinned = self.random.choice(list(self.at))

    def unpin(self) -> None:
        self.pinned = None

    def read_at_a_version(self) -> None:
        """The offline store is told which version to read; that is no part of the definition."""
        self.read_at = self.random.choice([None, *self.at])

    def new_row(self) -> Row:
        self.number += 1
        kind = self.random.random()
        event = self.now + self.random.randint(-3, 3)
        if kind < 0.3:
            event = self.random.randint(-(10**9), self.now)
        elif kind < 0.4:
            event = self.now + self.random.randint(3, 30)
        return Row(self.random.randrange(KEYS), self.number, self.number, -self.number, event, self.number)

    def some(self, most: int = 4) -> list[Row]:
        return self.random.sample(self.rows, min(len(self.rows), self.random.randint(1, most)))

    def append(self, rows: list[Row]) -> None:
        self.save(rows, mode="append")
        self.became([*self.rows, *rows])

    def save(self, rows: list[Row], mode: Any) -> None:
        table = {
            "shop": [f"s{row.key % 3}" for row in rows],
            "item": [f"i{row.key}" for row in rows],
            "row": [row.row for row in rows],
            "price": [row.price for row in rows],
            "rank": [row.rank for row in rows],
            "event_timestamp": [moment(row.event) for row in rows],
            "created_at": [moment(row.created) for row in rows],
        }
        options = {} if DeltaTable.is_deltatable(self.path) else {"delta.enableChangeDataFeed": "true"}
        write_deltalake(self.path, pa.table(table, schema=SCHEMA), mode=mode, configuration=options)

    def became(self, rows: list[Row]) -> None:
        self.rows = rows
        self.at[DeltaTable(self.path).version()] = rows


class Killed(Exception):
    """The process of a materialisation is no more."""


class Overtakable:
    """Lets something else happen in the middle of a materialisation."""

    meanwhile: Callable[[], None] | None = None

    def let_others_run(self) -> None:
        others, self.meanwhile = self.meanwhile, None
        if others is not None:
            others()

    def served(self, config: RepoConfig, view: FeatureView) -> Served:
        found: Served = super().served(config, view)  # type: ignore[misc]
        self.let_others_run()
        return found


class MortalSqlite(Overtakable, DeltaSqliteOnlineStore):
    """Dies after a number of steps of SQLite's machine: within a row, between rows, before the state or the commit."""

    MOST_LIVES_LOG10 = 2.5

    def live_for(self, config: RepoConfig, lives: int | None) -> None:
        def step() -> bool:
            nonlocal lives
            assert lives is not None
            lives -= 1
            return lives < 0

        self._get_conn(config).set_progress_handler(step if lives is not None else None, 20)


def mortal_redis() -> ServedOnlineStore:
    from moonlake.feast_delta.online_redis import DeltaRedisOnlineStore

    class MortalRedis(Overtakable, DeltaRedisOnlineStore):
        """Dies after a number of writes, of rows or of state: within a batch, before or behind it.

        Others run when it has looked how far the view was served, or when it has written some rows.
        """

        MOST_LIVES_LOG10 = 1.5
        lives: int | None = None
        overtaken_while_writing = False

        def live_for(self, config: RepoConfig, lives: int | None) -> None:
            self.lives = lives

        def served(self, config: RepoConfig, view: FeatureView) -> Served:
            if self.overtaken_while_writing:
                return DeltaRedisOnlineStore.served(self, config, view)
            return super().served(config, view)

        def _write(self, config: RepoConfig, view: FeatureView, rows: Sequence[OnlineRow], *epoch: int) -> int:
            last = len(rows) if self.lives is None else self.lives
            written = super()._write(config, view, rows[:last], *epoch)
            if last < len(rows):
                raise Killed
            self.lives = None if self.lives is None else self.lives - len(rows)
            self.let_others_run()
            return written

        def _advance(self, config: RepoConfig, view: FeatureView, served: Served) -> bool:
            if self.lives == 0:
                raise Killed
            self.lives = None if self.lives is None else self.lives - 1
            return super()._advance(config, view, served)

    return MortalRedis()


class Serving:
    """The online side of a world: materialises, dies, and is compared with the truth."""

    def __init__(self, world: World, folder: Path, online: dict[str, Any], seen: Counter[str]) -> None:
        self.world, self.seen, self.random = world, seen, world.random
        self.config = RepoConfig(
            project=Path(world.path).name,
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=online,
            offline_store={"type": "moonlake.feast_delta.offline_store.DeltaOfflineStore"},
            entity_key_serialization_version=3,
        )
        self.kind = online["type"]
        self.start_process()
        self.store.update(self.config, [], [world.view()], [], [], False)
        self.asked: list[datetime] = []
        self.served_until = moment(-(10**12))

    def start_process(self) -> None:
        """As a new process would: nothing is left of the one before but what is in the online store."""
        self.store: Any = MortalSqlite() if self.kind.endswith("SqliteOnlineStore") else mortal_redis()
        self.engine = DeltaChangeEngine(
            repo_config=self.config, offline_store=DeltaOfflineStore(), online_store=self.store, rows_per_write=4
        )

    def online(self) -> Online:
        parts = [{"shop": f"s{key % 3}", "item": f"i{key}"} for key in range(KEYS)]
        keys = [
            EntityKey(join_keys=list(part), entity_values=[Value(string_val=value) for value in part.values()])
            for part in parts
        ]
        rows = self.store.online_read(self.config, self.world.view(), keys, ["value"])
        return {key: (row["value"].int64_val, at) for key, (at, row) in enumerate(rows) if row is not None}

    def materialise(self) -> None:
        """Up to about now, or a window of the past again; cut off or overtaken by another now and then."""
        replay = self.random.random() < 0.2
        before, chance = self.online(), self.random.random()
        lives = int(10 ** self.random.uniform(0, self.store.MOST_LIVES_LOG10)) - 1
        self.store.live_for(self.config, lives if chance < 0.4 else None)
        if chance > 0.85:
            self.store.meanwhile = self.other_materialisation
            self.store.overtaken_while_writing = chance > 0.9
        pins = {} if self.world.read_at is None else {self.world.path: self.world.read_at}
        self.config.offline_store.versions = pins
        try:
            end = self.run(replay)
        except (Killed, sqlite3.OperationalError) as death:
            if str(death) not in ("", "interrupted"):
                raise
            self.seen["killed"] += 1
            self.start_process()
            self.compare_after_death(before)
            return
        self.store.live_for(self.config, None)
        self.store.meanwhile = None
        self.compare(self.engine.reports["offers"], end, replay)

    def run(self, replay: bool) -> datetime:
        end = moment(self.random.randint(0, self.world.now) if replay else self.world.now + self.random.randint(-2, 2))
        start = end - timedelta(microseconds=self.random.choice([0, 5, 50, 10**10]))
        self.asked.append(end)
        task = MaterializationTask("", self.world.view(), start, end)
        self.engine._materialize_one(None, task)  # type: ignore[arg-type]
        return end

    def other_materialisation(self) -> None:
        """The table changes, and another process materialises it from beginning to end."""
        if self.world.kind != "ties" and self.world.rows:
            self.world.delete()
        self.world.write()
        mine = self.store, self.engine
        self.start_process()
        self.run(self.random.random() < 0.5)
        self.store, self.engine = mine
        self.seen["overtaken"] += 1

    def compare(self, report: ViewServed, end: datetime, replay: bool) -> None:
        world, found = self.world, self.online()
        state = self.store.served(self.config, world.view())
        until = moment_of(state.end_us)
        assert found == world.true_at(state.version, until)
        assert state.version == world.version
        assert end <= until <= max(self.asked)
        assert until >= self.served_until
        self.served_until = until
        why = next(part for part in WHY if part in report.why)
        self.seen[why] += 1
        self.seen["replayed"] += replay and until > end
        self.seen["gone"] += len({row.key for row in world.at[state.version]} ^ found.keys())

    def compare_after_death(self, before: Online) -> None:
        """Raise unless each key has its old value online or, in Redis, the one that the dead run was about to serve."""
        meant = [self.world.true_at(self.world.version, end) for end in self.asked]
        for key, value in self.online().items() | before.items():
            if self.kind.endswith("SqliteOnlineStore"):
                assert before.get(key) == value
        if not self.kind.endswith("SqliteOnlineStore"):
            found = self.online()
            for key in range(KEYS):
                assert found.get(key) in [before.get(key), *(then.get(key) for then in meant)]


@pytest.mark.slow
def test_what_is_online_is_what_is_true_after_every_materialisation(online: dict[str, Any], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        world = World(seed, tmp_path)
        serving = Serving(world, tmp_path, online, seen)
        for _ in range(STEPS):
            for _ in range(world.random.randint(0, 2)):
                world.happen()
            serving.materialise()
        serving.store.live_for(serving.config, None)
    expected = dict.fromkeys(WHY, 1) | {"changed keys": 200, "killed": 50, "replayed": 30, "gone": 300, "overtaken": 20}
    if online["type"].endswith("SqliteOnlineStore"):
        del expected["was cut off"]  # there nothing of a run that was cut off is left
    assert {what for what, least in expected.items() if seen[what] < least} == set(), dict(seen)
