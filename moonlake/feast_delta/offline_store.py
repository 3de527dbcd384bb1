"""Feast's offline store over Delta tables, with the point-in-time rules of DESIGN.md section 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import (
    _get_requested_feature_views_to_features_dict,
    _get_requested_on_demand_feature_views,
    compute_non_entity_date_range,
)
from pydantic import Field

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta import feature_writes
from moonlake.feast_delta.home import home_of
from moonlake.feast_delta.joins.arrow_engine import DEFAULT_MEMORY_BUDGET, EmbeddedEngine
from moonlake.feast_delta.joins.arrow_retrieval import DeltaRetrievalJob
from moonlake.feast_delta.joins.plan import (
    Engine,
    Pull,
    Sequences,
    ViewJoin,
    check_labels,
    delta_source,
    plan_pull,
    plan_view,
)
from moonlake.feast_delta.sources import DeltaSource
from moonlake.lake.versions import TableSnapshot, open_path
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.tables import TABLES


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """Options of the offline store, for one feature store or one pull.

    Feast's own call has no channel for versions and lengths: `moonlake.feast_delta.store.feature_store` sets them here.
    """

    type: Literal["moonlake.feast_delta.offline_store.DeltaOfflineStore"] = (
        "moonlake.feast_delta.offline_store.DeltaOfflineStore"
    )
    lake: str | None = None
    """Root of the lake tables; default: the lake of the home (MOONLAKE_HOME)."""
    versions: dict[str, int] = Field(default_factory=dict)
    """Delta version to read, by table name or path; a version that the source itself states comes first."""
    engine: Literal["embedded", "spark"] = "embedded"
    """What joins: this process over Arrow, or the Spark session that is active or that Settings describe."""
    memory_budget_mb: int = Field(default=DEFAULT_MEMORY_BUDGET >> 20, ge=64)
    """Of the embedded engine: megabytes for what it reads, beside the label rows and one block of the result."""
    sequences: Sequences = "inline"
    """Behaviour sequences as lists, or as (start, stop) pointers into a log: see `moonlake.lake.sequence_logs`."""
    sequence_logs: str = ""
    """Folder for those logs, `<view>.arrow` each, laid down when the features are pulled."""
    sequence_length: int | None = Field(default=None, ge=1)
    """Actions of every behaviour sequence, in place of the length that its source states."""
    sequence_lengths: dict[str, int] = Field(default_factory=dict)
    """The same by the name of the view, before `sequence_length`."""


class DeltaOfflineStore(OfflineStore):
    """Historical features, materialisation pulls and saved datasets from Delta tables."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        **_: Any,
    ) -> RetrievalJob:
        """A job whose result has one row for each label row, in order: its own columns, then the features.

        Args:
            entity_df: label rows, that is join keys and `event_timestamp`: a pandas, Arrow or Spark frame, a Delta
                table, or SQL over the lake's tables and delta.`path`. Feast takes naive times of a pandas frame as
                UTC; naive times of any other are refused. None: a row at `end_date` (by default now) for each
                combination of keys that a view has with an event time in [start_date, end_date]; without a
                `start_date` the longest ttl before, or 30 days.
            filter_by_created_timestamp: DESIGN.md's `known_by="written"`.

        Raises:
            InputError: label rows of another kind, without a join key or event time, or with a feature's name.
            NotFound: a table, version or column that does not exist.
            PointInTimeError: times or keys that cannot be compared.
        """
        options: DeltaOfflineStoreConfig = config.offline_store
        if options.sequences == "pointers" and not options.sequence_logs:
            raise InputError("sequences as pointers: state `sequence_logs`, the folder for what they point into")
        on_demand = _get_requested_on_demand_feature_views(feature_refs, project, registry)
        by_view, _requested = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        joins = [
            plan_view(
                view,
                list(dict.fromkeys(features)),
                snapshot_of(config, delta_source(view)),
                full_feature_names=full_feature_names,
                sequence_length=options.sequence_lengths.get(view.name, options.sequence_length),
            )
            for view, features in by_view.items()
        ]
        engine = engine_of(config)
        if entity_df is None:
            window = compute_non_entity_date_range(list(by_view), start_date=start_date, end_date=end_date)
            labels = engine.labels_between(joins, *window)
        else:
            labels = engine.labels(entity_df, _LakeTables(config))
        check_labels(labels, joins)
        pull = Pull(
            feature_refs=feature_refs,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            known_by="written" if filter_by_created_timestamp else "event",
            sequences=options.sequences,
            logs=options.sequence_logs,
        )
        return engine.historical(labels, joins, pull)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The latest row of each key in [start_date, end_date]; see `Engine.latest`."""
        join = _pull(
            config, data_source, join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column
        )
        return engine_of(config).latest(join, start_date, end_date)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows in [start_date, end_date], as they lie in the table (packed rows of a sequence source too).

        Without any feature named, all columns of the table. What is missing is told by the job: Feast makes one for a
        saved dataset that it need not read, when it has a profile of it.
        """
        source = _delta(data_source)
        try:
            named = feature_name_columns or [name for name, _ in source.get_table_column_names_and_types(config)]
            join = _pull(config, source, join_key_columns, named, timestamp_field, created_timestamp_column)
        except NotFound as missing:
            return DeltaRetrievalJob(partial(_refuse, missing), {})
        return engine_of(config).between(join, start_date, end_date)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append the rows to the table behind the view; see `writing.append_features`."""
        feature_writes.append_features(config, feature_view, table, progress)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,  # noqa: ARG004
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logs of served features to their Delta destination; see `writing.write_logs`."""
        feature_writes.write_logs(data, source, logging_config, registry)


def engine_of(config: RepoConfig) -> Engine[Any]:
    """The engine that a feature store is set to; Spark is imported for its own only."""
    options: DeltaOfflineStoreConfig = config.offline_store
    if options.engine == "embedded":
        return EmbeddedEngine(options.memory_budget_mb << 20)
    from moonlake.feast_delta.joins.spark_engine import SparkEngine

    return SparkEngine(home_of(config.repo_path))


def snapshot_of(config: RepoConfig, source: DeltaSource) -> TableSnapshot:
    """The version of the source's table that this feature store reads. Raises NotFound when it is not there."""
    options: DeltaOfflineStoreConfig = config.offline_store
    pinned = source.version if source.version is not None else source.timestamp
    version = pinned if pinned is not None else options.versions.get(source.subject)
    if source.table is None:
        return open_path(str(source.path), version)
    return _lake_table(config, source.table, version)


class _LakeTables(Mapping[str, TableSnapshot]):
    """The tables of the lake by name, opened when they are asked for, at the versions of the feature store."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config

    def __getitem__(self, name: str) -> TableSnapshot:
        return _lake_table(self._config, name, self._config.offline_store.versions.get(name))

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES)

    def __len__(self) -> int:
        return len(TABLES)


def _lake_table(config: RepoConfig, name: str, version: int | datetime | None) -> TableSnapshot:
    root = config.offline_store.lake or home_of(config.repo_path).lake
    return open_path(f"{root}/{name}", version, empty=arrow_schema(contract(name)))


def _pull(
    config: RepoConfig,
    data_source: DataSource,
    join_key_columns: list[str],
    feature_name_columns: list[str],
    timestamp_field: str,
    created_timestamp_column: str | None,
) -> ViewJoin:
    source = _delta(data_source)
    return plan_pull(
        source,
        snapshot_of(config, source),
        join_key_columns,
        feature_name_columns,
        timestamp_field,
        created_timestamp_column,
        sequence_length=config.offline_store.sequence_length,
    )


def _refuse(missing: NotFound) -> Iterator[pa.Table]:
    raise missing


def _delta(source: DataSource) -> DeltaSource:
    if not isinstance(source, DeltaSource):
        raise InputError(f"source {source.name}: the moonlake offline store reads Delta sources, found {type(source)}")
    return source
