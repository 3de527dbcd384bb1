"""The Spark engine: label rows, features and results are frames, and the kernel runs in shards of the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from moonlake.feast_delta.joins.arrow_retrieval import metadata_of
from moonlake.feast_delta.joins.plan import Labels, Pull, ViewJoin, microseconds_of
from moonlake.feast_delta.joins.spark_join import (
    Limits,
    SparkLabels,
    between,
    chosen_rows,
    joined,
    latest_positions,
    sequences,
)
from moonlake.feast_delta.joins.spark_labels import numbered, spark_labels
from moonlake.feast_delta.joins.spark_retrieval import ORDER, DeltaSparkRetrievalJob, Ordered
from moonlake.feast_delta.joins.spark_shards import LABEL, LAST
from moonlake.feast_delta.joins.spark_tables import POSITION, column, file_count, moment, table_rows
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.lake.versions import TableSnapshot
from moonlake.settings import Settings
from moonlake.spark.session import running_session, session_until_exit

_TIME = "event_timestamp"


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """Joins within the Spark session that is active, or else the one that the settings describe."""

    settings: Settings
    limits: Limits = field(default_factory=Limits)

    @property
    def session(self) -> SparkSession:
        """The session of this process."""
        return running_session() or session_until_exit(self.settings, "feast")

    def labels(self, rows: object, tables: Mapping[str, TableSnapshot]) -> SparkLabels:
        """The label rows as a frame; see `spark_labels`."""
        return spark_labels(self.session, rows, tables)

    def labels_between(self, joins: Sequence[ViewJoin], start: datetime, end: datetime) -> SparkLabels:
        """One label row at `end` for each combination of keys that a view has in [start, end]."""
        found = []
        for join in joins:
            possible, condition = between(join, microseconds_of(start), microseconds_of(end))
            names = [*(name for _, name in join.keys), join.event_column, *join.source.columns_used()]
            rows = table_rows(self.session, join.snapshot, names, possible).where(condition)
            found.append(rows.select(*(column(source).alias(label) for label, source in join.keys)).distinct())
        keys = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), found).distinct()
        return numbered(keys.withColumn(_TIME, moment(microseconds_of(end))), _TIME)

    def historical(self, labels: Labels[DataFrame], joins: Sequence[ViewJoin], pull: Pull) -> DeltaSparkRetrievalJob:
        """The label rows with the features of all views."""
        assert isinstance(labels, SparkLabels)

        def rows() -> Ordered:
            found = joined(labels, joins, pull, self.limits)
            return Ordered(found.withColumnRenamed(LABEL, ORDER), labels.partitions)

        versions = {join.source.subject: join.snapshot.version for join in joins}
        return DeltaSparkRetrievalJob(self.session, rows, versions, pull=pull, metadata=metadata_of(labels, pull))

    def latest(self, join: ViewJoin, start: datetime, end: datetime) -> DeltaSparkRetrievalJob:
        """The latest row of each key in a window; of a sequence view, its sequences at the end."""
        find = self._latest_sequences if isinstance(join.source, BehaviorSequenceSource) else self._latest_rows
        versions = {join.source.subject: join.snapshot.version}
        return DeltaSparkRetrievalJob(self.session, lambda: find(join, start, end), versions)

    def between(self, join: ViewJoin, start: datetime | None, end: datetime | None) -> DeltaSparkRetrievalJob:
        """All rows of a window."""
        versions = {join.source.subject: join.snapshot.version}
        return DeltaSparkRetrievalJob(self.session, lambda: self._rows_between(join, start, end), versions)

    def _rows_between(self, join: ViewJoin, start: datetime | None, end: datetime | None) -> Ordered:
        first = None if start is None else microseconds_of(start)
        last = None if end is None else microseconds_of(end)
        possible, condition = between(join, first, last)
        names = [*_columns(join), *join.source.columns_used()]
        found = table_rows(self.session, join.snapshot, names, possible).where(condition)
        found = found.select(*(column(name) for name in _columns(join)), f.col(POSITION).alias(ORDER))
        return Ordered(_with_dummy_key(found, join), file_count(join.snapshot))

    def _latest_rows(self, join: ViewJoin, start: datetime, end: datetime) -> Ordered:
        possible, condition = between(join, microseconds_of(start), microseconds_of(end))
        created = [join.created_column] if join.created_column else []
        names = [*(name for _, name in join.keys), join.event_column, *created, *join.source.columns_used()]
        rows = table_rows(self.session, join.snapshot, names, possible).where(condition)
        chosen = chosen_rows(self.session, join, latest_positions(rows, join, self.limits), _columns(join), possible)
        found = chosen.select(*(column(name) for name in _columns(join)), f.col(POSITION).alias(ORDER))
        return Ordered(_with_dummy_key(found, join), file_count(join.snapshot))

    def _latest_sequences(self, join: ViewJoin, start: datetime, end: datetime) -> Ordered:
        source = join.source
        assert isinstance(source, BehaviorSequenceSource)
        keys = self.session.range(1).select()  # one key for all, where there are none
        if join.keys:
            rows = table_rows(self.session, join.snapshot, [name for _, name in join.keys])
            keys = rows.select(*(column(name).alias(label) for label, name in join.keys)).distinct()
        labels = numbered(keys.withColumn(_TIME, moment(microseconds_of(end))), _TIME)
        found = sequences(labels, join, source, Pull(), self.limits)
        found = (
            found.where(f.col(LAST) >= microseconds_of(start))
            .join(labels.rows, LABEL, "inner")
            .select(
                *(column(label).alias(name) for label, name in join.keys),
                *(column(name).alias(source_name) for source_name, name in join.features),
                f.timestamp_micros(f.col(LAST)).alias(join.event_column),
                f.col(LABEL).alias(ORDER),
            )
        )
        return Ordered(_with_dummy_key(found, join), labels.partitions)


def _with_dummy_key(rows: DataFrame, join: ViewJoin) -> DataFrame:
    return rows if join.keys else rows.withColumn(DUMMY_ENTITY_ID, f.lit(DUMMY_ENTITY_VAL))


def _columns(join: ViewJoin) -> list[str]:
    """Keys, features and times by source column."""
    named = [*(name for _, name in join.keys), *(name for name, _ in join.features), join.event_column]
    return list(dict.fromkeys([*named, *([join.created_column] if join.created_column else [])]))
