"""Job: vectors for the contents of products and queries that have none in an embedding space.

Idempotent: contents with a vector are left alone, and where nothing is missing no model is loaded and nothing written.
The lake gets all vectors of a run in one commit; until then they lie in the backfill's folder (`embedding_chunks`).
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from models.encoder.config import read_encoder_artifact
from moonlake.embeddings.backfill import Backfill, Plan
from moonlake.embeddings.contents import CONTENT_UNREADABLE as UNREADABLE
from moonlake.embeddings.contents import prompt_text
from moonlake.embeddings.releases import find
from moonlake.embeddings.spaces import LIVE, Space, require_same, set_status
from moonlake.lake.lake import Lake, WriteReport
from moonlake.logs import context, running
from moonlake.progress import UNWATCHED, LoggedProgress, Progress, Step
from moonlake.schema.tables import EMBEDDINGS, TIMELESS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session, spark_schema

PARTITIONS_PER_WORKER = 4
"""So that a worker with fewer chunks takes over from one with more."""
LOOK_SECONDS = 5.0
SAMPLE = 256
"""Contents that a survey embeds to see how fast it goes."""
READ = ("title", "attributes", "image_ids")
EMBEDDED = t.StructType(
    [*spark_schema(EMBEDDINGS, ["content_id"]), t.StructField("vector", t.ArrayType(t.FloatType()))]
)

ArrowBatches = Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """The report of a run: its writes, and the space after it. Without `writes` nothing was missing."""

    space: Space
    writes: tuple[WriteReport, ...]

    @property
    def written(self) -> int:
        """Vectors that the lake has now and had not before."""
        return sum(one.written for one in self.writes)

    @property
    def rejected(self) -> int:
        """Contents of which nothing can be read, or whose vector breaks a rule."""
        return sum(one.rejected for one in self.writes)


@dataclass(frozen=True, slots=True)
class Survey:
    """The work that a run would have to do.

    Attributes:
        rows: of products (one for each change) and of queries.
        contents: distinct ones among them.
        refused: those of which nothing can be read.
        missing: those that a run would embed.
        kept: those that a backfill which is under way has embedded.
        rate: contents a second, measured on some of the missing ones; None where there are none.
    """

    space: Space
    rows: int
    contents: int
    refused: int
    missing: int
    kept: int
    rate: float | None

    @property
    def seconds(self) -> float:
        """Estimate for all that is missing."""
        return self.missing / self.rate if self.rate else 0.0

    @property
    def vector_bytes(self) -> int:
        """Bytes of the missing vectors in the lake, before compression."""
        return 4 * self.space.dimension * (self.missing + self.kept)


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


def transform(
    wanted: DataFrame, backfill: Backfill, plan: Plan, artifact: str, *, workers: int, threads: int
) -> DataFrame:
    """rows: of each chunk that is embedded here, how many; their vectors lie in the backfill's folder.

    Args:
        wanted: as `with_images` gives it.
        artifact: folder that every worker can read.
        workers: how many compute at once. Those of another run take the chunks in another order, and leave out what is
            done already.
        threads: CPU threads of one worker, so that workers * threads is at most the number of cores.
    """
    chunked = wanted.withColumn("chunk", f.expr(plan.chunk_sql))
    spread = chunked.repartition(min(plan.chunks, PARTITIONS_PER_WORKER * workers), "chunk")
    order = f.xxhash64("chunk", f.lit(random.getrandbits(32)))
    ordered = spread.sortWithinPartitions(order, "chunk", "content_id")
    return ordered.mapInArrow(_embed_with(backfill, plan, artifact, threads), "rows long")


def run(
    lake: SparkLake,
    space: str,
    *,
    written_at: datetime,
    progress: Progress = UNWATCHED,
) -> EmbeddingReport:
    """Embed what is missing in a space, given by name, id or "live"; a complete `building` space becomes `candidate`.

    Several runs may be at work at once. After a run that was killed the next one goes on, chunk by chunk. A space that
    was retired before it was complete is building again.

    Args:
        written_at: moment at which the run began; what it writes later is stamped later.
        progress: shows how far each round is.

    Raises:
        NotFound: no such space.
        SpaceMismatch: the artifact of the space makes vectors of another one.
    """
    began = time.monotonic()
    found = find(lake.lake, space)
    if found.status == "retired" and found.coverage < 1.0:
        found = set_status(lake.lake, found.space_id, "building", written_at=written_at)
    backfill = Backfill(lake.settings.backfills, found.space_id)
    everything = contents(lake.frame("products"), lake.frame("queries"))
    reports: list[WriteReport] = []
    last = -1
    while True:  # more than once where contents came in behind a plan
        wanted = _missing_now(lake, everything, found).persist()
        try:
            count = wanted.count()
            if count in (0, last):  # all is embedded, or what is left breaks rules
                break
            plan = _embed(lake, found, wanted, backfill, count, progress)
        finally:
            wanted.unpersist()
        last = count
        with backfill.exclusive():
            if backfill.current() == plan:  # or another run has written it
                now = written_at + timedelta(seconds=time.monotonic() - began)
                reports.append(_write(lake, found, backfill.kept(plan), now))
                backfill.finish()
    if found.status == "building" and (total := everything.count()):
        status = "building" if count else "candidate"
        now = written_at + timedelta(seconds=time.monotonic() - began)
        found = set_status(lake.lake, found.space_id, status, coverage=1 - count / total, written_at=now)
    return EmbeddingReport(found, tuple(reports))


def survey(lake: SparkLake, space: str) -> Survey:
    """The work that `run` would do now, counted; nothing is written.

    Raises: NotFound, SpaceMismatch: as `run`.
    """
    found = find(lake.lake, space)
    products, queries = lake.frame("products"), lake.frame("queries")
    everything = contents(products, queries).persist()
    try:
        wanted = _missing_now(lake, everything, found)
        count, missing_count = everything.count(), wanted.count()
        embedded = lake.frame("embeddings").where(f.col("space_id") == found.space_id)
        with_vector = everything.join(embedded.select("content_id"), on="content_id", how="left_semi").count()
        rate = _rate(lake, found, wanted) if missing_count else None
    finally:
        everything.unpersist()
    rows = products.count() + queries.count()
    kept = min(Backfill(lake.settings.backfills, found.space_id).rows(), missing_count)
    return Survey(found, rows, count, count - with_vector - missing_count, missing_count - kept, kept, rate)


def _rate(lake: SparkLake, space: Space, wanted: DataFrame) -> float:
    """Contents a second of the second half of a few, on all threads of this process."""
    from models.inference import shared_embedder

    _require_artifact_of(space)
    some = with_images(wanted.limit(SAMPLE), lake.frame("product_images")).toArrow()
    embedder = shared_embedder(space.artifact, lake.settings.workers)
    half = len(some) // 2
    began = 0.0
    for part in (some[:half], some[half:]):  # the first calls of a model are slower
        began = time.monotonic()
        embedder.embed_readable(_texts(part), part["images"].to_pylist())
    return (len(some) - half) / (time.monotonic() - began)


def _require_artifact_of(space: Space) -> None:
    """Raises SpaceMismatch when the artifact of a space makes vectors of another one."""
    made_by = read_encoder_artifact(space.artifact).space
    require_same(space.space_id, made_by.space_id, what=f"encoder artifact {space.artifact}")


def _missing_now(lake: SparkLake, everything: DataFrame, space: Space) -> DataFrame:
    embeddings, rejects = (lake.frame(name) for name in ("embeddings", "rejects"))
    return missing(everything, embeddings, rejects, space.space_id)


def _embed(
    lake: SparkLake,
    space: Space,
    wanted: DataFrame,
    backfill: Backfill,
    count: int,
    progress: Progress,
) -> Plan:
    """Embed all chunks of a plan that nobody has embedded yet; the plan."""
    _require_artifact_of(space)
    plan = backfill.plan(count)
    workers = min(lake.session.sparkContext.defaultParallelism, plan.chunks)
    threads = max(1, lake.settings.workers // workers) if lake.settings.spark_master.startswith("local") else 1
    done = lake.session.createDataFrame(pa.table({"chunk": pa.array(backfill.done(plan), pa.int64())}))
    left = wanted.withColumn("chunk", f.expr(plan.chunk_sql)).join(f.broadcast(done), on="chunk", how="left_anti")
    shown = with_images(left.drop("chunk"), lake.frame("product_images"))
    with progress.step(f"Embedding {plan.contents:,} contents", plan.contents) as step, _told(backfill, plan, step):
        transform(shown, backfill, plan, space.artifact, workers=workers, threads=threads).agg(f.sum("rows")).collect()
    return plan


def _write(lake: SparkLake, space: Space, files: Sequence[Path], written_at: datetime) -> WriteReport:
    """Bring the chunks that were kept into the lake, in one commit."""
    made = lake.session.read.schema(EMBEDDED).parquet(*map(str, files)).withColumn("space_id", f.lit(space.space_id))
    good = made.where("vector IS NOT NULL").withColumn("event_timestamp", f.lit(TIMELESS))
    refused = made.where("vector IS NULL").select("content_id", "space_id", f.lit(UNREADABLE).alias("_rule"))
    books: dict[str, Any] = {"source": "embed_contents", "written_at": written_at}
    only = {"space_id": space.space_id}
    report = writes.merge(lake, "embeddings", good.select(*EMBEDDINGS.facts), only=only, **books)
    return writes.with_refused(lake, report, refused, **books)


def _embed_with(backfill: Backfill, plan: Plan, artifact: str, threads: int) -> Callable[[ArrowBatches], ArrowBatches]:
    def embed(batches: ArrowBatches) -> ArrowBatches:
        from models.inference import shared_embedder

        for chunk, rows in _by_chunk(batches):
            if backfill.is_done(plan, chunk):
                continue
            embedder = shared_embedder(artifact, threads)
            vectors, readable = embedder.embed_readable(_texts(rows), rows["images"].to_pylist())
            found = [vector if good else None for vector, good in zip(vectors, readable, strict=True)]
            columns = {"content_id": rows["content_id"], "vector": pa.array(found, pa.list_(pa.float32()))}
            backfill.keep(plan, chunk, pa.table(columns))
            yield pa.record_batch([[rows.num_rows]], names=["rows"])

    return embed


def _texts(rows: pa.Table) -> list[str | None]:
    """The prompt texts that the encoder reads, from titles and attributes."""
    pairs = zip(rows["title"].to_pylist(), rows["attributes"].to_pylist(), strict=True)
    return [prompt_text(title, dict(attributes)) for title, attributes in pairs]


def _by_chunk(batches: ArrowBatches) -> Iterator[tuple[int, pa.Table]]:
    """Rows that stand together and are of one chunk, with its number."""
    held: list[pa.RecordBatch] = []
    number = -1
    for batch in batches:
        numbers = batch["chunk"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)] if len(numbers) else []
        for start, stop in pairwise(edges):
            if held and numbers[start] != number:
                yield number, pa.Table.from_batches(held)
                held = []
            number = int(numbers[start])
            held.append(batch.slice(start, stop - start))
    if held:
        yield number, pa.Table.from_batches(held)


@contextmanager
def _told(backfill: Backfill, plan: Plan, step: Step) -> Iterator[None]:
    """A block of which is said now and then how far it is."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(LOOK_SECONDS):
            at = backfill.progress(plan)
            step.update(at.contents, plan.contents, f"{at.rate:,.0f}/s" if at.rate else "")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def main(argv: Sequence[str] | None = None) -> None:
    """Embed the contents that have no vector in a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default=LIVE, help="name, id or beginning of an id; 'live' is the default")
    options = parser.parse_args(argv)
    settings = Settings.from_environment()
    space = find(Lake(settings), options.space).space_id
    with (
        running("embed_contents", settings.log_level) as job,
        context(space=space),
        session(settings, "embed_contents") as spark,
    ):
        lake, now = SparkLake(spark, settings), datetime.now(UTC)
        report = run(lake, space, written_at=now, progress=LoggedProgress())
        counts = {"coverage": report.space.coverage, "written": report.written, "rejected": report.rejected}
        print(job.report(space=space, **counts, tables=report.writes))


if __name__ == "__main__":
    main()
