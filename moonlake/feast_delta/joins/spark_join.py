"""Features joined to label rows within Spark: narrow rows meet in shards of their keys, wide rows follow by pointer.

Label rows and narrow feature rows are shuffled by the hash of their keys, each shard is one call of the kernel (never
one an entity), and only the wide rows that were chosen are shuffled after. A key with very many label rows is dealt to
several shards, and its feature rows to all of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.dataset as ds
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t
from pyspark.sql.pandas.types import from_arrow_type, to_arrow_type

from moonlake.errors import InputError, PointInTimeError
from moonlake.feast_delta.joins import filters
from moonlake.feast_delta.joins.plan import Labels, Pull, ViewJoin, check_written, microseconds_of
from moonlake.feast_delta.joins.spark_shards import (
    ACTED,
    CREATED,
    LABEL,
    LAST,
    POSITION,
    TIME,
    WRITTEN,
    AsOf,
    LastActions,
    Latest,
)
from moonlake.feast_delta.joins.spark_tables import (
    ROW_BITS,
    byte_count,
    check_moments,
    column,
    large_batches,
    moment,
    row_count,
    source_condition,
    table_rows,
)
from moonlake.feast_delta.sources import BehaviorSequenceSource


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one shard and of one executor.

    Attributes:
        rows_per_shard: narrow rows; a million are 100 to 200 MB in a Python worker.
        log_bytes_per_shard: bytes of a log's files: the actions of a sequence view go through the worker whole.
        labels_per_key: a key with more label rows than this is dealt to several shards.
        pointers_broadcast: label rows whose pointers go to every executor, 40 bytes each; of more, a bit for each
            feature row goes there.
        bytes_broadcast: features of all label rows together that go to every executor: one shuffle fewer.
    """

    rows_per_shard: int = 1_000_000
    log_bytes_per_shard: int = 32 << 20
    labels_per_key: int = 500_000
    pointers_broadcast: int = 4_000_000
    bytes_broadcast: int = 8 << 20


@dataclass(frozen=True, slots=True)
class SparkLabels(Labels[DataFrame]):
    """Label rows as a frame that gives the same rows each time, with LABEL.

    Attributes:
        last: the greatest LABEL: numbers grow in the order of the rows, its bits above ROW_BITS being the partition.
    """

    count: int = 0
    last: int = 0

    @property
    def partitions(self) -> int:
        """Partitions of the frame, up to the last one with a row."""
        return (self.last >> ROW_BITS) + 1


def joined(labels: SparkLabels, joins: Sequence[ViewJoin], pull: Pull, limits: Limits) -> DataFrame:
    """The label rows, with LABEL, and the features of all views; in no order.

    Raises: PointInTimeError: times or keys that cannot be compared.
    """
    rows = labels.rows
    for join in joins:
        if isinstance(join.source, BehaviorSequenceSource):
            features = sequences(labels, join, join.source, pull, limits)
            features = features.drop(LAST)
        else:
            features = as_of_features(labels, join, pull, limits)
        small = labels.count * _bytes_per_row(join) <= limits.bytes_broadcast
        rows = rows.join(f.broadcast(features) if small else features, LABEL, "left")
    return rows


def as_of_features(labels: SparkLabels, join: ViewJoin, pull: Pull, limits: Limits) -> DataFrame:
    """LABEL and the features of the label rows that have some."""
    spark = labels.rows.sparkSession
    possible, condition = _possible_rows(labels, join)
    times = _times(join)
    names = [*(name for _, name in join.keys), *times, *join.source.columns_used()]
    rows = table_rows(spark, join.snapshot, names, possible)
    for name in times:
        check_moments(rows, name)
    keys = _key_names(join)
    narrow = _unless_null(rows.where(condition), join).select(
        *_keys(rows, [name for _, name in join.keys]),
        f.unix_micros(column(join.event_column)).alias(TIME),
        _created_us(join).alias(CREATED),
        POSITION,
    )
    work = AsOf(keys, join.created_column or "", join.ttl_us, join.lag_us, pull.known_by)
    shards = _shards(spark, (labels.count + row_count(join.snapshot)) // limits.rows_per_shard)
    schema = t.StructType([_long(LABEL), _long(POSITION)])
    with large_batches(spark):
        pointers = in_shards(label_side(labels, join), narrow, labels.count, shards, limits.labels_per_key)
        pointers = pointers.mapInArrow(work, schema).localCheckpoint()
    columns = [name for name, _ in join.features]
    if labels.count <= limits.pointers_broadcast:
        wide = table_rows(spark, join.snapshot, columns, possible).join(f.broadcast(pointers), POSITION, "inner")
    else:
        wide = chosen_rows(spark, join, pointers, columns, possible).join(pointers, POSITION, "inner")
    return wide.select(LABEL, *(column(source).alias(name) for source, name in join.features))


def chosen_rows(
    spark: SparkSession, join: ViewJoin, pointers: DataFrame, columns: Sequence[str], possible: ds.Expression
) -> DataFrame:
    """POSITION and wide columns of the rows that some pointer names: told by a bit of each row, without a shuffle."""
    word, bit = f.shiftright(POSITION, 6), f.col(POSITION).bitwiseAND(63).cast("int")
    one = f.expr(f"shiftleft(1L, cast({POSITION} & 63 as int))")
    words = pointers.groupBy(word.alias("__word")).agg(f.bit_or(one).alias("__bits"))
    wide = table_rows(spark, join.snapshot, columns, possible).withColumn("__word", word)
    wide = wide.join(f.broadcast(words), "__word", "inner").where(f.getbit("__bits", bit) == 1)
    return wide.drop("__word", "__bits")


def sequences(
    labels: SparkLabels, join: ViewJoin, source: BehaviorSequenceSource, pull: Pull, limits: Limits
) -> DataFrame:
    """LABEL, the sequences and LAST of all label rows whose key is not null."""
    _check_sequences(join, source, pull)
    spark = labels.rows.sparkSession
    written = pull.known_by == "written"
    possible, condition = _possible_actions(labels, join, source)
    created = source.written_column if source.packed else join.created_column
    names = [*(name for _, name in join.keys), *(name for name, _ in join.features), *source.columns_used()]
    rows = table_rows(spark, join.snapshot, [*names, source.time_column, *([created] if created else [])], possible)
    if not source.packed:
        for name in [source.time_column, *([created] if created else [])]:
            check_moments(rows, name)
    time = column(source.time_column)
    when = column(created) if created else f.lit(None).cast("long")
    features = [f"__value_{number}" for number in range(len(join.features))]
    log = _unless_null(rows.where(condition), join).select(
        *_keys(rows, [name for _, name in join.keys]),
        (time if source.packed else f.unix_micros(time)).alias(ACTED),
        (when if source.packed or not created else f.unix_micros(when)).alias(WRITTEN),
        *([column(source.event_type_column).alias("__type")] if source.event_types else []),
        *([column(source.identity).alias("__identity")] if source.identity else []),
        *(column(name).alias(f"__order_{number}") for number, name in enumerate(source.order)),
        *(column(name).alias(value) for value, (name, _) in zip(features, join.features, strict=True)),
        POSITION,
    )
    work = LastActions(
        keys=_key_names(join),
        packed=source.packed,
        length=join.length,
        lag_us=join.lag_us,
        written=written,
        types=("__type", source.event_types) if source.event_types else ("", ()),
        identity="__identity" if source.identity else None,
        order=tuple(f"__order_{number}" for number in range(len(source.order))),
        features=tuple(features),
        subject=source.subject,
        names={
            ACTED: source.time_column,
            WRITTEN: created or "",
            "__type": source.event_type_column,
            **{value: name for value, (name, _) in zip(features, join.features, strict=True)},
        },
    )
    lists = [
        t.StructField(f"__feature_{number}", _list_of(log.schema[value].dataType, source))
        for number, value in enumerate(features)
    ]
    schema = t.StructType([_long(LABEL), *lists, _long(LAST)])
    of_labels, of_log = labels.count // limits.rows_per_shard, byte_count(join.snapshot) // limits.log_bytes_per_shard
    shards = _shards(spark, max(of_labels, of_log))
    met = in_shards(label_side(labels, join), log, labels.count, shards, limits.labels_per_key)
    found = met.mapInArrow(work, schema)
    named = [f.col(field.name).alias(name) for field, (_, name) in zip(lists, join.features, strict=True)]
    return found.select(LABEL, *named, LAST)


def latest_positions(rows: DataFrame, join: ViewJoin, limits: Limits) -> DataFrame:
    """POSITION of the latest of these rows for each key."""
    spark = rows.sparkSession
    narrow = _unless_null(rows, join).select(
        f.lit(None).cast("long").alias(LABEL),
        *_keys(rows, [name for _, name in join.keys]),
        f.unix_micros(column(join.event_column)).alias(TIME),
        _created_us(join).alias(CREATED),
        POSITION,
    )
    shards = _shards(spark, row_count(join.snapshot) // limits.rows_per_shard)
    with large_batches(spark):
        met = narrow.repartitionById(shards, f.pmod(_hash(_key_names(join)), f.lit(shards)).cast("int"))
        return met.mapInArrow(
            Latest(_key_names(join), join.created_column or ""), t.StructType([_long(POSITION)])
        ).localCheckpoint()


def label_side(labels: SparkLabels, join: ViewJoin) -> DataFrame:
    """LABEL, TIME and the keys of the label rows whose key is not null.

    Raises: PointInTimeError: a key has another type than in the features.
    """
    keys = []
    for number, (name, source) in enumerate(join.keys):
        found = _plain_type(labels.rows.schema[name].dataType)
        wanted = _plain_type(from_arrow_type(join.snapshot.dataset.schema.field(source).type))
        if found != wanted and not isinstance(found, t.NullType):
            raise PointInTimeError(
                f"key {source}: label rows hold {to_arrow_type(found)}, feature rows {to_arrow_type(wanted)}; "
                "cast one of them"
            )
        keys.append(column(name).cast(wanted).alias(f"__key_{number}"))
    present = labels.rows
    for name, _ in join.keys:
        present = present.where(column(name).isNotNull())
    return present.select(LABEL, f.unix_micros(column(labels.time_column)).alias(TIME), *keys)


def between(join: ViewJoin, start: int | None, end: int | None) -> tuple[ds.Expression, Column]:
    """The rows with an event time in [start, end] that the source's `where` admits: for files, and for rows.

    Args: start, end: microseconds since 1970 UTC.
    """
    event, time = ds.field(join.event_column), column(join.event_column)
    possible, condition = filters.row_filter(join), source_condition(join) & time.isNotNull()
    if start is not None:
        possible, condition = possible & (event >= filters.instant(start)), condition & (time >= moment(start))
    if end is not None:
        possible, condition = possible & (event <= filters.instant(end)), condition & (time <= moment(end))
    return possible, condition


def in_shards(left: DataFrame, right: DataFrame, labels: int, shards: int, labels_per_key: int) -> DataFrame:
    """Both sides in one frame, the rows of a key in one partition; label rows of a hot key in several."""
    keys = [name for name in left.columns if name.startswith("__key_")]
    splits = _splits(left, keys, shards, labels_per_key) if labels > labels_per_key else {}
    salt = f.lit(0)
    if splits:
        by_hash = f.create_map(*(f.lit(each) for pair in splits.items() for each in pair))
        parts = f.coalesce(f.try_element_at(by_hash, _hash(keys)), f.lit(1))
        left = left.withColumn("__salt", f.pmod(f.col(LABEL), parts).cast("int"))
        right = right.withColumn("__salt", f.explode(f.sequence(f.lit(0), parts - 1)))
        salt = f.col("__salt")
    both = left.unionByName(right, allowMissingColumns=True)
    shard = (f.pmod(_hash(keys), f.lit(shards)) + salt).cast("int")
    return both.repartitionById(shards, shard)


def _splits(left: DataFrame, keys: Sequence[str], shards: int, labels_per_key: int) -> dict[int, int]:
    """Number of shards by hash of the key, of the keys that need more than one."""
    counts = left.groupBy(_hash(keys).alias("hash")).count().where(f.col("count") > labels_per_key).collect()
    return {row["hash"]: min(shards, -(-row["count"] // labels_per_key)) for row in counts}


def _hash(keys: Sequence[str]) -> Column:
    return f.xxhash64(*keys) if keys else f.lit(0).cast("long")


def _bytes_per_row(join: ViewJoin) -> int:
    """Bytes of a feature row in memory, roughly: it is stored compressed, and of a sequence there are many."""
    return 4 * max(join.length, 1) * byte_count(join.snapshot) // max(row_count(join.snapshot), 1)


def _shards(spark: SparkSession, wanted: int) -> int:
    return max(spark.sparkContext.defaultParallelism, wanted + 1)


def _possible_rows(labels: SparkLabels, join: ViewJoin) -> tuple[ds.Expression, Column]:
    if labels.latest is None or labels.earliest is None:
        return ds.scalar(False), f.lit(False)
    start = microseconds_of(labels.earliest) - join.lag_us - join.ttl_us if join.ttl_us else None
    return between(join, start, microseconds_of(labels.latest) - join.lag_us)


def _possible_actions(
    labels: SparkLabels, join: ViewJoin, source: BehaviorSequenceSource
) -> tuple[ds.Expression, Column]:
    if labels.latest is None:
        return ds.scalar(False), f.lit(False)
    possible, condition = filters.row_filter(join), source_condition(join)
    until = microseconds_of(labels.latest) - join.lag_us
    if source.packed and source.month_column:
        month = datetime.fromtimestamp(until // 1_000_000, UTC).strftime("%Y-%m")
        return possible & (ds.field(source.month_column) <= month), condition & (column(source.month_column) <= month)
    if source.packed:
        return possible, condition
    condition = condition & column(source.time_column).isNotNull()
    if source.identity:  # a later statement of an action decides, wherever it puts it
        return possible, condition
    time = column(source.time_column)
    return possible & (ds.field(source.time_column) < filters.instant(until)), condition & (time < moment(until))


def _check_sequences(join: ViewJoin, source: BehaviorSequenceSource, pull: Pull) -> None:
    if pull.sequences == "pointers":
        raise InputError(
            f"feature view {join.view}: the log that pointers point into is one file beside the result, which the "
            "Spark engine does not write; pull sequences as pointers with engine: embedded"
        )
    if pull.known_by == "written":
        check_written(join, source)


def _times(join: ViewJoin) -> list[str]:
    return [join.event_column, *([join.created_column] if join.created_column else [])]


def _created_us(join: ViewJoin) -> Column:
    return f.unix_micros(column(join.created_column)) if join.created_column else f.lit(None).cast("long")


def _key_names(join: ViewJoin) -> tuple[str, ...]:
    return tuple(f"__key_{number}" for number in range(len(join.keys)))


def _keys(rows: DataFrame, names: Sequence[str]) -> list[Column]:
    return [
        column(name).cast(_plain_type(rows.schema[name].dataType)).alias(f"__key_{number}")
        for number, name in enumerate(names)
    ]


def _unless_null(rows: DataFrame, join: ViewJoin) -> DataFrame:
    for _, name in join.keys:
        rows = rows.where(column(name).isNotNull())
    return rows


def _plain_type(found: t.DataType) -> t.DataType:
    return t.LongType() if isinstance(found, t.IntegralType) else found


def _list_of(found: t.DataType, source: BehaviorSequenceSource) -> t.DataType:
    return found if source.packed else t.ArrayType(found)


def _long(name: str) -> t.StructField:
    return t.StructField(name, t.LongType())
