"""The feature store's part in erasure and retention: keys to remove, logs of requests, versions in use."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey

from moonlake.feast_delta.joins.plan import delta_source
from moonlake.feast_delta.online.rules import NamedKey, ServedOnlineStore, moment_of
from moonlake.feast_delta.serving_logs.request_log import log_of_service
from moonlake.feast_delta.store import feature_store
from moonlake.maintenance.erasure import kind_of
from moonlake.maintenance.erasure_search import Search, Searched
from moonlake.settings import Settings


def serve_again(settings: Settings) -> None:
    """Bring every view that is online to what its table holds now, at the moment up to which it was served.

    Sequences of users who acted on a product that went are among what changed.
    """
    found = _store(settings)
    if found is None:
        return
    store, online = found
    for view in store.list_feature_views():
        served = online.served(store.config, view)
        if served.version is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # Feast reports by printing
                store.materialize_incremental(moment_of(served.end_us), feature_views=[view.name])


def forget_online(settings: Settings, names: Mapping[str, frozenset[str]]) -> int:
    """The number of keys that were removed from the online store; nothing is left of them."""
    found = _store(settings)
    if found is None:
        return 0
    store, online = found
    return online.forget(store.config, store.list_feature_views(), names_a_key(names))


def search_online(settings: Settings, search: Search) -> list[Searched]:
    """Search results for an online store that is not a file of the home."""
    found = _store(settings)
    if found is None:
        return []
    store, online = found
    rows, hits = online.search(store.config, search.in_bytes)
    return [Searched("online store", rows=rows, found={"keys": hits} if hits else {})] if rows else []


def logs_of_services(settings: Settings) -> list[str]:
    """The paths of the request logs of all feature services."""
    store = _registered(settings)
    if store is None:
        return []
    logs = (log_of_service(settings, store, service.name).path for service in store.list_feature_services())
    return list(dict.fromkeys(logs))


@dataclass(frozen=True, slots=True)
class VersionsServed:
    """Versions of the lake's tables that the feature store needs.

    Attributes:
        pinned: (table, version) of every source that reads one version only.
        feeds: by table the version that each view was last served from: its change feed is read from there on.
    """

    pinned: tuple[tuple[str, int], ...] = ()
    feeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def versions_served(settings: Settings) -> VersionsServed:
    """The versions that feature sources pin, and those that views were last served from."""
    store = _registered(settings)
    if store is None:
        return VersionsServed()
    online = store._get_provider().online_store
    pinned, feeds = [], defaultdict[str, tuple[int, ...]](tuple)
    for view in store.list_feature_views():
        source = delta_source(view)
        if source.version is not None:
            pinned.append((source.subject, source.version))
        if isinstance(online, ServedOnlineStore):
            served = online.served(store.config, view)
            if served.version is not None and served.version >= 0:
                feeds[source.subject] += (served.version,)
    return VersionsServed(tuple(pinned), dict(feeds))


def names_a_key(names: Mapping[str, frozenset[str]]) -> NamedKey:
    """Whether an entity key has an id that goes, by the kinds that its join keys say."""

    def named(key: EntityKey) -> bool:
        parts = zip(key.join_keys, key.entity_values, strict=True)
        return any(value.string_val in names.get(kind_of(name) or "", ()) for name, value in parts)

    return named


def _store(settings: Settings) -> tuple[FeatureStore, ServedOnlineStore] | None:
    """The feature store and its online store, where definitions were registered and the store is one of ours."""
    store = _registered(settings)
    online = store._get_provider().online_store if store else None
    return (store, online) if store is not None and isinstance(online, ServedOnlineStore) else None


def _registered(settings: Settings) -> FeatureStore | None:
    """The feature store; None where nothing was ever registered in its file."""
    store = feature_store(settings)
    path = str(store.config.registry.path)
    return store if "://" in path or Path(path).exists() else None
