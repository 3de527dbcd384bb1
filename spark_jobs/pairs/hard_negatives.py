"""Hard negatives of pairs: same category, near the query in the previous space, chosen by nobody after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f

from models.training.hard_negatives import MiningConfig, hard_negatives, rows_of_units
from moonlake.arrays import Float32s
from moonlake.embeddings.contents import prompt_text

ROWS_PER_CALL = 128
MINED = "behavior_id string, hard_negative_content_ids array<string>"
EMBEDDED = "content_id string, vector array<float>"


def pool(products: DataFrame, units: DataFrame) -> DataFrame:
    """block, content_id, unit_ids: what may be a negative: the newest content of one product of each unit.

    A content that several units have stands there once, with all of them. A block is a category.

    Args: products: rows of `products` up to the end of the window.
    """
    newest_first = Window.partitionBy("product_id").orderBy(f.desc("event_timestamp"), f.desc("created_at"))
    newest = products.withColumn("_place", f.row_number().over(newest_first)).where("_place = 1 AND NOT deleted")
    facts = newest.select("product_id", "content_id").join(units, on="product_id", how="inner")
    one = Window.partitionBy("unit_id").orderBy("product_id")
    single = facts.withColumn("_place", f.row_number().over(one)).where("_place = 1")
    return single.groupBy(block().alias("block"), "content_id").agg(
        f.array_sort(f.collect_set("unit_id")).alias("unit_ids")
    )


def chosen_after(chosen: DataFrame) -> DataFrame:
    """anchor_content_id, chosen_units: all units that any user clicked, put into the cart or bought after a query.

    Args: chosen: as `spark_jobs.pairs.user_choices.choices` gives it, for all actions, dropped or not.
    """
    known = chosen.where("anchor_content_id IS NOT NULL AND positive_spu_id IS NOT NULL")
    return known.groupBy("anchor_content_id").agg(f.array_sort(f.collect_set("positive_spu_id")).alias("chosen_units"))


def with_negatives(pairs: DataFrame, candidates: DataFrame, chosen: DataFrame, config: MiningConfig) -> DataFrame:
    """The pairs with `hard_negative_content_ids`, the most similar to the query first.

    Args:
        pairs: as `spark_jobs.pairs.purchase_cleaning.with_similarity` gives them.
        candidates: as `pool` gives it, with `vector`.
        chosen: as `chosen_after` gives it.
    """
    asked = pairs.join(chosen, on="anchor_content_id", how="left").select(
        "behavior_id",
        "anchor_content_id",
        "positive_content_id",
        "positive_spu_id",
        "anchor_vector",
        "positive_vector",
        "chosen_units",
        block().alias("block"),
    )
    by_block = asked.groupBy("block").cogroup(candidates.groupBy("block"))
    return pairs.join(by_block.applyInArrow(_mined_with(config), MINED), on="behavior_id", how="left")


def _mined_with(config: MiningConfig) -> Callable[[pa.Table, pa.Table], pa.Table]:
    def mined(pairs: pa.Table, candidates: pa.Table) -> pa.Table:
        return mine_block(pairs, candidates, config)

    return mined


def mine_block(pairs: pa.Table, candidates: pa.Table, config: MiningConfig) -> pa.Table:
    """behavior_id, hard_negative_content_ids of the pairs of one block; the arguments hold what `with_negatives` says.

    Never negatives of a pair: contents of its unit, contents of any unit chosen after the same query, its own two
    contents, and contents that any of these units share with others.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # Spark runs one worker a core
    contents = candidates["content_id"].to_pylist()
    row_of = {content: row for row, content in enumerate(contents)}
    rows_of = rows_of_units(candidates["unit_ids"].to_pylist())
    forbidden = []
    for pair in pairs.select(
        ["anchor_content_id", "positive_content_id", "positive_spu_id", "chosen_units"]
    ).to_pylist():
        units = {pair["positive_spu_id"], *(pair["chosen_units"] or ())}
        rows = [rows_of[unit] for unit in sorted(units) if unit in rows_of]
        own = [
            row_of[pair[f"{side}_content_id"]]
            for side in ("anchor", "positive")
            if pair[f"{side}_content_id"] in row_of
        ]
        forbidden.append(np.concatenate([*rows, np.array(own, np.int64)]))
    found = hard_negatives(
        _matrix(pairs["anchor_vector"]),
        _matrix(pairs["positive_vector"]),
        _matrix(candidates["vector"]),
        forbidden,
        config,
    )
    names = [[contents[row] for row in rows] for rows in found]
    return pa.table(
        {"behavior_id": pairs["behavior_id"], "hard_negative_content_ids": pa.array(names, pa.list_(pa.string()))}
    )


def _matrix(vectors: pa.ChunkedArray) -> Float32s:
    """float32 [N, D] of a column of lists."""
    joined = vectors.combine_chunks()
    if not len(joined):
        return np.empty((0, 0), np.float32)
    return joined.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(len(joined), -1)


def embedded(wanted: DataFrame, artifact: str, threads: int) -> DataFrame:
    """content_id, vector: the contents that can be read, embedded with an encoder artifact.

    Args:
        wanted: as `with_pictures` gives it; each partition is one worker's, which loads the model once.
        threads: CPU threads of one worker.
    """

    def embed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import torch

        from models.inference import Embedder

        embedder: Embedder | None = None
        for whole in batches:
            if embedder is None:
                torch.set_num_threads(threads)
                embedder = Embedder.open(artifact)
            for at in range(0, whole.num_rows, ROWS_PER_CALL):
                batch = whole.slice(at, ROWS_PER_CALL)
                texts = [
                    query or prompt_text(title, dict(attributes or ()))
                    for query, title, attributes in zip(
                        *(batch[name].to_pylist() for name in ("query_text", "title", "attributes")), strict=True
                    )
                ]
                vectors, readable = embedder.embed_readable(texts, batch["images"].to_pylist())
                rows = [vector if good else None for vector, good in zip(vectors, readable, strict=True)]
                yield pa.record_batch(
                    [batch["content_id"], pa.array(rows, pa.list_(pa.float32()))], names=["content_id", "vector"]
                )

    return wanted.mapInArrow(embed, EMBEDDED).where("vector IS NOT NULL")


def with_pictures(wanted: DataFrame, products: DataFrame, queries: DataFrame, images: DataFrame) -> DataFrame:
    """content_id, query_text, title, attributes, images: what an encoder reads of each content, its files in order.

    Args: wanted: content_id, each once.
    """
    nothing = f.lit(None).cast("string")
    of_products = products.select("content_id", nothing.alias("query_text"), "title", "attributes", "image_ids")
    of_queries = queries.select(
        "content_id",
        f.col("text").alias("query_text"),
        nothing.alias("title"),
        f.create_map().cast("map<string,string>").alias("attributes"),
        "image_ids",
    )
    # Rows of one content_id agree in all that the encoder reads, so any of them will do.
    facts = (
        of_products.unionByName(of_queries)
        .join(wanted, on="content_id", how="left_semi")
        .dropDuplicates(["content_id"])
    )
    files = (
        facts.select("content_id", f.posexplode("image_ids").alias("place", "image_id"))
        .join(images.select("image_id", "image_bytes"), on="image_id", how="inner")
        .groupBy("content_id")
        .agg(f.array_sort(f.collect_list(f.struct("place", "image_bytes"))).getField("image_bytes").alias("images"))
    )
    found = f.coalesce("images", f.array().cast("array<binary>")).alias("images")
    return facts.join(files, on="content_id", how="left").select(
        "content_id", "query_text", "title", "attributes", found
    )


def block() -> Column:
    """The block of a row: its category, or one block for all without one."""
    return f.coalesce("category", f.lit("")).alias("block")
