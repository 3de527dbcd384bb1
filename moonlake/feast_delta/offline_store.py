"""Feast's offline store over Delta tables, with the point-in-time rules of DESIGN.md section 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict, _get_requested_on_demand_feature_views
from pydantic import Field

from moonlake.errors import InputError
from moonlake.feast_delta import embedded, writing
from moonlake.feast_delta.home import home_of
from moonlake.feast_delta.plan import delta_source, plan_pull, plan_view
from moonlake.feast_delta.retrieval import DeltaRetrievalJob
from moonlake.feast_delta.snapshots import TableSnapshot, open_path
from moonlake.feast_delta.sources import DeltaSource
from moonlake.lake import arrow_schema, contract
from moonlake.point_in_time import microseconds


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """What one feature store, or one pull, sets.

    Feast's own call has no channel for versions and lengths: `moonlake.feast_delta.store.feature_store` sets them here.
    """

    type: Literal["moonlake.feast_delta.offline_store.DeltaOfflineStore"] = (
        "moonlake.feast_delta.offline_store.DeltaOfflineStore"
    )
    lake: str | None = None
    """Root of the lake tables; default: the lake of the home (MOONLAKE_HOME)."""
    versions: dict[str, int] = Field(default_factory=dict)
    """Delta version to read, by table name or path; a version that the source itself states comes first."""
    sequence_length: int | None = Field(default=None, ge=1)
    """Actions of every behaviour sequence, in place of the length that its source states."""
    sequence_lengths: dict[str, int] = Field(default_factory=dict)
    """The same by the name of the view, before `sequence_length`."""


class DeltaOfflineStore(OfflineStore):
    """Historical features, materialisation pulls and saved datasets from Delta tables, by the embedded engine."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **_: Any,
    ) -> RetrievalJob:
        """A job whose result has one row for each label row, in order: its own columns, then the features.

        Args:
            entity_df: label rows, an Arrow table or a pandas frame: join keys and `event_timestamp`. Feast takes naive
                times of a pandas frame as UTC; naive times of an Arrow table are refused.
            filter_by_created_timestamp: DESIGN.md's `known_by="written"`.

        Raises:
            InputError: label rows of another kind, without a join key or event time, or with a feature's name.
            NotFound: a table, version or column that does not exist.
            PointInTimeError: times or keys that cannot be compared.
        """
        labels = _label_rows(entity_df)
        time_column = _time_column(labels)
        label_times = microseconds(labels[time_column], time_column)
        on_demand = _get_requested_on_demand_feature_views(feature_refs, project, registry)
        by_view, _requested = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        joins = [
            plan_view(
                view,
                list(dict.fromkeys(features)),
                snapshot_of(config, delta_source(view)),
                labels.column_names,
                full_feature_names=full_feature_names,
                sequence_length=config.offline_store.sequence_lengths.get(
                    view.name, config.offline_store.sequence_length
                ),
            )
            for view, features in by_view.items()
        ]
        names = [name for join in joins for _, name in join.features]
        if clash := sorted(set(names) & set(labels.column_names)):
            raise InputError(f"label rows have columns named as features: {clash}; drop them, or ask for full names")
        known_by: Literal["event", "written"] = "written" if filter_by_created_timestamp else "event"

        def evaluate() -> pa.Table:
            result = labels
            for join in joins:
                features = embedded.join_features(labels, label_times, join, known_by)
                for name in features.column_names:
                    result = result.append_column(name, features[name])
            return result

        return DeltaRetrievalJob(
            evaluate,
            {join.source.subject: join.snapshot.version for join in joins},
            metadata=_metadata(labels, time_column, feature_refs),
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
        )

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
        """The latest row of each key in [start_date, end_date]; see `embedded.latest_features`."""
        source = _delta(data_source)
        join = plan_pull(
            source,
            snapshot_of(config, source),
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            sequence_length=config.offline_store.sequence_length,
        )

        def evaluate() -> pa.Table:
            latest = embedded.latest_features(join, start_date, end_date)
            if join_key_columns:
                return latest
            return latest.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * len(latest), pa.string()))

        return DeltaRetrievalJob(evaluate, {source.subject: join.snapshot.version})

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
        """All rows in [start_date, end_date], as they lie in the table (packed rows of a sequence source too)."""
        source = _delta(data_source)
        join = plan_pull(
            source,
            snapshot_of(config, source),
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
        )
        return DeltaRetrievalJob(
            lambda: embedded.features_between(join, start_date, end_date), {source.subject: join.snapshot.version}
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append the rows to the table behind the view; see `writing.append_features`."""
        writing.append_features(config, feature_view, table, progress)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,  # noqa: ARG004
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logs of served features to their Delta destination; see `writing.write_logs`."""
        writing.write_logs(data, source, logging_config, registry)


def snapshot_of(config: RepoConfig, source: DeltaSource) -> TableSnapshot:
    """The version of the source's table that this feature store reads. Raises NotFound when it is not there."""
    options: DeltaOfflineStoreConfig = config.offline_store
    version = source.version if source.version is not None else options.versions.get(source.subject)
    if source.table is None:
        return open_path(str(source.path), version)
    root = options.lake or home_of(config.repo_path).lake
    return open_path(f"{root}/{source.table}", version, empty=arrow_schema(contract(source.table)))


def _delta(source: DataSource) -> DeltaSource:
    if not isinstance(source, DeltaSource):
        raise InputError(f"source {source.name}: the moonlake offline store reads Delta sources, found {type(source)}")
    return source


def _label_rows(rows: pd.DataFrame | pa.Table | str | None) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pd.DataFrame):
        return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    raise InputError(
        f"label rows: expected an Arrow table or a pandas frame, found {type(rows).__name__};"
        " SQL and retrieval by dates alone are not supported"
    )


def _time_column(labels: pa.Table) -> str:
    """`event_timestamp`, or the only timestamp column that there is."""
    times = [field.name for field in labels.schema if pa.types.is_timestamp(field.type)]
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in labels.column_names:
        return DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
    if len(times) != 1:
        raise InputError(f"label rows: name the event time event_timestamp; timestamp columns found: {times}")
    return times[0]


def _metadata(labels: pa.Table, time_column: str, feature_refs: Sequence[str]) -> RetrievalMetadata:
    bounds = pc.min_max(labels[time_column]).as_py()
    return RetrievalMetadata(
        features=list(feature_refs),
        keys=[name for name in labels.column_names if name != time_column],
        min_event_timestamp=bounds["min"],
        max_event_timestamp=bounds["max"],
    )
