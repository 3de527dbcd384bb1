"""Job: training pairs of the encoder, a query with an image and a product that its user then chose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from moonlake import writes
from moonlake.lake import WriteReport
from moonlake.moments import parse_moment
from moonlake.settings import Settings
from moonlake.spark import current_rows, read_table, spark_session
from moonlake.tables import BEHAVIORS, CONTRASTIVE_PAIRS, PRODUCTS

CHOICES = ("click", "cart", "purchase")
STAGE = 1


def transform(behaviors: DataFrame, queries: DataFrame, products: DataFrame) -> DataFrame:
    """Pairs of stage 1: a click, cart or purchase after an image query, with the product's content of that time.

    Args:
        behaviors: rows of `behaviors` in the window.
        queries: rows of `queries`; those without an image give no pair in this stage.
        products: rows of `products`, for the SPU and category of the positive.
    """
    newest_first = Window.partitionBy("product_id").orderBy(f.desc("event_timestamp"))
    facts = current_rows(products, PRODUCTS).withColumn("_place", f.row_number().over(newest_first))
    of_product = facts.where("_place = 1").select("product_id", "spu_id", "category")
    chosen = current_rows(behaviors, BEHAVIORS).where(
        f.col("action").isin(*CHOICES) & f.col("content_id").isNotNull() & f.col("query_content_id").isNotNull()
    )
    modality = queries.where("modality = 'image'").select("query_id", "modality")
    pair_type = f.concat("modality", f.lit("_query_to_product"))
    return (
        chosen.join(modality, on="query_id", how="inner")
        .join(of_product, on="product_id", how="left")
        .select(
            f.md5(f.concat_ws("\0", "behavior_id", f.lit(STAGE), pair_type)).alias("pair_id"),
            f.col("query_content_id").alias("anchor_content_id"),
            f.col("content_id").alias("positive_content_id"),
            f.col("product_id").alias("positive_product_id"),
            f.col("spu_id").alias("positive_spu_id"),
            f.array().cast("array<string>").alias("hard_negative_content_ids"),
            "category",
            "action",
            f.lit(STAGE).alias("stage"),
            pair_type.alias("pair_type"),
            "event_timestamp",
        )
        .select(*CONTRASTIVE_PAIRS.facts)
    )


def run(
    spark: SparkSession, settings: Settings, start: datetime, end: datetime, *, written_at: datetime
) -> WriteReport:
    """Build the pairs of the actions in [start, end); `end` is T1 of the honest protocol, or earlier."""
    within = (f.col("event_timestamp") >= f.lit(start)) & (f.col("event_timestamp") < f.lit(end))
    behaviors = read_table(spark, settings, "behaviors").where(within)
    pairs = transform(behaviors, read_table(spark, settings, "queries"), read_table(spark, settings, "products"))
    return writes.replace_window(
        spark,
        settings,
        "contrastive_pairs",
        pairs,
        start=start,
        end=end,
        source="build_contrastive_pairs",
        written_at=written_at,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Build the pairs of the actions in [`--start`, `--end`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=parse_moment, required=True, help="first moment, with its time zone")
    parser.add_argument("--end", type=parse_moment, required=True, help="first moment after the window")
    options = parser.parse_args(argv)
    settings = Settings.from_environment()
    spark = spark_session(settings, "build_contrastive_pairs")
    report = run(spark, settings, options.start, options.end, written_at=datetime.now(UTC))
    print(report.as_json())


if __name__ == "__main__":
    main()
