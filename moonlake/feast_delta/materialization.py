"""The engine that Feast materialises with: the latest row of each key goes from Delta to the online store.

Feast's own local engine reads every row of the window and hands it on in pandas and numpy, where an integer column with
a null becomes floats and ids beyond 2**53 change.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from feast import FeatureView, ValueType
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values
from feast.utils import _get_column_names

from moonlake.feast_delta.plan import delta_source

ROWS_PER_WRITE = 10_000

OnlineRow: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class DeltaEngineConfig(FeastConfigBaseModel):
    """Configuration of `DeltaEngine`."""

    type: Literal["moonlake.feast_delta.materialization.DeltaEngine"] = (
        "moonlake.feast_delta.materialization.DeltaEngine"
    )


class DeltaEngine(LocalComputeEngine):
    """Writes the latest row of each key, as of the end of the window, into the online store."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None) or view.source_views:
            return super()._materialize_one(registry, task, **kwargs)
        source = delta_source(view)
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, event_column, created_column = _get_column_names(view, entities)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=event_column,
            created_timestamp_column=created_column,
            start_date=_still_valid(view, task.start_time, task.end_time),
            end_date=task.end_time,
        )
        rows = job.to_arrow()
        names = source.field_mapping
        rows = rows.rename_columns([names.get(name, name) for name in rows.column_names]).combine_chunks()
        key_types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        progress = task.tqdm_builder(len(rows)) if task.tqdm_builder else None
        for batch in rows.to_batches(max_chunksize=ROWS_PER_WRITE):
            written = online_rows(batch, view, key_types)
            self.online_store.online_write_batch(self.repo_config, view, written, progress.update if progress else None)
        if progress:
            progress.close()
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)


def online_rows(rows: pa.RecordBatch, view: FeatureView, key_types: Mapping[str, ValueType]) -> list[OnlineRow]:
    """The rows as online stores take them: entity key, features by name, event time, created time.

    Args: rows: columns named as the view's features, join keys and times.
    """
    types = {**key_types, **{feature.name: feature.dtype.to_value_type() for feature in view.features}}
    values = {
        name: python_values_to_proto_values(rows[name].to_pylist(maps_as_pydicts="strict"), of_type)
        for name, of_type in types.items()
    }
    source = delta_source(view)
    created = source.created_timestamp_column
    keys = [
        EntityKey(join_keys=list(key_types), entity_values=parts)
        for parts in zip(*(values[name] for name in key_types), strict=True)
    ]
    names = [feature.name for feature in view.features]
    features = [dict(zip(names, row, strict=True)) for row in zip(*(values[name] for name in names), strict=True)]
    written = rows[created].to_pylist() if created else [None] * rows.num_rows
    return list(zip(keys, features, rows[source.timestamp_field].to_pylist(), written, strict=True))


def _still_valid(view: FeatureView, start: datetime, end: datetime) -> datetime:
    """The start of the window, moved up so that no row enters that is past the view's ttl at its end."""
    return max(start, end - view.ttl) if view.ttl else start
