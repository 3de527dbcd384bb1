"""Job: a staged source's users, actions and judgments into the lake, stamped with content ids as of their time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as f

from moonlake.lake.lake import WriteReport
from moonlake.logs import running
from moonlake.schema.tables import PRODUCTS, TABLES
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import current_rows, session
from sources.own_files.staging import SourceInfo


def content_spans(products: DataFrame) -> DataFrame:
    """The content of each product over time: product_id, content_id, [since, until); `until` is null for the last.

    Args:
        products: rows of `products`; of a restated state the one written last counts.
    """
    by_time = Window.partitionBy("product_id").orderBy("event_timestamp")
    states = current_rows(products, PRODUCTS).select("product_id", "content_id", "event_timestamp")
    until = f.lead("event_timestamp").over(by_time)
    return states.select("product_id", "content_id", f.col("event_timestamp").alias("since"), until.alias("until"))


def transform(events: DataFrame, spans: DataFrame, queries: DataFrame, source: str) -> DataFrame:
    """Events with `content_id` of the product as of `event_timestamp`, `query_content_id`, and `source`.

    One row out for each row in. A product or query that the lake does not know gives null.

    Args:
        events: with product_id, query_id and event_timestamp.
        spans: as `content_spans` makes them.
        queries: rows of `queries`.
    """
    then = (
        (f.col("events.product_id") == f.col("spans.product_id"))
        & (f.col("events.event_timestamp") >= f.col("spans.since"))
        & (f.col("spans.until").isNull() | (f.col("events.event_timestamp") < f.col("spans.until")))
    )
    with_product = events.alias("events").join(spans.alias("spans"), on=then, how="left")
    with_product = with_product.select("events.*", "spans.content_id")
    of_query = queries.select("query_id", f.col("content_id").alias("query_content_id"))
    return with_product.join(of_query, on="query_id", how="left").withColumn("source", f.lit(source))


def run(lake: SparkLake, folder: Path, *, written_at: datetime) -> list[WriteReport]:
    """Ingest the behaviour of a staged source, after its catalogue; what was ingested before is left alone.

    Returns: one report a table; for each, rows in = written + rejected + duplicates + unchanged.
    """
    info = SourceInfo.read(folder)
    source = info.name
    spans = content_spans(lake.frame("products"))
    queries = lake.frame("queries")
    reports = []
    for kind in ("users", "impressions", "behaviors", "judgments"):
        if not info.has(kind):
            reports.append(lake.lake.nothing_for(kind))
            continue
        rows = lake.session.read.parquet(str(folder / kind))
        if kind == "users":
            rows = rows.withColumn("source", f.lit(source))
        else:
            rows = transform(rows, spans, queries, source).select(*TABLES[kind].facts)
        report = writes.append(lake, kind, rows, source=source, written_at=written_at)
        refused = lake.session.read.parquet(str(folder / "refused")).where(f.col("kind") == kind)
        unread = refused.select("value", f.col("rule").alias("_rule"))
        reports.append(writes.with_refused(lake, report, unread, source=source, written_at=written_at))
    return reports


def main(argv: Sequence[str] | None = None) -> None:
    """Ingest the behaviour of the staged source in `--folder`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a staged source")
    folder = parser.parse_args(argv).folder
    settings = Settings.from_environment()
    with running("ingest_behaviors", settings.log_level) as job, session(settings, "ingest_behaviors") as spark:
        print(job.report(tables=run(SparkLake(spark, settings), folder, written_at=datetime.now(UTC))))


if __name__ == "__main__":
    main()
