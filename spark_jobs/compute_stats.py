"""Job: counts and rates of products and users over the 7 days before each midnight."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from moonlake.lake.lake import WriteReport
from moonlake.logs import running
from moonlake.schema.tables import BEHAVIORS, IMPRESSIONS, PRODUCT_STATS, USER_STATS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import current_rows, session
from moonlake.timestamps import parse_moment

WINDOW_DAYS = 7


def transform(impressions: DataFrame, behaviors: DataFrame, entity: str, end: datetime) -> DataFrame:
    """Counts of an entity for each window end at a midnight up to `end`: the window is [midnight - 7 days, midnight).

    An impression and its click count together, on the day that the label was settled: what was not yet known at the
    end of a window is not in it.

    Args:
        entity: "product_id" or "user_id".
    """
    shown = impressions.select(
        entity,
        f.to_date("label_time").alias("day"),
        f.lit(1).alias("impressions"),
        f.col("clicked").cast("long").alias("clicks"),
        f.lit(0).alias("purchases"),
    )
    bought = behaviors.where("action = 'purchase'").select(
        entity,
        f.to_date("event_timestamp").alias("day"),
        f.lit(0).alias("impressions"),
        f.lit(0).alias("clicks"),
        f.lit(1).alias("purchases"),
    )
    counts = ("impressions", "clicks", "purchases")
    daily = shown.unionByName(bought).groupBy(entity, "day").agg(*(f.sum(name).alias(name) for name in counts))
    # A day is in the windows that end 1 to 7 midnights later.
    ends = f.explode(f.sequence(f.date_add("day", 1), f.date_add("day", WINDOW_DAYS)))
    spread = daily.withColumn("end", ends).where(f.col("end").cast("timestamp") <= f.lit(end))
    sums = spread.groupBy(entity, "end").agg(*(f.sum(name).alias(f"{name}_7d") for name in counts))
    return sums.select(
        entity,
        *(f"{name}_7d" for name in counts),
        f.when(f.col("impressions_7d") > 0, f.col("clicks_7d") / f.col("impressions_7d")).alias("ctr_7d"),
        f.col("end").cast("timestamp").alias("event_timestamp"),
    )


def run(lake: SparkLake, end: datetime, *, written_at: datetime) -> list[WriteReport]:
    """Compute the statistics of products and users for every midnight up to `end`."""
    impressions = current_rows(lake.frame("impressions"), IMPRESSIONS)
    behaviors = current_rows(lake.frame("behaviors"), BEHAVIORS)
    reports = []
    for table, entity in ((PRODUCT_STATS, "product_id"), (USER_STATS, "user_id")):
        stats = transform(impressions, behaviors, entity, end)
        reports.append(writes.append(lake, table.name, stats, source="compute_stats", written_at=written_at))
    return reports


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the statistics up to `--end`, by default now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--end", type=parse_moment, help="last midnight to compute, with its time zone")
    now = datetime.now(UTC)
    end = parser.parse_args(argv).end or now
    settings = Settings.from_environment()
    with running("compute_stats", settings.log_level) as job, session(settings, "compute_stats") as spark:
        print(job.report(tables=run(SparkLake(spark, settings), end, written_at=now)))


if __name__ == "__main__":
    main()
