"""The retrieval job of the Spark engine: its rows stay in Spark unless they are asked for in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.pandas.types import to_arrow_schema

from moonlake import errors
from moonlake.errors import InputError
from moonlake.feast_delta.joins.arrow_retrieval import DeltaRetrievalJob, path_of
from moonlake.feast_delta.joins.plan import Pull
from moonlake.feast_delta.joins.spark_shards import as_bytes
from moonlake.feast_delta.joins.spark_tables import ROW_BITS, setting

ORDER = "__order"
"""int64 column of a result: the place of a row; the bits above ROW_BITS number its partition."""

_OURS = re.compile(r"moonlake\.errors\.(\w+): (.*)")


@dataclass(frozen=True, slots=True)
class Ordered:
    """A result with ORDER, in whatever order its rows come, and the number of partitions that ORDER numbers."""

    rows: DataFrame
    partitions: int


class DeltaSparkRetrievalJob(SparkRetrievalJob):
    """A retrieval from Delta tables at fixed versions, by Spark.

    Attributes:
        versions: Delta version by table name or path, fixed when the job was made, whatever is written meanwhile.
    """

    def __init__(
        self,
        spark: SparkSession,
        make: Callable[[], Ordered],
        versions: Mapping[str, int],
        *,
        pull: Pull | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        pull = pull or Pull()
        # No query and no configuration: what the base class does with them is done otherwise here.
        on_demand = list(pull.on_demand_feature_views)
        super().__init__(spark, "", pull.full_feature_names, None, on_demand, metadata)  # type: ignore[arg-type]
        self.versions = dict(versions)
        self._make = make
        self._ordered: Ordered | None = None
        self._table: pa.Table | None = None

    def to_spark_df(self) -> DataFrame:
        """The result as a frame of the engine's session, in no order; without on-demand views, which are Python's."""
        return self._result().rows.drop(ORDER)

    def to_spark(self, spark: SparkSession) -> DataFrame:
        """The same as `to_spark_df`, by the name that the embedded engine's job has.

        Raises: InputError: another session.
        """
        if spark.sparkContext is not self.spark_session.sparkContext:
            raise InputError("this result belongs to the Spark session that was active when it was asked for")
        return self.to_spark_df()

    def to_delta(self, path: str) -> None:
        """Write the result as a Delta table by Spark, in order; what was there is overwritten."""
        with _own_errors(), self._times_as_integers():
            rows = self._written_rows()
            rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)

    def to_parquet(self, path: str) -> None:
        """Write the result as a folder of Parquet files by Spark, in order; what was there is overwritten."""
        with _own_errors(), self._times_as_integers():
            self._written_rows().write.mode("overwrite").parquet(path)

    def to_batches(self) -> Iterator[pa.Table]:
        """The result in blocks of label rows, on-demand views included; one partition at a time in this process."""
        with _own_errors():
            rows = self._in_order()
            schema = _utc(to_arrow_schema(rows.schema, timezone="UTC"))
            some = False
            for row in rows.mapInArrow(as_bytes, "rows binary").toLocalIterator():
                some = True
                yield self._of_block(pa.ipc.open_stream(row["rows"]).read_all().cast(schema))
            if not some:
                yield self._of_block(schema.empty_table())

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool | None = False,
        timeout: int | None = None,  # noqa: ARG002
    ) -> None:
        """Write the result as a Delta table. Raises InputError for another kind of storage."""
        self.to_delta(path_of(storage, allow_overwrite=bool(allow_overwrite)))

    def supports_remote_storage_export(self) -> bool:
        """False: `to_parquet` and `to_delta` write to any place that Spark knows."""
        return False

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        if self._table is None:
            with _own_errors():
                found = self._in_order().toArrow()
            self._table = found.cast(_utc(found.schema))
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _result(self) -> Ordered:
        if self._ordered is None:
            with _own_errors():
                self._ordered = self._make()
        return self._ordered

    def _in_order(self) -> DataFrame:
        found = self._result()
        place = f.shiftright(ORDER, ROW_BITS).cast("int")
        return found.rows.repartitionById(max(found.partitions, 1), place).sortWithinPartitions(ORDER).drop(ORDER)

    def _written_rows(self) -> DataFrame:
        if self.on_demand_feature_views:
            names = [view.name for view in self.on_demand_feature_views]
            raise InputError(
                f"on-demand feature views {names} are computed by Python and cannot be written by Spark; leave them "
                "out, or take the rows with to_batches() or to_arrow()"
            )
        return self._in_order()

    def _times_as_integers(self) -> AbstractContextManager[None]:
        # Spark's default, INT96, has no time zone for other readers, and no statistics.
        return setting(self.spark_session, "spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")

    def _of_block(self, block: pa.Table) -> pa.Table:
        return DeltaRetrievalJob(
            lambda: iter([block]),
            self.versions,
            metadata=self.metadata,
            full_feature_names=self.full_feature_names,
            on_demand_feature_views=self.on_demand_feature_views,
        ).to_arrow()


@contextmanager
def _own_errors() -> Iterator[None]:
    """An error of ours that was raised in a Python worker comes out as itself."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        if found := _OURS.search(str(error)):
            raise getattr(errors, found[1])(found[2].strip()) from error
        raise


def _utc(schema: pa.Schema) -> pa.Schema:
    """The schema with all times in UTC: Spark hands them over in the session's time zone."""
    return pa.schema([field.with_type(_utc_type(field.type)) for field in schema])


def _utc_type(found: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(found) and found.tz:
        return pa.timestamp(found.unit, "UTC")
    if pa.types.is_list(found):
        return pa.list_(found.value_field.with_type(_utc_type(found.value_type)))
    return found
