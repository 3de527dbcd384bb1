"""The retrieval job that the embedded engine hands to Feast: evaluated once when asked for whole, or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage, ValidationReference

from moonlake.errors import InputError
from moonlake.feast_delta.joins.plan import Labels, Pull
from moonlake.feast_delta.sources import SavedDatasetDeltaStorage


class DeltaRetrievalJob(RetrievalJob):
    """A retrieval from Delta tables at fixed versions.

    Attributes:
        versions: Delta version by table name or path, fixed when the job was made, whatever is written meanwhile.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterator[pa.Table]],
        versions: Mapping[str, int],
        *,
        metadata: RetrievalMetadata | None = None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
    ) -> None:
        self.versions = dict(versions)
        self._blocks = blocks
        self._table: pa.Table | None = None
        self._metadata = metadata
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002
    ) -> None:
        """Write the result as a Delta table. Raises InputError for another kind of storage."""
        self.to_delta(path_of(storage, allow_overwrite=allow_overwrite))

    def to_batches(self) -> Iterator[pa.Table]:
        """The result in blocks of label rows, on-demand views included; at least one, and one at a time in memory."""
        blocks = self._blocks() if self._table is None else iter([self._table])
        for block in blocks:
            yield self._of_block(block).to_arrow()

    def to_delta(self, path: str) -> None:
        """Write the result as a Delta table, block by block; what was there is overwritten."""
        blocks = self.to_batches()
        first = next(blocks)

        def batches() -> Iterator[pa.RecordBatch]:
            for block in itertools.chain([first], blocks):
                yield from block.cast(first.schema).to_batches()

        reader = pa.RecordBatchReader.from_batches(first.schema, batches())
        write_deltalake(path, reader, mode="overwrite", schema_mode="overwrite")

    def to_spark(self, spark: Any) -> Any:
        """The result as a frame of a Spark session. It passes through this process: the Spark engine's does not."""
        return spark.createDataFrame(self.to_arrow())

    def to_arrow(self, validation_reference: ValidationReference | None = None, timeout: int | None = None) -> pa.Table:
        """The result, on-demand views included, as an Arrow table."""
        return super().to_arrow(validation_reference, timeout)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        if self._table is None:
            blocks = list(self._blocks())
            self._table = blocks[0] if len(blocks) == 1 else pa.concat_tables(blocks)
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _of_block(self, block: pa.Table) -> DeltaRetrievalJob:
        return DeltaRetrievalJob(
            lambda: iter([block]),
            self.versions,
            metadata=self._metadata,
            full_feature_names=self._full_feature_names,
            on_demand_feature_views=self._on_demand_feature_views,
        )


def path_of(storage: SavedDatasetStorage, *, allow_overwrite: bool) -> str:
    """The path that a saved dataset is to be written to.

    Raises:
        InputError: another kind of storage than a Delta table.
        SavedDatasetLocationAlreadyExists: there is something, and it may not be overwritten.
    """
    if not isinstance(storage, SavedDatasetDeltaStorage):
        raise InputError(f"a saved dataset of this store is a Delta table, found {type(storage).__name__}")
    if not allow_overwrite and Path(storage.path).exists():
        raise SavedDatasetLocationAlreadyExists(location=storage.path)
    return storage.path


def metadata_of(labels: Labels[Any], pull: Pull) -> RetrievalMetadata:
    """The metadata that Feast asks of a retrieval: features, keys, and the span of label times."""
    return RetrievalMetadata(
        features=list(pull.feature_refs),
        keys=[name for name in labels.columns if name != labels.time_column],
        min_event_timestamp=labels.earliest,
        max_event_timestamp=labels.latest,
    )
