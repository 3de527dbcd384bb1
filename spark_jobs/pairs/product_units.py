"""Product units: the SKUs of one SPU, and listings that show the same thing, merged into one.

Two products are one unit when any of these says so, directly or by a chain of others:

1. they have the same SPU;
2. they show the same image file;
3. one category, near-duplicate pictures (Hamming distance at most 3 of 64 bits) AND near-duplicate titles (Jaccard at
   least 0.8 over words, so in a short title every word).

Titles alone never merge: "red striped mug" is the title of many mugs. Nor do near-duplicate pictures alone: packshots
on a white ground have near-equal hashes whatever they show. Pictures with little in them (fewer than 8 of 64 gradients
one way) and files that more than 50 products show (a logo, a size chart) are no evidence at all.

Nothing here compares all with all: pictures and titles meet in the bands of locality-sensitive hashes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

MAX_HAMMING = 3
IMAGE_BANDS = 4
"""Hashes that differ in at most 3 bits agree in one of 4 bands of 16 bits: none is missed."""
MIN_GRADIENTS = 8
MIN_JACCARD = 0.8
TITLE_BANDS = 4
ROWS_PER_BAND = 3
"""Two titles with a Jaccard of 0.8 share one of 4 bands of 3 rows in 94% of cases, equal ones always."""
MAX_OWNERS = 50
MAX_BUCKET = 1_000
"""Pictures of one bucket: where more meet, titles and pictures are both of the kind that says nothing."""


def units(products: DataFrame, images: DataFrame) -> DataFrame:
    """product_id, unit_id, category: one row per product, with its newest category.

    A unit is named by the first of its SPUs, or "product:" and its first product where it has none.

    Args:
        products: rows of `products`, all states of each that may be known.
        images: rows of `product_images`.
    """
    shown = products.select(
        "product_id", "category", _words("title").alias("words"), f.explode("image_ids").alias("image_id")
    )
    pictures = (
        shown.where(f.size("words") > 0)
        .join(images.select("image_id", "perceptual_hash"), on="image_id", how="inner")
        .where(_gradients("perceptual_hash").between(MIN_GRADIENTS, 64 - MIN_GRADIENTS))
        .withColumn("picture", f.md5(f.concat_ws("\0", "category", "perceptual_hash", f.concat_ws(" ", "words"))))
    )
    by_spu = products.where("spu_id IS NOT NULL").select("product_id", f.concat(f.lit("spu:"), "spu_id").alias("hub"))
    by_file = shown.select("product_id", f.concat(f.lit("file:"), "image_id").alias("hub"))
    by_picture = pictures.select("product_id", f.concat(f.lit("picture:"), "picture").alias("hub"))
    sharing = sharers(by_spu.unionByName(by_file).unionByName(by_picture))
    return _named(products, components(sharing.unionByName(near_duplicates(pictures))))


def sharers(owned: DataFrame) -> DataFrame:
    """from, to: each product that shares a hub with others, and the first of these.

    Args: owned: product_id, hub: an SPU, an image file, or a picture with its title.
    """
    owners = owned.groupBy("hub").agg(f.array_sort(f.collect_set("product_id")).alias("owners"))
    crowd = f.col("hub").startswith("file:") & (f.size("owners") > MAX_OWNERS)
    shared = owners.where((f.size("owners") > 1) & ~crowd)
    return shared.select(f.col("owners")[0].alias("from"), f.explode("owners").alias("to")).where("from < to")


def near_duplicates(pictures: DataFrame) -> DataFrame:
    """from, to: products that show pictures that look alike under titles that do, in one category.

    Of the products that show one and the same picture under the same title, the first stands for all.

    Args: pictures: picture, product_id, category, perceptual_hash, words.
    """
    single = pictures.groupBy("picture", "category", "perceptual_hash", "words").agg(f.min("product_id").alias("owner"))
    image_bands = [
        f.concat(f.lit(f"{at}:"), f.substring("perceptual_hash", 4 * at + 1, 4)) for at in range(IMAGE_BANDS)
    ]
    banded = single.mapInArrow(
        _with_title_bands, t.StructType([*single.schema, t.StructField("bands", t.ArrayType(t.StringType()))])
    )
    member = f.struct("owner", "perceptual_hash", "words").alias("member")
    keyed = banded.select("category", "bands", member, f.explode(f.array(*image_bands)).alias("image_band"))
    keyed = keyed.select("category", "image_band", "member", f.explode("bands").alias("band")).select(
        f.xxhash64("category", "image_band", "band").alias("bucket"), "member"
    )
    # Nearly every bucket holds one picture: counted as numbers they cost little, gathered as lists a lot.
    crowd = keyed.groupBy("bucket").count().where(f.col("count").between(2, MAX_BUCKET)).select("bucket")
    meeting = keyed.join(crowd, on="bucket", how="left_semi")
    crowded = meeting.groupBy("bucket").agg(f.collect_list("member").alias("members"))
    candidates = crowded.select(f.explode("members").alias("one"), "members").select(
        "one", f.explode("members").alias("other")
    )
    shared = f.size(f.array_intersect("one.words", "other.words"))
    either = f.size(f.array_union("one.words", "other.words"))
    alike = (_hamming("one.perceptual_hash", "other.perceptual_hash") <= MAX_HAMMING) & (shared >= MIN_JACCARD * either)
    found = candidates.where(f.col("one.owner") < f.col("other.owner")).where(alike)
    return found.select(f.col("one.owner").alias("from"), f.col("other.owner").alias("to")).dropDuplicates()


def components(edges: DataFrame) -> DataFrame:
    """node, component: the connected components of the graph, each named by its first node.

    Done in one worker: what reaches it are edges between things that are shared at all, a small part of a catalogue.

    Args: edges: from, to.
    """
    together = edges.withColumn("_all", f.lit(0)).groupBy("_all")
    return together.applyInArrow(_connected, "node string, component string")


def _connected(edges: pa.Table) -> pa.Table:
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    nodes, numbers = np.unique(
        np.concatenate([edges[side].to_numpy(zero_copy_only=False) for side in ("from", "to")]), return_inverse=True
    )
    source, target = numbers.reshape(2, -1)
    graph = coo_array((np.ones(len(source), np.int8), (source, target)), shape=(len(nodes), len(nodes)))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)  # the nodes are sorted, so that the first is the smallest
    return pa.table({"node": pa.array(nodes, pa.string()), "component": pa.array(nodes[first[label]], pa.string())})


def _with_title_bands(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows with `bands`: the bands of the MinHash of their words."""
    from datasketch import MinHash  # type: ignore[import-untyped]

    for batch in batches:
        words = [[word.encode() for word in words] for words in batch["words"].to_pylist()]
        signatures = [one.hashvalues for one in MinHash.generator(words, num_perm=TITLE_BANDS * ROWS_PER_BAND, seed=1)]
        bands = [
            [f"{at}:{band.tobytes().hex()}" for at, band in enumerate(signature.reshape(TITLE_BANDS, ROWS_PER_BAND))]
            for signature in signatures
        ]
        yield batch.append_column("bands", pa.array(bands, pa.list_(pa.string())))


def _named(products: DataFrame, joined: DataFrame) -> DataFrame:
    newest = f.max_by("category", f.struct("event_timestamp", "created_at")).alias("category")
    whole = (
        products.groupBy("product_id")
        .agg(newest, f.min("spu_id").alias("spu_id"))
        .join(joined.withColumnRenamed("node", "product_id"), on="product_id", how="left")
        .withColumn("component", f.coalesce("component", "product_id"))
    )
    own_name = f.concat(f.lit("product:"), f.min("component"))
    names = whole.groupBy("component").agg(f.coalesce(f.min("spu_id"), own_name).alias("unit_id"))
    return whole.join(names, on="component", how="inner").select("product_id", "unit_id", "category")


def _words(column: str) -> Column:
    """The words of a text in lower case, each once and in order of the alphabet; none of null."""
    words = f.split(f.lower(f.coalesce(f.col(column), f.lit(""))), r"[^\p{L}\p{N}]+")
    return f.array_sort(f.array_distinct(f.filter(words, lambda word: word != "")))


def _half(column: str, first: int) -> Column:
    return f.conv(f.substring(column, first, 8), 16, 10).cast("long")


def _gradients(column: str) -> Column:
    return f.bit_count(_half(column, 1)) + f.bit_count(_half(column, 9))


def _hamming(one: str, other: str) -> Column:
    halves = [f.bit_count(_half(one, at).bitwiseXOR(_half(other, at))) for at in (1, 9)]
    return halves[0] + halves[1]
