"""Choices of users that become pairs, and the part of the product that each pair shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f

from moonlake.errors import InputError
from moonlake.schema.tables import BEHAVIORS, CONTRASTIVE_PAIRS, MODALITIES, PAIR_TYPES, PROMPT_ATTRIBUTES
from moonlake.spark.session import current_rows
from moonlake.words import values_by_name

CHOICES = ("click", "cart", "purchase")
FORMS = ("product", "image", "text")
FORM_WEIGHTS = {"product": 0.7, "image": 0.2, "text": 0.1}
DEFAULT_MIX: Mapping[str, float] = {
    f"{modality}_query_to_{form}": weight for modality in MODALITIES for form, weight in FORM_WEIGHTS.items()
}
"""Products are served whole, so most pairs show them whole. An image alone makes the encoder find in the picture what
titles leave out; a text alone is what it has of products without a picture, and says least. MOON names its nine pair
types but not their shares: these are ours."""

DRAWS = 2**52
"""A draw is one of so many numbers: as many as a float64 tells apart in (0, 1]."""


def parse_mix(words: str) -> dict[str, float]:
    """The weight of every pair type from `type=weight,...`.

    Weights are relative to each other within one query modality: how often a modality is searched with is not ours to
    say. A modality of which no type is named keeps its default, one whose weights are all 0 gives no pairs.

    >>> mix = parse_mix("image_query_to_product=0.4,text_query_to_product=0")
    >>> mix["image_query_to_product"], mix["image_query_to_image"], mix["product_query_to_image"]
    (0.4, 0.0, 0.2)

    Raises: InputError: an unknown type, a type named twice, or a weight that is no number from 0 on.
    """
    named: dict[str, float] = {}
    parts = [part for word in words.split(",") if (part := word.strip())]
    for name, weight in values_by_name(parts, "--mix", names=PAIR_TYPES).items():
        try:
            named[name] = float(weight)
        except ValueError:
            raise InputError(f"--mix: expected {name}=number, found {weight!r}") from None
        if not 0 <= named[name] < float("inf"):
            raise InputError(f"--mix: {name}={weight} is no weight: expected a number from 0 on")
    if len(named) < len(parts):
        raise InputError(f"--mix: a type is named twice in {words!r}")
    spoken_of = {name.partition("_query_to_")[0] for name in named}
    return {
        name: named.get(name, 0.0) if name.partition("_query_to_")[0] in spoken_of else DEFAULT_MIX[name]
        for name in PAIR_TYPES
    }


def choices(
    behaviors: DataFrame,
    queries: DataFrame,
    products: DataFrame,
    units: DataFrame,
    mix: Mapping[str, float] = DEFAULT_MIX,
    actions: Sequence[str] = CHOICES,
) -> DataFrame:
    """One row per choice, with its pair type, or with the reason why it gives no pair in `dropped`.

    Args:
        behaviors: rows of `behaviors` in the window; choices are those with one of `actions`.
        queries: rows of `queries`.
        products: rows of `products` up to the end of the window.
        units: as `spark_jobs.pairs.product_units` gives them.
        mix: weight of each pair type.

    Returns:
        behavior_id, action, event_timestamp, modality, query_text, anchor_content_id, positive_content_id,
        positive_product_id, positive_spu_id, category, pair_type, dropped.
    """
    has_text = f.greatest(_filled("title"), *(_filled(f"attributes['{name}']") for name in PROMPT_ATTRIBUTES))
    contents = products.groupBy("content_id").agg(
        f.max(has_text).alias("has_text"), f.max(f.size("image_ids") > 0).alias("has_image")
    )
    asked = queries.select("query_id", "modality", f.col("text").alias("query_text"))
    chosen = (
        current_rows(behaviors, BEHAVIORS)
        .where(f.col("action").isin(*actions))
        .join(asked, on="query_id", how="left")
        .join(contents, on="content_id", how="left")
        .join(units, on="product_id", how="left")
    )
    wanted = [modality for modality in MODALITIES if any(mix[f"{modality}_query_to_{form}"] > 0 for form in FORMS)]
    dropped = (
        f.when(f.col("modality").isNull() | f.col("query_content_id").isNull(), "query_unknown")
        .when(f.col("content_id").isNull() | f.col("has_text").isNull(), "content_unknown")
        .when(~f.col("has_text") & ~f.col("has_image"), "content_unreadable")
        .when(~f.col("modality").isin(*wanted), "modality_not_in_mix")
    )
    return chosen.select(
        "behavior_id",
        "action",
        "event_timestamp",
        "modality",
        "query_text",
        f.col("query_content_id").alias("anchor_content_id"),
        f.col("content_id").alias("positive_content_id"),
        f.col("product_id").alias("positive_product_id"),
        f.col("unit_id").alias("positive_spu_id"),
        "category",
        _drawn_type(mix).alias("pair_type"),
        dropped.alias("dropped"),
    )


def as_pairs(chosen: DataFrame, stage: int) -> DataFrame:
    """Rows of `contrastive_pairs`: of choices, with their hard negatives if they have any."""
    negatives = f.col("hard_negative_content_ids") if stage == 2 else f.array().cast("array<string>")
    return chosen.select(
        "*",
        f.md5(f.concat_ws("\0", "behavior_id", f.lit(stage), "pair_type")).alias("pair_id"),
        f.lit(stage).alias("stage"),
        negatives.alias("_negatives"),
    ).select(*(f.col("_negatives" if name == "hard_negative_content_ids" else name).alias(name) for name in _FACTS))


_FACTS = CONTRASTIVE_PAIRS.facts


def _filled(expression: str) -> Column:
    return f.expr(f"nullif({expression}, '') IS NOT NULL")


def draw(*keys: Column | str) -> Column:
    """float64 in (0, 1]: a number that the keys alone decide, evenly spread over different keys."""
    return (
        f.pmod(f.xxhash64(*(f.col(key) if isinstance(key, str) else key for key in keys)), f.lit(DRAWS)) + 1
    ) / DRAWS


def _drawn_type(mix: Mapping[str, float]) -> Column:
    """The pair type of a choice: of the types that its product can be shown as, one drawn by weight.

    Each type has an exponential clock of its weight as rate, and the first that rings wins: so a change of one weight
    moves choices to or from that type alone. A product without a text or without an image falls to the types that
    are left, and to "product" where the mix leaves none: whatever there is of it is shown.
    """
    alternatives = []
    for name in PAIR_TYPES:
        modality, _, form = name.partition("_query_to_")
        if mix[name] > 0:
            can = f.lit(True) if form == "product" else f.col(f"has_{form}")
            rings = -f.log(draw(f.col("behavior_id"), f.lit(name))) / mix[name]
            may = (f.col("modality") == modality) & can
            alternatives.append(f.when(may, f.struct(rings.alias("rings"), f.lit(name).alias("name"))))
    whole = f.concat("modality", f.lit("_query_to_product"))
    if not alternatives:
        return whole
    return f.coalesce(f.array_min(f.array(*alternatives)).getField("name"), whole)
