"""Feast's Redis online store, moving only forward: the rules of `online_rows` in a Lua script, atomic for each key.

The hash of an entity key keeps Feast's fields, so that other clients of Feast can read it. Beside them each view has a
stamp, the field `_at:<view>`; a key whose rows are all gone keeps its stamp alone. How far a view was served stands in
a hash of its own, written when all rows are. Needs the extra `redis`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig, utils
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key, _redis_key_prefix, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from moonlake.feast_delta.online.rules import (
    NEVER_US,
    PUSHED,
    FeastRow,
    FoundRow,
    NamedKey,
    Now,
    OnlineRow,
    Overtaken,
    Served,
    ServedOnlineStore,
    Times,
    WriteRows,
    moment_of,
    oldest_valid,
    times_of,
)

KEYS_PER_SCAN = 1_000
"""Keys that Redis looks at before it answers a scan."""
_DIGITS = 20
"""Every part of a stamp is a number of this many digits, so that text compares as numbers do: Lua's are inexact."""

_WRITE = f"""
-- KEYS: entity key. ARGV: stamp field, stamp, withdrawn times or '', first epoch that is served, seconds to live or 0,
-- n, then n fields to delete, then fields and values to set. A stamp is epoch, version, event, created.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local epoch, mine = string.sub(stored, 1, 20), string.sub(ARGV[2], 1, 20)
  local pushed = '{PUSHED:020d}'
  local times = string.sub(stored, 41)
  local lands = string.sub(ARGV[2], 41) >= times or ARGV[3] >= times
  if epoch ~= pushed and epoch < ARGV[4] then
    lands = mine > epoch
  elseif epoch ~= pushed and mine ~= pushed then
    if epoch ~= mine then
      lands = mine > epoch
    elseif string.sub(stored, 21, 40) > string.sub(ARGV[2], 21, 40) then
      lands = false
    end
  end
  if not lands then return 0 end
end
local n = tonumber(ARGV[6])
if n > 0 then redis.call('HDEL', KEYS[1], unpack(ARGV, 7, 6 + n)) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], unpack(ARGV, 7 + n))
if ARGV[5] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[5]) end
return 1
"""

_ADVANCE = """
-- KEYS: hash of a view. ARGV: epoch, version or 0, end, first epoch that is served, state. `Served.may_follow`.
local stored = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'end')
if stored[1] then
  if stored[1] > ARGV[1] then return 0 end
  if stored[1] == ARGV[1] then
    if tonumber(ARGV[2]) == 0 or stored[2] > ARGV[2] or stored[3] > ARGV[3] then return 0 end
  end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'version', ARGV[2], 'end', ARGV[3], 'visible', ARGV[4], 'served', ARGV[5])
return 1
"""


class DeltaRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Configuration of `DeltaRedisOnlineStore`."""

    type: Literal["moonlake.feast_delta.online_redis.DeltaRedisOnlineStore"] = (
        "moonlake.feast_delta.online_redis.DeltaRedisOnlineStore"  # type: ignore[assignment]
    )
    now: Now = "clock"
    """What the age of a value is measured against, for the ttl of its view."""


class DeltaRedisOnlineStore(ServedOnlineStore, RedisOnlineStore):
    """Redis online store that only moves forward, keeps to the ttl and says NOT_FOUND for what it does not have."""

    def served(self, config: RepoConfig, view: FeatureView) -> Served:
        text = self._get_client(config.online_store).hget(_served_key(config, view), "served")
        return Served.from_json(text) if text else Served()

    @contextmanager
    def serving(self, config: RepoConfig, view: FeatureView, opened: Served, done: Served) -> Iterator[WriteRows]:
        """The rows in pipelines, the state when all are there: after a run that was cut off, the next serves it all."""
        if not self._advance(config, view, opened):
            raise Overtaken
        yield lambda rows: self._write(config, view, rows, done.epoch, done.version or 0, opened.visible_from)
        self._advance(config, view, done)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Push rows: each lands if it is not older than what is online."""
        rows = [OnlineRow(key, values, times_of(event, created)) for key, values, event, created in data]
        self._write(config, table, rows, PUSHED, 0, self.served(config, table).visible_from)
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As `online_write_batch`."""
        client = await self._get_client_async(config.online_store)
        visible = await client.hget(_served_key(config, table), "visible")
        rows = [OnlineRow(key, values, times_of(event, created)) for key, values, event, created in data]
        write = await client.script_load(_WRITE)
        commands = _Commands(config, table, PUSHED, 0, int(visible or 0))
        async with client.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.evalsha(write, 1, *commands.arguments(row))
            await pipe.execute()
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
        query = _Query(config, table, entity_keys, requested_features)
        return query.rows(self._read_hash_fields(config, query.commands))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FoundRow]:
        """As `online_read`."""
        query = _Query(config, table, entity_keys, requested_features)
        return query.rows(await self._read_hash_fields_async(config, query.commands))

    def _read_features_per_fv(
        self, config: RepoConfig, grouped_refs: Any, key_values: Any, key_names: Any, *response: Any
    ) -> None:
        """Fill Feast's response (with full names? with versions?), all views in one pipeline."""
        queries, places = _queries(config, grouped_refs, key_values, key_names)
        _fill(queries, places, self._read_hash_fields(config, _commands(queries)), *response)

    async def _read_features_per_fv_async(
        self, config: RepoConfig, grouped_refs: Any, key_values: Any, key_names: Any, *response: Any
    ) -> None:
        """As `_read_features_per_fv`."""
        queries, places = _queries(config, grouped_refs, key_values, key_names)
        _fill(queries, places, await self._read_hash_fields_async(config, _commands(queries)), *response)

    async def _read_hash_fields_async(self, config: RepoConfig, commands: Sequence[_Command]) -> list[_Fields]:
        client = await self._get_client_async(config.online_store)
        async with client.pipeline(transaction=False) as pipe:
            for key, fields in commands:
                pipe.hmget(key, fields)
            found: list[_Fields] = await pipe.execute()
        return found

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Delete all that the view has online. How far it was served stays: no epoch may come twice."""
        client = self._get_client(config.online_store)
        fields = [_stamp_field(config, table), *_feast_fields(config, table, [f.name for f in table.features])]
        pattern = b"".join([_redis_key_prefix(table.join_keys), b"*", config.project.encode()])
        with client.pipeline(transaction=False) as pipe:
            for key in client.scan_iter(pattern):
                pipe.hdel(key, *fields)
            pipe.execute()

    def forget(self, config: RepoConfig, views: Sequence[FeatureView], named: NamedKey) -> int:
        """Keys that were taken away. All keys of the views are scanned for them."""
        client, project = self._get_client(config.online_store), config.project.encode()
        keys: set[bytes] = set()
        for prefix in {bytes(_redis_key_prefix(view.join_keys)) for view in views}:
            for key in client.scan_iter(_literal(prefix) + b"*" + _literal(project), count=KEYS_PER_SCAN):
                with suppress(ValueError):  # a key of another project, whose name ends like ours
                    entity = key.removesuffix(project)
                    if named(deserialize_entity_key(entity, config.entity_key_serialization_version)):
                        keys.add(key)
        return int(client.delete(*keys)) if keys else 0

    def search(self, config: RepoConfig, holds: Callable[[bytes], bool]) -> tuple[int, int]:
        """Keys of the project, and how many of them hold what is asked, in the key or in a value."""
        client = self._get_client(config.online_store)
        rows = hits = 0
        for key in client.scan_iter(b"*" + _literal(config.project.encode()), count=KEYS_PER_SCAN, _type="HASH"):
            rows += 1
            hits += holds(key) or any(map(holds, client.hvals(key)))
        return rows, hits

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Delete what the views to delete have online, if the configuration lets Redis be scanned for it."""
        for view in tables_to_delete:
            epoch = self.served(config, view).epoch
            self._advance(config, view, Served(epoch + 1, visible_from=epoch + 1))
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete everything that the views have online."""
        super().teardown(config, tables, entities)
        for view in tables:
            self._get_client(config.online_store).delete(_served_key(config, view))

    def _write(
        self,
        config: RepoConfig,
        view: FeatureView,
        rows: Sequence[OnlineRow],
        epoch: int,
        version: int,
        visible_from: int,
    ) -> int:
        client = self._get_client(config.online_store)
        write = client.script_load(_WRITE)
        commands = _Commands(config, view, epoch, version, visible_from)
        with client.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.evalsha(write, 1, *commands.arguments(row))
            return sum(pipe.execute())

    def _advance(self, config: RepoConfig, view: FeatureView, served: Served) -> bool:
        """Keep how far the view was served, if that may follow what is stored; says whether it was."""
        version = 0 if served.version is None else served.version + 2  # -1, a table that was never written, is 1
        numbers = [_number(served.epoch), _number(version), _time(served.end_us), str(served.visible_from)]
        client = self._get_client(config.online_store)
        return bool(client.eval(_ADVANCE, 1, _served_key(config, view), *numbers, served.as_json()))


_Command = tuple[bytes, list[str | bytes]]
_Fields = Sequence[Any]
"""Bytes, or None, for each field."""


class _Query:
    """An online read of one view: commands for Redis, and rows made of the answers."""

    def __init__(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[EntityKey], features: Sequence[str] | None
    ) -> None:
        self.now: Now = config.online_store.now
        self.view = view
        self.features = list(features or (feature.name for feature in view.features))
        values = _feast_fields(config, view, self.features)[1:]
        fields: list[str | bytes] = [_stamp_field(config, view), *values]
        of_rows = [(_hash_key(config, key), fields) for key in keys]
        self.commands: list[_Command] = [(_served_key(config, view), ["visible", "end"]), *of_rows]

    def rows(self, found: Sequence[_Fields]) -> list[FoundRow]:
        """The rows of the keys, from what the commands gave."""
        (visible, end), *of_rows = found
        oldest = oldest_valid(self.view, self.now, lambda: _time_of(end) if end else NEVER_US)
        return [self._row(fields, int(visible or 0), oldest) for fields in of_rows]

    def _row(self, fields: _Fields, visible: int, oldest_us: int) -> FoundRow:
        stamp, *values = fields
        if stamp is None or int(stamp[:_DIGITS]) < visible:
            return None, None
        event_us = _time_of(stamp[2 * _DIGITS : 3 * _DIGITS])
        if event_us < oldest_us or event_us == NEVER_US:
            return None, None
        of_features = zip(self.features, values, strict=True)
        return moment_of(event_us), {name: Value.FromString(value) for name, value in of_features if value is not None}


def _queries(
    config: RepoConfig, grouped_refs: Any, key_values: Any, key_names: Any
) -> tuple[list[_Query], list[tuple[Any, int]]]:
    """A query for each view, and where its rows stand in the response."""
    queries, places = [], []
    for view, features in grouped_refs:
        entities, indices, length = utils._get_unique_entities(view, key_values, key_names)
        queries.append(_Query(config, view, utils._get_entity_key_protos(entities), features))
        places.append((indices, length))
    return queries, places


def _commands(queries: Sequence[_Query]) -> list[_Command]:
    return [command for query in queries for command in query.commands]


def _fill(
    queries: Sequence[_Query],
    places: Sequence[tuple[Any, int]],
    found: Sequence[_Fields],
    response: Any,
    full_names: bool,
    with_versions: bool,
) -> None:
    at = 0
    for query, (indices, length) in zip(queries, places, strict=True):
        rows = query.rows(found[at : at + len(query.commands)])
        at += len(query.commands)
        utils._populate_response_from_feature_data(
            query.features, rows, indices, response, full_names, query.view, length, with_versions
        )


class _Commands:
    """Makes the key and arguments of the write script for rows of one view, epoch and version."""

    def __init__(self, config: RepoConfig, view: FeatureView, epoch: int, version: int, visible_from: int) -> None:
        self.config, self.view = config, view
        self.stamp_field = _stamp_field(config, view)
        names = [feature.name for feature in view.features]
        self.event_field, *fields = _feast_fields(config, view, names)
        self.fields = dict(zip(names, fields, strict=True))
        self.read_at = _number(epoch) + _number(version + 1)
        self.visible_from = _number(visible_from)
        self.seconds_to_live = config.online_store.key_ttl_seconds or 0

    def arguments(self, row: OnlineRow) -> list[Any]:
        stamp = self.read_at + _both(row.times)
        withdrawn = _both(row.withdrawn) if row.withdrawn else ""
        key = _hash_key(self.config, row.key)
        rule = [key, self.stamp_field, stamp, withdrawn, self.visible_from, self.seconds_to_live]
        if row.values is None:
            return [*rule, 1 + len(self.fields), self.event_field, *self.fields.values()]
        seconds, microseconds = divmod(row.times[0], 1_000_000)
        event = Timestamp(seconds=seconds, nanos=microseconds * 1_000)
        written = [0, self.event_field, event.SerializeToString()]
        for name, value in row.values.items():
            written += (self._field(name), value.SerializeToString())
        return rule + written

    def _field(self, name: str) -> str | bytes:
        """Feast's field of a value, which need not be a feature: of an on-demand view Feast writes the keys too."""
        if name not in self.fields:
            self.fields[name] = _feast_fields(self.config, self.view, [name])[1]
        return self.fields[name]


def _feast_fields(config: RepoConfig, view: FeatureView, features: Sequence[str]) -> list[str | bytes]:
    """Feast's fields of a view: its event time, then the features."""
    name = _name(config, view)
    return [f"_ts:{name}", *(_mmh3(f"{name}:{feature}") for feature in features)]


def _stamp_field(config: RepoConfig, view: FeatureView) -> str:
    return f"_at:{_name(config, view)}"


def _served_key(config: RepoConfig, view: FeatureView) -> bytes:
    return f"moonlake:served:{config.project}:{_name(config, view)}".encode()


def _hash_key(config: RepoConfig, key: EntityKey) -> bytes:
    return bytes(_redis_key(config.project, key, config.entity_key_serialization_version))


def _name(config: RepoConfig, view: FeatureView) -> str:
    return str(compute_versioned_name(view, config.registry.enable_online_feature_view_versioning))


def _literal(part: bytes) -> bytes:
    """Bytes that a pattern of Redis takes as they are."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", part)


def _number(number: int) -> str:
    return f"{number:0{_DIGITS}d}"


def _time(microseconds: int) -> str:
    return _number(microseconds - NEVER_US)


def _time_of(digits: bytes) -> int:
    return int(digits) + NEVER_US


def _both(times: Times) -> str:
    return _time(times[0]) + _time(times[1])
