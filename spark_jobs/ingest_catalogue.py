"""Job: what a staged source has to show into the lake: images, products, merchants and queries, with content ids."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t
from pyspark.sql.pandas.types import to_arrow_schema

from moonlake.embeddings.contents import content_of, prompt_text
from moonlake.embeddings.images import inspect
from moonlake.errors import ImageRefused
from moonlake.lake.lake import WriteReport
from moonlake.logs import running
from moonlake.schema.tables import PRODUCT_IMAGES, PRODUCTS, QUERIES
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session
from sources.own_files.staging import SourceInfo

Write = Callable[..., WriteReport]

LOOKED_AT = t.StructType(
    [
        t.StructField("name", t.StringType()),
        t.StructField("image_bytes", t.BinaryType()),
        t.StructField("image_id", t.StringType()),
        t.StructField("format", t.StringType()),
        t.StructField("width", t.IntegerType()),
        t.StructField("height", t.IntegerType()),
        t.StructField("perceptual_hash", t.StringType()),
        t.StructField("_rule", t.StringType()),
    ]
)
TABLE_OF = {"images": "product_images", "products": "products", "queries": "queries", "merchants": "merchants"}
"""The kinds of a staged source that are written here, in this order, and their tables."""
REFERENCE_RULE = "image_not_found"
"""The rule that a product's or query's image name breaks when the source has no readable image of that name."""


def look_at_images(images: DataFrame) -> DataFrame:
    """Staged images with what decoding found: the facts of a good file, or in `_rule` why it is refused."""
    return images.select("name", "image_bytes").mapInArrow(_look, LOOKED_AT)


def _look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    absent = {field.name: None for field in LOOKED_AT}
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            try:
                rows.append(row | asdict(inspect(row["image_bytes"] or b"")) | {"_rule": None})
            except ImageRefused as refused:
                rows.append(absent | row | {"_rule": refused.rule})
        yield pa.RecordBatch.from_pylist(rows, schema=to_arrow_schema(LOOKED_AT))


def resolve_images(rows: DataFrame, images: DataFrame, key: str) -> tuple[DataFrame, DataFrame]:
    """Rows with `image_ids` in the place of `image_names`, and the references that no readable image answers.

    Args:
        rows: with `image_names`; a null list counts as empty.
        images: name and image_id of the readable images of the same source, one row a name.
        key: column of `rows` that says in `rejects` whose reference it was.
    """
    numbered = rows.withColumn("_row", f.monotonically_increasing_id()).localCheckpoint()
    names = numbered.select("_row", key, f.posexplode("image_names").alias("_place", "name"))
    found = names.join(images, on="name", how="left")
    ids = (
        found.where("image_id IS NOT NULL")
        .groupBy("_row")
        .agg(f.transform(f.array_sort(f.collect_list(f.struct("_place", "image_id"))), lambda item: item["image_id"]))
        .toDF("_row", "image_ids")
    )
    resolved = numbered.join(ids, on="_row", how="left").withColumn("image_ids", f.coalesce("image_ids", f.array()))
    missing = found.where("image_id IS NULL").select(key, "name", f.lit(REFERENCE_RULE).alias("_rule"))
    return resolved.drop("_row", "image_names"), missing


@f.arrow_udf(t.StringType())  # type: ignore[attr-defined] # there since Spark 4.1, not in its stubs
def content_ids(titles: pa.Array, attributes: pa.Array, image_ids: pa.Array) -> pa.Array:
    """Content id of each row: string [N] of titles, map [N] of attributes, list<string> [N] of images in order."""
    rows = zip(titles.to_pylist(), attributes.to_pylist(), image_ids.to_pylist(), strict=True)
    return pa.array([content_of(prompt_text(title, dict(extra)), ids).content_id for title, extra, ids in rows])


def transform(products: DataFrame, source: str) -> DataFrame:
    """Product states with resolved images, in contract order with content ids."""
    no_attributes = f.create_map().cast("map<string,string>")
    return (
        products.withColumn("attributes", f.coalesce("attributes", no_attributes))
        .withColumn("title", _text("title"))
        .withColumn("content_id", content_ids("title", "attributes", "image_ids"))
        .withColumn("source", f.lit(source))
        .select(*PRODUCTS.facts)
    )


def transform_queries(queries: DataFrame, source: str) -> DataFrame:
    """Queries with resolved images, in contract order with content ids."""
    no_attributes = f.create_map().cast("map<string,string>")
    return (
        queries.withColumn("text", _text("text"))
        .withColumn("content_id", content_ids("text", no_attributes, "image_ids"))
        .withColumn("source", f.lit(source))
        .select(*QUERIES.facts)
    )


def _text(name: str) -> Column:
    """Text without outer white space; null when nothing is left."""
    return f.nullif(f.trim(name), f.lit(""))


def one_image_a_name(looked_at: DataFrame) -> DataFrame:
    """Name and image_id of the readable images; of two files with one name the smaller id, on every run."""
    return looked_at.where("_rule IS NULL").groupBy("name").agg(f.min("image_id").alias("image_id"))


def run(lake: SparkLake, folder: Path, *, written_at: datetime) -> list[WriteReport]:
    """Ingest the catalogue and the queries of a staged source; what was ingested before is left alone.

    Returns: one report a table; for each, rows in = written + rejected + duplicates + unchanged.
    Raises: BatchRejected: too many images or rows are bad; of images that is known before anything is written.
    """
    info = SourceInfo.read(folder)
    source = info.name
    if not any(info.has(kind) for kind in TABLE_OF):
        return [lake.lake.nothing_for(table) for table in TABLE_OF.values()]

    def staged(kind: str) -> DataFrame:
        return lake.session.read.parquet(str(folder / kind))

    def unread(kind: str) -> DataFrame:
        return staged("refused").where(f.col("kind") == kind).select("value", f.col("rule").alias("_rule"))

    def write(write_rows: Write, kind: str, rows: DataFrame, *refused: DataFrame) -> WriteReport:
        table = TABLE_OF[kind]
        if not info.has(kind):
            return lake.lake.nothing_for(table)
        report = write_rows(lake, table, rows, source=source, written_at=written_at)
        for records in (*refused, unread(kind)):
            report = writes.with_refused(lake, report, records, source=source, written_at=written_at)
        return report

    looked_at = look_at_images(staged("images")).persist()
    good_images = looked_at.where("_rule IS NULL").withColumn("source", f.lit(source)).select(*PRODUCT_IMAGES.facts)
    bad_images = looked_at.where("_rule IS NOT NULL").select("name", "image_bytes", "_rule")
    if info.has("images"):
        writes.check_batch(PRODUCT_IMAGES, looked_at, bad_images.count(), looked_at.count())
    names = one_image_a_name(looked_at)
    products, lost = resolve_images(staged("products"), names, "product_id")
    queries, lost_of_queries = resolve_images(staged("queries"), names, "query_id")
    merchants = staged("merchants").withColumn("source", f.lit(source))
    reports = [
        write(writes.merge, "images", good_images, bad_images),
        write(writes.append, "products", transform(products, source)),
        write(writes.merge, "queries", transform_queries(queries, source)),
        write(writes.append, "merchants", merchants),
    ]
    for kind, references in (("products", lost), ("queries", lost_of_queries)):
        if info.has(kind):  # the row itself is loaded without that image
            writes.keep_rejects(lake, "product_images", references, source=source, written_at=written_at)
    looked_at.unpersist()
    return reports


def main(argv: Sequence[str] | None = None) -> None:
    """Ingest the staged source in `--folder`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a staged source")
    folder = parser.parse_args(argv).folder
    settings = Settings.from_environment()
    with running("ingest_catalogue", settings.log_level) as job, session(settings, "ingest_catalogue") as spark:
        print(job.report(tables=run(SparkLake(spark, settings), folder, written_at=datetime.now(UTC))))


if __name__ == "__main__":
    main()
