"""Purchases that train stage 2: clearly said, each query once, hard for the previous space, in balance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f

from models.training.entities import EntityFinder, Phrase
from spark_jobs.pairs.user_choices import draw

MIN_WORD_PRODUCTS = 5
"""A title word of fewer products than this is no name that a query could be understood by."""
MOST_WEIGHT = 4.0
"""No category is drawn more than 4 times as often, or as seldom, as its share of pairs."""


def vocabulary(products: DataFrame) -> DataFrame:
    """label, phrase: brands, categories, attribute values and frequent title words of the catalogue, in lower case."""
    named = {
        "BRAND": products.select("product_id", f.col("brand").alias("phrase")),
        "CATEGORY": products.select("product_id", f.col("category").alias("phrase")),
        "ATTRIBUTE": products.select("product_id", f.explode(f.map_values("attributes")).alias("phrase")),
        "WORD": products.select("product_id", f.explode(f.split("title", r"[^\p{L}\p{N}]+")).alias("phrase")),
    }
    parts = []
    for label, phrases in named.items():
        least = MIN_WORD_PRODUCTS if label == "WORD" else 1
        counted = phrases.where("phrase IS NOT NULL").groupBy(f.lower(f.trim("phrase")).alias("phrase"))
        enough = counted.agg(f.countDistinct("product_id").alias("_products")).where(f.col("_products") >= least)
        spelt = f.length("phrase") > 1 if label == "WORD" else f.length("phrase") > 0
        parts.append(
            enough.where(spelt & f.col("phrase").rlike(r"\p{L}")).select(f.lit(label).alias("label"), "phrase")
        )
    return parts[0].unionByName(parts[1]).unionByName(parts[2]).unionByName(parts[3])


def entity_counts(texts: DataFrame, phrases: Sequence[Phrase]) -> DataFrame:
    """query_text, entities: how many different entities each of the texts holds.

    Args: texts: query_text, each once.
    """
    return texts.mapInArrow(_count_with(tuple(phrases)), "query_text string, entities int")


def _count_with(phrases: tuple[Phrase, ...]) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        finder: EntityFinder | None = None
        for batch in batches:
            finder = finder or EntityFinder(phrases)
            found = pa.array(finder.count(batch["query_text"].to_pylist()), pa.int32())
            yield pa.record_batch([batch["query_text"], found], names=["query_text", "entities"])

    return count


def with_entities(purchases: DataFrame, counts: DataFrame, least: int) -> DataFrame:
    """The purchases without those after a text query of fewer than `least` entities.

    Args: counts: as `entity_counts` gives them for the texts of text queries.
    """
    said = f.col("modality") != "text"
    joined = purchases.join(counts, on="query_text", how="left")
    return joined.where(said | (f.coalesce("entities", f.lit(0)) >= least)).select(*purchases.columns)


def each_query_once(purchases: DataFrame) -> DataFrame:
    """The first purchase of each query and product unit: the same query content says nothing new a second time."""
    first = Window.partitionBy("positive_spu_id", "anchor_content_id").orderBy("event_timestamp", "behavior_id")
    return purchases.withColumn("_place", f.row_number().over(first)).where("_place = 1").drop("_place")


def with_similarity(purchases: DataFrame, vectors: DataFrame) -> DataFrame:
    """The purchases with both vectors and their cosine in `similarity`; those without a vector are left out.

    Args: vectors: content_id, vector: unit vectors of the previous space.
    """
    sides = purchases
    for side in ("anchor", "positive"):
        of_side = vectors.select(
            f.col("content_id").alias(f"{side}_content_id"), f.col("vector").alias(f"{side}_vector")
        )
        sides = sides.join(of_side, on=f"{side}_content_id", how="inner")
    products = f.zip_with("anchor_vector", "positive_vector", lambda one, other: one.cast("double") * other)
    return sides.withColumn("similarity", f.aggregate(products, f.lit(0.0), lambda total, one: total + one))


def least_similar(purchases: DataFrame, keep: int) -> DataFrame:
    """The `keep` purchases of each product unit whose query the previous space finds least similar to the product."""
    hardest = Window.partitionBy("positive_spu_id").orderBy("similarity", "behavior_id")
    return purchases.withColumn("_place", f.row_number().over(hardest)).where(f.col("_place") <= keep).drop("_place")


def category_weights(purchases: DataFrame, impressions: DataFrame, units: DataFrame, strength: float) -> DataFrame:
    """category, share_kept: the part of each category's purchases that brings them nearer to what users are shown.

    share_kept is (share of impressions / share of purchases) ** strength, the ratio cut to [1/4, 4], over the largest
    of these: the category that is most in want is kept whole.

    Args:
        impressions: rows of `impressions` in the window.
        units: product_id and category.
        strength: 0 leaves the purchases as they are, 1 goes all the way to the shares of exposure.
    """
    category = f.coalesce("category", f.lit("")).alias("category")
    exposed = impressions.join(units, on="product_id", how="inner").groupBy(category)
    bought = purchases.groupBy(category)
    both = bought.agg(f.count("*").alias("bought")).join(
        exposed.agg(f.count("*").alias("exposed")), on="category", how="inner"
    )
    whole = Window.partitionBy(f.lit(0))
    ratio = (f.col("exposed") / f.sum("exposed").over(whole)) / (f.col("bought") / f.sum("bought").over(whole))
    cut = f.least(f.greatest(ratio, f.lit(1 / MOST_WEIGHT)), f.lit(MOST_WEIGHT))
    weighed = both.select("category", f.pow(cut, f.lit(strength)).alias("weight"))
    return weighed.select("category", (f.col("weight") / f.max("weight").over(whole)).alias("share_kept"))


def rebalanced(purchases: DataFrame, weights: DataFrame) -> DataFrame:
    """The purchases drawn by the weight of their category; the draw depends on the behaviour alone.

    Args: weights: as `category_weights` gives them; a category that is not there is kept whole.
    """
    joined = purchases.withColumn("_category", _known("category")).join(
        weights.withColumnRenamed("category", "_category"), on="_category", how="left"
    )
    kept = draw(f.col("behavior_id"), f.lit("rebalance")) <= f.coalesce("share_kept", f.lit(1.0))
    return joined.where(kept).select(*purchases.columns)


def _known(column: str) -> Column:
    return f.coalesce(column, f.lit(""))
