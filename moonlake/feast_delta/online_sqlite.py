"""Feast's SQLite online store, moving only forward: the rules of `online_rows` in SQL.

Feast's own table of a view keeps its layout. Beside it lies `<table>_stamps`, one row a key, which decides whether a
write lands; a key whose rows are all gone keeps its stamp and no features. A materialisation is one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id, extract_text_and_num
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from moonlake.feast_delta.online.rules import (
    PUSHED,
    FeastRow,
    FoundRow,
    NamedKey,
    Now,
    OnlineRow,
    Overtaken,
    Served,
    ServedOnlineStore,
    WriteRows,
    moment_of,
    oldest_valid,
    times_of,
)

KEYS_PER_QUERY = 10_000
"""SQLite takes at most 32,766 parameters."""

_CREATE_SERVED = "CREATE TABLE IF NOT EXISTS moonlake_served (view TEXT PRIMARY KEY, served TEXT NOT NULL)"
_CREATE_STAMPS = """
    CREATE TABLE IF NOT EXISTS {stamps} (
        entity_key BLOB PRIMARY KEY, epoch INTEGER, version INTEGER, event_us INTEGER, created_us INTEGER
    ) WITHOUT ROWID
"""
_STAMP = """
    INSERT INTO {stamps} AS online VALUES (:key, :epoch, :version, :event, :created)
    ON CONFLICT (entity_key) DO UPDATE SET
        epoch = excluded.epoch, version = excluded.version,
        event_us = excluded.event_us, created_us = excluded.created_us
    WHERE CASE
        WHEN online.epoch <> :pushed AND :epoch <> :pushed AND online.epoch <> :epoch THEN online.epoch < :epoch
        WHEN online.epoch = :epoch AND online.version > :version THEN false
        ELSE (:event, :created) >= (online.event_us, online.created_us)
            OR (:withdrawn_event, :withdrawn_created) >= (online.event_us, online.created_us)
        END
"""


class DeltaSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Configuration of `DeltaSqliteOnlineStore`."""

    type: Literal["moonlake.feast_delta.online_sqlite.DeltaSqliteOnlineStore"] = (
        "moonlake.feast_delta.online_sqlite.DeltaSqliteOnlineStore"  # type: ignore[assignment]
    )
    now: Now = "clock"
    """What the age of a value is measured against, for the ttl of its view."""


class DeltaSqliteOnlineStore(ServedOnlineStore, SqliteOnlineStore):
    """SQLite online store that only moves forward, keeps to the ttl and says NOT_FOUND for what it does not have."""

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True)

    def served(self, config: RepoConfig, view: FeatureView) -> Served:
        return _served(self._get_conn(config), _table(config, view))

    @contextmanager
    def serving(
        self,
        config: RepoConfig,
        view: FeatureView,
        opened: Served,
        done: Served,
    ) -> Iterator[WriteRows]:
        """All rows and the state in one transaction: of a run that is cut off nothing is there."""
        conn, table = self._get_conn(config), _table(config, view)
        conn.execute(_CREATE_STAMPS.format(stamps=_stamps(table)))
        with conn:
            conn.execute("BEGIN IMMEDIATE")
            stored = _served(conn, table)
            if not opened.may_follow(stored):
                raise Overtaken
            yield lambda rows: self._write(config, view, rows, done.epoch, done.version or 0)
            if done.visible_from > stored.visible_from:
                _forget_epochs_before(conn, table, done.visible_from)
            conn.execute("INSERT OR REPLACE INTO moonlake_served VALUES (?, ?)", (table, done.as_json()))

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Push rows: each lands if it is not older than what is online."""
        conn = self._get_conn(config)
        conn.execute(_CREATE_STAMPS.format(stamps=_stamps(_table(config, table))))
        rows = [OnlineRow(key, values, times_of(event, created)) for key, values, event, created in data]
        with conn:
            conn.execute("BEGIN IMMEDIATE")
            self._write(config, table, rows, PUSHED, 0)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FoundRow]:
        """Event time and features of each key; (None, None) for one that is missing or past the view's ttl."""
        conn, name = self._get_conn(config), _table(config, table)
        oldest = oldest_valid(table, config.online_store.now, lambda: _served(conn, name).end_us)
        keys = [_serialized(config, key) for key in entity_keys]
        found: dict[bytes, FoundRow] = {}
        for at in range(0, len(keys), KEYS_PER_QUERY):
            found |= _read(conn, name, keys[at : at + KEYS_PER_QUERY], requested_features, oldest)
        return [found.get(key, (None, None)) for key in keys]

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FoundRow]:
        """As `online_read`: a local file is not waited for."""
        return self.online_read(config, table, entity_keys, requested_features)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Create the tables of the views to keep; drop those of the views to delete, and what was served of them."""
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)
        conn = self._get_conn(config)
        for view in tables_to_keep:
            conn.execute(_CREATE_STAMPS.format(stamps=_stamps(_table(config, view))))
        for view in tables_to_delete:
            table = _table(config, view)
            with conn:
                conn.execute(f"DROP TABLE IF EXISTS {_stamps(table)}")
                conn.execute("DELETE FROM moonlake_served WHERE view = ?", (table,))

    def forget(self, config: RepoConfig, views: Sequence[FeatureView], named: NamedKey) -> int:
        """Keys that were taken away; the file is written anew, so that their bytes are in no free page either."""
        conn, version = self._get_conn(config), config.entity_key_serialization_version
        forgotten: set[bytes] = set()
        for view in views:
            table = _table(config, view)
            conn.execute(_CREATE_STAMPS.format(stamps=_stamps(table)))
            keys = set[bytes]()
            for of_rows in (_quoted(table), _stamps(table)):
                for (key,) in conn.execute(f"SELECT DISTINCT entity_key FROM {of_rows}"):
                    if named(deserialize_entity_key(key, version)):
                        keys.add(key)
            with conn:
                for of_rows in (_quoted(table), _stamps(table)):
                    conn.executemany(f"DELETE FROM {of_rows} WHERE entity_key = ?", [(key,) for key in keys])
            forgotten |= keys
        conn.execute("VACUUM")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return len(forgotten)

    def search(self, config: RepoConfig, holds: Callable[[bytes], bool]) -> tuple[int, int]:  # noqa: ARG002
        """Nothing: the file is searched with the files of the home."""
        return 0, 0

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        opened = self._conn is not None
        conn: sqlite3.Connection = super()._get_conn(config)
        if not opened:
            conn.execute("PRAGMA journal_mode = WAL")  # readers go on while a view is written
            conn.execute(_CREATE_SERVED)
        return conn

    def _write(self, config: RepoConfig, view: FeatureView, rows: Sequence[OnlineRow], epoch: int, version: int) -> int:
        """Write the rows that may land, within the open transaction; returns how many these are."""
        conn, table = self._get_conn(config), _table(config, view)
        with_number = config.online_store.enable_openai_compatible_store
        stamp = _STAMP.format(stamps=_stamps(table))
        landed, buried = [], []
        for row in rows:
            key, (event, created) = _serialized(config, row.key), row.times
            withdrawn_event, withdrawn_created = row.withdrawn or (None, None)
            told = {"key": key, "epoch": epoch, "version": version, "pushed": PUSHED, "event": event}
            told |= {"created": created, "withdrawn_event": withdrawn_event, "withdrawn_created": withdrawn_created}
            if not conn.execute(stamp, told).rowcount:
                continue
            if row.values is None:
                buried.append((key,))
                continue
            seconds = (event // 1_000_000, None)
            for name, value in row.values.items():
                text, number = extract_text_and_num(value, with_number)
                numbers = (number,) if with_number else ()
                landed.append((key, name, value.SerializeToString(), text, *numbers, *seconds))
        columns = ["entity_key", "feature_name", "value", "value_text", *(["value_num"] if with_number else [])]
        columns += ["event_ts", "created_ts"]
        marks = ", ".join("?" * len(columns))
        conn.executemany(f"INSERT OR REPLACE INTO {_quoted(table)} ({', '.join(columns)}) VALUES ({marks})", landed)
        conn.executemany(f"DELETE FROM {_quoted(table)} WHERE entity_key = ?", buried)
        return len({row[0] for row in landed}) + len(buried)


def _read(
    conn: sqlite3.Connection, table: str, keys: Sequence[bytes], features: Sequence[str] | None, oldest_us: int
) -> dict[bytes, FoundRow]:
    wanted = f"AND feature_name IN ({', '.join('?' * len(features))})" if features else ""
    rows = conn.execute(
        f"""
        SELECT entity_key, event_us, feature_name, value FROM {_stamps(table)} JOIN {_quoted(table)} USING (entity_key)
        WHERE entity_key IN ({", ".join("?" * len(keys))}) AND event_us >= ? {wanted} ORDER BY entity_key
        """,
        [*keys, oldest_us, *(features or ())],
    )
    found: dict[bytes, FoundRow] = {}
    for (key, event_us), values in groupby(rows, itemgetter(0, 1)):
        found[key] = moment_of(event_us), {name: Value.FromString(value) for _, _, name, value in values}
    return found


def _served(conn: sqlite3.Connection, table: str) -> Served:
    row = conn.execute("SELECT served FROM moonlake_served WHERE view = ?", (table,)).fetchone()
    return Served.from_json(row[0]) if row else Served()


def _forget_epochs_before(conn: sqlite3.Connection, table: str, epoch: int) -> None:
    stale = f"SELECT entity_key FROM {_stamps(table)} WHERE epoch < ?"
    conn.execute(f"DELETE FROM {_quoted(table)} WHERE entity_key IN ({stale})", (epoch,))
    conn.execute(f"DELETE FROM {_stamps(table)} WHERE epoch < ?", (epoch,))


def _serialized(config: RepoConfig, key: EntityKey) -> bytes:
    return bytes(serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version))


def _table(config: RepoConfig, view: FeatureView) -> str:
    return compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)


def _stamps(table: str) -> str:
    return _quoted(f"{table}_stamps")


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
