"""The engine that Feast materialises with: the latest rows go from Delta to the online store in Arrow, never in pandas.

Feast's own local engine reads every row of the window and turns it into a pandas frame, in which an integer with a
null becomes a float.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _convert_arrow_to_proto, _get_column_names

from moonlake.feast_delta.plan import delta_source

ROWS_PER_WRITE = 10_000


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
            written = _convert_arrow_to_proto(batch, view, key_types)
            self.online_store.online_write_batch(self.repo_config, view, written, progress.update if progress else None)
        if progress:
            progress.close()
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)


def _still_valid(view: FeatureView, start: datetime, end: datetime) -> datetime:
    """The start of the window, moved up so that no row enters that is past the view's ttl at its end."""
    return max(start, end - view.ttl) if view.ttl else start
