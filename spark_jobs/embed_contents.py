"""Job: vectors for the contents of products and queries that have none in an embedding space.

Idempotent: contents with a vector are left alone, and where nothing is missing no model is loaded and nothing written.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from models.encoder_config import read_encoder_artifact
from moonlake import writes
from moonlake.contents import prompt_text
from moonlake.lake import Lake, WriteReport
from moonlake.settings import Settings
from moonlake.spaces import LIVE, Space, find, require_same, set_status
from moonlake.spark import read_table, spark_schema, spark_session
from moonlake.tables import EMBEDDINGS, TIMELESS

UNREADABLE = "content_unreadable"
"""The rule that a content breaks which has no text, and no image that can be decoded."""

ROWS_PER_PARTITION = 512
"""Fewer contents than this are not worth another worker with a model of its own."""
ROWS_PER_CALL = 512
"""Among these, an embedder looks for pictures that it has seen; the files of as many are held."""
READ = ("title", "attributes", "image_ids")
EMBEDDED = t.StructType(
    [*spark_schema(EMBEDDINGS, ["content_id", "space_id"]), t.StructField("vector", t.ArrayType(t.FloatType()))]
)

ArrowBatches = Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """What a run did, and the space as it stands afterwards. `write` is None where nothing was missing."""

    space: Space
    write: WriteReport | None

    def as_json(self) -> str:
        """The report as one line of JSON."""
        counts = {"written": self.write.written, "rejected": self.write.rejected} if self.write else {"written": 0}
        return json.dumps({"space": str(self.space), "coverage": self.space.coverage, **counts})


def contents(products: DataFrame, queries: DataFrame) -> DataFrame:
    """content_id, title, attributes, image_ids: one row per distinct content of products and queries.

    The text of a query stands as a title. Rows of one content_id agree in what the encoder reads of these, so any of
    them will do.
    """
    no_attributes = f.create_map().cast("map<string,string>").alias("attributes")
    of_products = products.select("content_id", *READ)
    of_queries = queries.select("content_id", f.col("text").alias("title"), no_attributes, "image_ids")
    both = of_products.unionByName(of_queries)
    return both.groupBy("content_id").agg(*(f.first(f.struct(*READ)).getField(name).alias(name) for name in READ))


def missing(all_contents: DataFrame, embeddings: DataFrame, rejects: DataFrame, space_id: str) -> DataFrame:
    """The contents without a vector in the space, less those that were refused there before."""
    embedded = embeddings.where(f.col("space_id") == space_id).select("content_id")
    named = f.get_json_object("value", "$.content_id").alias("content_id")
    of_space = f.get_json_object("value", "$.space_id") == space_id
    refused = rejects.where((f.col("rule") == UNREADABLE) & of_space).select(named)
    return all_contents.join(embedded.unionByName(refused), on="content_id", how="left_anti")


def with_images(wanted: DataFrame, images: DataFrame) -> DataFrame:
    """content_id, title, attributes, images: the files of each content in its order, those that the lake has."""
    single = wanted.select("content_id", f.posexplode("image_ids").alias("place", "image_id"))
    found = single.join(images.select("image_id", "image_bytes"), on="image_id", how="inner")
    ordered = f.array_sort(f.collect_list(f.struct("place", "image_bytes")))
    files = found.groupBy("content_id").agg(ordered.getField("image_bytes").alias("images"))
    joined = wanted.join(files, on="content_id", how="left")
    some = f.coalesce("images", f.array().cast("array<binary>")).alias("images")
    return joined.select("content_id", "title", "attributes", some)


def transform(wanted: DataFrame, artifact: str, space_id: str, *, threads: int) -> DataFrame:
    """content_id, space_id, vector: one row per content; the vector is null where nothing could be read.

    Args:
        wanted: as `with_images` gives it; each partition is one worker's, which loads the model once.
        artifact: folder that every worker can read.
        threads: CPU threads of one worker, so that workers * threads is at most the number of cores.
    """
    return wanted.mapInArrow(_embed_with(artifact, space_id, threads), EMBEDDED)


def run(spark: SparkSession, settings: Settings, space: str, *, written_at: datetime) -> EmbeddingReport:
    """Embed what is missing in a space, given by name, id or "live"; a complete `building` space becomes `candidate`.

    Raises:
        NotFound: no such space.
        SpaceMismatch: the artifact of the space makes vectors of another one.
    """
    lake = Lake(settings)
    found = find(lake, space)
    everything = contents(read_table(spark, settings, "products"), read_table(spark, settings, "queries"))
    wanted = _missing_now(spark, settings, everything, found).persist()
    try:
        count = wanted.count()
        report = _embed(spark, settings, found, wanted, count, written_at) if count else None
    finally:
        wanted.unpersist()
    if found.status == "building" and (total := everything.count()):
        coverage = 1 - _missing_now(spark, settings, everything, found).count() / total
        status = "candidate" if coverage == 1.0 else "building"
        found = set_status(lake, found.space_id, status, coverage=coverage, written_at=written_at)
    return EmbeddingReport(found, report)


def _missing_now(spark: SparkSession, settings: Settings, everything: DataFrame, space: Space) -> DataFrame:
    embeddings, rejects = (read_table(spark, settings, name) for name in ("embeddings", "rejects"))
    return missing(everything, embeddings, rejects, space.space_id)


def _embed(
    spark: SparkSession, settings: Settings, space: Space, wanted: DataFrame, count: int, written_at: datetime
) -> WriteReport:
    made_by = read_encoder_artifact(space.artifact).space
    require_same(space.space_id, made_by.space_id, what=f"encoder artifact {space.artifact}")
    workers = min(spark.sparkContext.defaultParallelism, math.ceil(count / ROWS_PER_PARTITION))
    threads = max(1, settings.workers // workers) if settings.spark_master.startswith("local") else 1
    images = read_table(spark, settings, "product_images")
    spread = with_images(wanted, images).repartition(workers)
    made = transform(spread, space.artifact, space.space_id, threads=threads).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        good = made.where("vector IS NOT NULL").withColumn("event_timestamp", f.lit(TIMELESS))
        source = "embed_contents"
        report = writes.merge(
            spark, settings, "embeddings", good.select(*EMBEDDINGS.facts), source=source, written_at=written_at
        )
        refused = made.where("vector IS NULL").select("content_id", "space_id", f.lit(UNREADABLE).alias("_rule"))
        return writes.with_refused(spark, settings, report, refused, source=source, written_at=written_at)
    finally:
        made.unpersist()


def _embed_with(artifact: str, space_id: str, threads: int) -> Callable[[ArrowBatches], ArrowBatches]:
    def embed(batches: ArrowBatches) -> ArrowBatches:
        from models.inference import shared_embedder

        embedder = shared_embedder(artifact, threads)
        for whole in batches:
            for at in range(0, whole.num_rows, ROWS_PER_CALL):
                batch = whole.slice(at, ROWS_PER_CALL)
                texts = [
                    prompt_text(title, dict(attributes))
                    for title, attributes in zip(
                        batch["title"].to_pylist(), batch["attributes"].to_pylist(), strict=True
                    )
                ]
                vectors, readable = embedder.embed_readable(texts, batch["images"].to_pylist())
                rows = [vector if good else None for vector, good in zip(vectors, readable, strict=True)]
                yield pa.record_batch(
                    [batch["content_id"], pa.repeat(space_id, len(rows)), pa.array(rows, pa.list_(pa.float32()))],
                    names=EMBEDDED.names,
                )

    return embed


def main(argv: Sequence[str] | None = None) -> None:
    """Embed the contents that have no vector in a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default=LIVE, help="name, id or beginning of an id; 'live' is the default")
    options = parser.parse_args(argv)
    settings = Settings.from_environment()
    spark = spark_session(settings, "embed_contents")
    print(run(spark, settings, options.space, written_at=datetime.now(UTC)).as_json())


if __name__ == "__main__":
    main()
