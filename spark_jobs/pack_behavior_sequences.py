"""Job: the behaviour log packed into one row per user and month, as arrays sorted by time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from moonlake.lake.lake import WriteReport
from moonlake.logs import running
from moonlake.schema.tables import BEHAVIOR_SEQUENCES, BEHAVIORS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import current_rows, session


def transform(behaviors: DataFrame) -> DataFrame:
    """Packed sequences: one row per user and month, actions in order of time, at one time in order of behavior_id.

    Args:
        behaviors: rows of `behaviors`; of a restated action the one written last counts.
    """
    action = f.struct(
        f.unix_micros("event_timestamp").alias("time_us"),
        "behavior_id",
        "action",
        "product_id",
        "content_id",
        "query_content_id",
        f.unix_micros("created_at").alias("written_us"),
    )
    packed = (
        current_rows(behaviors, BEHAVIORS)
        .groupBy("user_id", f.date_format("event_timestamp", "yyyy-MM").alias("month"))
        .agg(f.array_sort(f.collect_list(action)).alias("log"), f.max("event_timestamp").alias("event_timestamp"))
    )
    return packed.select(
        "user_id",
        "month",
        f.col("log.time_us").alias("times_us"),
        f.col("log.action").alias("actions"),
        f.col("log.product_id").alias("product_ids"),
        f.col("log.content_id").alias("content_ids"),
        f.col("log.query_content_id").alias("query_content_ids"),
        f.col("log.written_us").alias("written_us"),
        "event_timestamp",
    ).select(*BEHAVIOR_SEQUENCES.facts)


def run(lake: SparkLake, *, written_at: datetime) -> WriteReport:
    """Pack the whole log; users and months that did not change are not written again."""
    packed = transform(lake.frame("behaviors"))
    source = "pack_behavior_sequences"
    return writes.merge(lake, "behavior_sequences", packed, source=source, written_at=written_at)


def main(argv: Sequence[str] | None = None) -> None:
    """Pack behaviour sequences."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    settings = Settings.from_environment()
    name = "pack_behavior_sequences"
    with running(name, settings.log_level) as job, session(settings, name) as spark:
        print(job.report(tables=[run(SparkLake(spark, settings), written_at=datetime.now(UTC))]))


if __name__ == "__main__":
    main()
