"""The feature store of a home, for jobs and serving: Feast's API over our sources, at pinned versions if asked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from feast import FeatureStore, FeatureView, Field, RepoConfig
from feast.errors import FeatureServiceNotFoundException
from feast.repo_operations import apply_total
from feast.types import from_feast_to_pyarrow_type

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.joins.plan import alias_of, delta_source
from moonlake.feast_delta.offline_store import snapshot_of
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.hashing import stable_hash
from moonlake.settings import Settings


def feature_store(
    settings: Settings,
    *,
    versions: Mapping[str, int] | None = None,
    sequence_length: int | None = None,
    sequence_lengths: Mapping[str, int] | None = None,
    sequence_logs: Path | None = None,
) -> FeatureStore:
    """Feast's feature store for `feature_store.yaml` of the settings' feature repository, in their home.

    Args:
        versions: Delta version to read, by table name or path; the others are read at their latest.
        sequence_length: actions of every behaviour sequence, in place of what the sources state.
        sequence_lengths: the same by the name of the view, before `sequence_length`.
        sequence_logs: pulls sequences as pointers into logs in this folder; None as lists.

    Raises: NotFound: there is no feature_store.yaml in the repository.
    """
    repo = settings.feature_repo
    path = repo / "feature_store.yaml"
    if not path.is_file():
        raise NotFound(f"there is no feature repository at {repo} ({path.name} is missing): set MOONLAKE_FEATURE_REPO")
    stated: dict[str, Any] = yaml.safe_load(os.path.expandvars(path.read_text()))
    home = settings.feast.absolute()
    stated["registry"]["path"] = str(home / stated["registry"]["path"])
    if "path" in stated["online_store"]:  # a store on a server has none
        stated["online_store"]["path"] = str(home / stated["online_store"]["path"])
    stated["offline_store"] |= {
        "lake": settings.lake,
        "versions": dict(versions or {}),
        "sequence_length": sequence_length,
        "sequence_lengths": dict(sequence_lengths or {}),
        "sequences": "pointers" if sequence_logs else "inline",
        "sequence_logs": str(sequence_logs or ""),
    }
    config = RepoConfig(**stated)
    config.repo_path = repo
    store = FeatureStore(config=config)
    # Else every reader is refused while a view is materialised, and for as long after that as it caches the registry.
    # Stated in the file, Feast warns that it does nothing with a registry such as ours, which is not so.
    store.registry.serve_features_while_materializing = True
    return store


def apply(settings: Settings) -> FeatureStore:
    """The feature store after the repository's definitions were registered, as `feast apply` does it."""
    store = feature_store(settings)
    folder = str(settings.feature_repo)
    # Feast imports the files of a repository by bare name from the working folder, and reports by printing.
    with contextlib.chdir(folder), _importable(folder), contextlib.redirect_stdout(io.StringIO()):
        apply_total(store.config, Path(folder), skip_source_validation=False)
    store.refresh_registry()  # type: ignore[no-untyped-call]
    return store


def service_views(store: FeatureStore, service: str) -> list[FeatureView]:
    """The feature views of a service, each projected to what the service takes. Raises NotFound for an unknown one."""
    try:
        projections = store.get_feature_service(service).feature_view_projections
    except FeatureServiceNotFoundException:
        known = ", ".join(sorted(found.name for found in store.list_feature_services())) or "none"
        raise NotFound(f"no feature service {service}; registered: {known} (moonlake feature apply)") from None
    return [store.get_feature_view(projection.name).with_projection(projection) for projection in projections]


def online_features(store: FeatureStore, service: str, keys: Mapping[str, Sequence[str]]) -> pa.Table:
    """The keys and the online features of a service, as training rows have them: same columns, types and nulls.

    Args: keys: values by join key, one for each row.
    Raises: NotFound: an unknown service.   InputError: other join keys than those that the service is read by.
    """
    views = service_views(store, service)
    wanted = list(dict.fromkeys(name for view in views for name in view.join_keys))
    if set(wanted) != set(keys):
        raise InputError(f"feature service {service} is read by the join keys {wanted}, found {sorted(keys)}")
    entities = {name: list(values) for name, values in keys.items()}
    found = store.get_online_features(store.get_feature_service(service), entities).to_dict()
    columns = {name: pa.array(entities[name], pa.string()) for name in wanted}
    for view in views:
        for feature in view.projection.features:
            columns[feature.name] = online_column(view, feature, found[feature.name])
    return pa.table(columns)


def online_column(view: FeatureView, feature: Field, values: Sequence[Any]) -> pa.Array:
    """Online values of a feature, as Feast gives them, as a training row has them.

    Feast's online values cannot say everything that a training row says. An id that is missing within a sequence comes
    back as "" (which no id is): it is null here. A user without a stored sequence has acted on nothing: it is empty.
    """
    if isinstance(delta_source(view), BehaviorSequenceSource):
        values = [[None if each == "" else each for each in sequence or ()] for sequence in values]
    return pa.array(values, from_feast_to_pyarrow_type(feature.dtype))


def versions_read(store: FeatureStore, views: Sequence[FeatureView]) -> dict[str, int]:
    """The Delta version of each table that a pull of the views would read now, by table name or path."""
    sources = [delta_source(view) for view in views]
    return {source.subject: snapshot_of(store.config, source).version for source in sources}


def definition_of(view: FeatureView) -> dict[str, Any]:
    """Everything about a view that decides what a pull gives, as JSON values."""
    source = delta_source(view)
    return {
        "view": view.name,
        "alias": alias_of(view),
        "join_keys": {name: view.projection.join_key_map.get(name, name) for name in view.join_keys},
        "features": {feature.name: str(feature.dtype) for feature in view.projection.features},
        "ttl_seconds": view.ttl.total_seconds() if view.ttl else 0,
        "source": {"class": type(source).__name__, **source.configuration()},
        "times": [source.timestamp_field, source.created_timestamp_column],
        "field_mapping": source.field_mapping,
    }


def definitions_hash(views: Sequence[FeatureView]) -> str:
    """Hash of the definitions of views: equal hashes promise equal features from equal table versions."""
    return stable_hash(json.dumps([definition_of(view) for view in views], sort_keys=True))


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
