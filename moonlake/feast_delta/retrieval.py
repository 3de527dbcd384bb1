"""The retrieval job that our offline store hands to Feast: evaluated once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage, ValidationReference

from moonlake.errors import InputError
from moonlake.feast_delta.sources import SavedDatasetDeltaStorage


class DeltaRetrievalJob(RetrievalJob):
    """A retrieval from Delta tables at fixed versions.

    Attributes:
        versions: Delta version by table name or path, fixed when the job was made, whatever is written meanwhile.
    """

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        versions: Mapping[str, int],
        *,
        metadata: RetrievalMetadata | None = None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
    ) -> None:
        self.versions = dict(versions)
        self._evaluate = evaluate
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
        if not isinstance(storage, SavedDatasetDeltaStorage):
            raise InputError(f"a saved dataset of this store is a Delta table, found {type(storage).__name__}")
        if not allow_overwrite and Path(storage.path).exists():
            raise SavedDatasetLocationAlreadyExists(location=storage.path)
        write_deltalake(storage.path, self.to_arrow(), mode="overwrite", schema_mode="overwrite")

    def to_arrow(self, validation_reference: ValidationReference | None = None, timeout: int | None = None) -> pa.Table:
        """The result, on-demand views included, as an Arrow table."""
        return super().to_arrow(validation_reference, timeout)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        if self._table is None:
            self._table = self._evaluate()
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()
