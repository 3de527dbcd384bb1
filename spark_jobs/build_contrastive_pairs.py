"""Job: training pairs of the encoder, a query and a product that its user then chose, for stage 1 or stage 2.

Stage 1: every click, cart and purchase after a query of any modality. Stage 2: purchases only, cleaned, in balance and
with hard negatives by an earlier embedding space. The two stages of a window stand side by side in the table, and a run
replaces the rows of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from models.encoder.config import read_encoder_artifact
from models.training.entities import Phrase
from models.training.hard_negatives import MiningConfig
from moonlake.embeddings import releases, spaces
from moonlake.errors import InputError
from moonlake.lake.lake import WriteReport
from moonlake.logs import running
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session
from moonlake.timestamps import parse_moment
from spark_jobs.pairs import hard_negatives, purchase_cleaning, user_choices
from spark_jobs.pairs.product_units import units
from spark_jobs.pairs.row_counts import RowCounts
from spark_jobs.pairs.user_choices import CHOICES, DEFAULT_MIX, as_pairs, parse_mix

__all__ = ["CHOICES", "CleaningConfig", "PairsReport", "main", "run"]

CONTENTS_PER_PARTITION = 512


@dataclass(frozen=True, slots=True)
class CleaningConfig:
    """Configuration of the cleaning of purchases for stage 2.

    Attributes:
        space: the previous embedding space, by name, id or "live".
        entities: a text query that names fewer different things of the catalogue is dropped.
        keep: pairs that a product unit keeps, its least similar queries first. MOON keeps one. The default only cuts
            best-sellers: a small log has few purchases a product, and every one that is thrown away is missed.
        balance: how far categories are brought to their share of impressions: 0 not at all, 1 all the way.
        mining: how hard negatives are chosen.
    """

    space: str
    entities: int = 2
    keep: int = 8
    balance: float = 1.0
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        if self.keep < 1 or self.entities < 0 or not 0 <= self.balance <= 1:
            raise InputError(f"{self}: expected keep from 1 on, entities from 0 on and balance in [0, 1]")


@dataclass(frozen=True, slots=True)
class PairsReport:
    """The report of a run: what it wrote, and the rows that each of its steps left.

    Attributes:
        steps: one dictionary a step, in order: step, rows, dropped, seconds.
        dropped: choices that gave no pair, by reason.
        negatives: hard negatives of all pairs together.
    """

    write: WriteReport
    stage: int
    steps: list[dict[str, Any]]
    dropped: Mapping[str, int]
    pair_types: Mapping[str, int]
    negatives: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, those of the write first."""
        own = ("stage", "steps", "dropped", "pair_types", "negatives")
        return {**self.write.as_dict(), **{name: getattr(self, name) for name in own}}


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables as of the end of the window, of which everything is made."""

    behaviors: DataFrame
    impressions: DataFrame
    queries: DataFrame
    products: DataFrame
    images: DataFrame
    embeddings: DataFrame


def run(
    lake: SparkLake,
    start: datetime,
    end: datetime,
    *,
    stage: int = 1,
    mix: Mapping[str, float] = DEFAULT_MIX,
    cleaning: CleaningConfig | None = None,
    written_at: datetime,
) -> PairsReport:
    """Build the pairs of a stage of the actions in [start, end); `end` is T1 of the honest protocol, or earlier.

    Args:
        mix: weight of each pair type, relative to those of the same query modality.
        cleaning: needed by stage 2, and by it alone.
    """
    if (stage == 2) != (cleaning is not None):
        raise InputError(f"stage {stage}: --space and what belongs to it are for stage 2, and stage 2 needs --space")
    tables = _read(lake, start, end)
    row_counts = RowCounts()
    merged = row_counts.keep(units(tables.products, tables.images))
    every = row_counts.step(
        "choices of the window", user_choices.choices(tables.behaviors, tables.queries, tables.products, merged, mix)
    )
    considered = every if stage == 1 else row_counts.step("purchases", every.where("action = 'purchase'"))
    dropped = _counts(considered.where("dropped IS NOT NULL"), "dropped")
    chosen = row_counts.step("choices that give a pair", considered.where("dropped IS NULL").drop("dropped"))
    if cleaning is not None:
        chosen = _clean(lake, tables, merged, every, chosen, cleaning, row_counts)
    negatives = f.sum(f.size("hard_negative_content_ids"))
    pairs = as_pairs(chosen, stage)
    write = writes.replace_window(
        lake,
        "contrastive_pairs",
        pairs,
        start=start,
        end=end,
        only={"stage": stage},
        source="build_contrastive_pairs",
        written_at=written_at,
    )
    mined = pairs.agg(negatives.alias("negatives")).collect()[0]["negatives"]
    return PairsReport(write, stage, row_counts.as_dicts(), dropped, _counts(chosen, "pair_type"), mined or 0)


def _read(lake: SparkLake, start: datetime, end: datetime) -> _Tables:
    known = f.col("event_timestamp") < f.lit(end)
    within = known & (f.col("event_timestamp") >= f.lit(start))
    return _Tables(
        behaviors=lake.frame("behaviors").where(within),
        impressions=lake.frame("impressions").where(within),
        queries=lake.frame("queries"),
        products=lake.frame("products").where(known),
        images=lake.frame("product_images"),
        embeddings=lake.frame("embeddings"),
    )


def _clean(
    lake: SparkLake,
    tables: _Tables,
    merged: DataFrame,
    every: DataFrame,
    bought: DataFrame,
    config: CleaningConfig,
    row_counts: RowCounts,
) -> DataFrame:
    """The purchases that stage 2 trains on, with their hard negatives."""
    phrases = [Phrase(*row) for row in purchase_cleaning.vocabulary(tables.products).collect()]
    texts = bought.where("modality = 'text'").select("query_text").dropDuplicates()
    counts = purchase_cleaning.entity_counts(texts, phrases)
    said = row_counts.step(
        f"text queries of {config.entities} entities", purchase_cleaning.with_entities(bought, counts, config.entities)
    )
    once = row_counts.step("each query once a product unit", purchase_cleaning.each_query_once(said))
    candidates = row_counts.keep(hard_negatives.pool(tables.products, merged))
    wanted = once.select(f.explode(f.array("anchor_content_id", "positive_content_id")).alias("content_id"))
    wanted = wanted.unionByName(candidates.select("content_id")).dropDuplicates()
    vectors = row_counts.keep(_vectors(lake, tables, row_counts.keep(wanted), config.space, row_counts))
    near = row_counts.step("both sides have a vector", purchase_cleaning.with_similarity(once, vectors))
    hardest = row_counts.step(
        f"the {config.keep} least similar of a unit", purchase_cleaning.least_similar(near, config.keep)
    )
    weights = purchase_cleaning.category_weights(hardest, tables.impressions, merged, config.balance)
    even = row_counts.step("categories in balance with exposure", purchase_cleaning.rebalanced(hardest, weights))
    with_vectors = candidates.join(vectors, on="content_id", how="inner")
    chosen = hard_negatives.chosen_after(every)
    mined = hard_negatives.with_negatives(even, with_vectors, chosen, config.mining)
    return row_counts.step("hard negatives mined", mined.drop("anchor_vector", "positive_vector"))


def _vectors(lake: SparkLake, tables: _Tables, wanted: DataFrame, name: str, row_counts: RowCounts) -> DataFrame:
    """content_id, vector of the contents in a space: from the lake, or embedded now where the lake has none."""
    space = releases.find(lake.lake, name)
    of_space = tables.embeddings.where(f.col("space_id") == space.space_id).select("content_id", "vector")
    stored = wanted.join(of_space, on="content_id", how="inner")
    missing = row_counts.keep(wanted.join(of_space.select("content_id"), on="content_id", how="left_anti"))
    count = missing.count()
    if not count:
        return stored
    made_by = read_encoder_artifact(space.artifact).space
    spaces.require_same(space.space_id, made_by.space_id, what=f"encoder artifact {space.artifact}")
    workers = max(1, min(lake.settings.workers, count // CONTENTS_PER_PARTITION))
    threads = max(1, lake.settings.workers // workers)
    pictured = hard_negatives.with_pictures(missing, tables.products, tables.queries, tables.images).repartition(
        workers
    )
    return stored.unionByName(hard_negatives.embedded(pictured, space.artifact, threads))


def _counts(frame: DataFrame, column: str) -> dict[str, int]:
    """The number of rows by value of a column."""
    return {row[column]: row["count"] for row in frame.groupBy(column).count().orderBy(column).collect()}


def main(argv: Sequence[str] | None = None) -> None:
    """Build the pairs of the actions in [`--start`, `--end`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=parse_moment, required=True, help="first moment, with its time zone")
    parser.add_argument("--end", type=parse_moment, required=True, help="first moment after the window")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="training stage that the pairs are for")
    parser.add_argument("--mix", default="", help="weights of pair types: image_query_to_product=0.4,...")
    second = parser.add_argument_group("stage 2")
    second.add_argument("--space", help="previous embedding space, by name, id or 'live'")
    second.add_argument("--entities", type=int, help="names of the catalogue that a text query has at least")
    second.add_argument("--keep", type=int, help="pairs that a product unit keeps, least similar queries first")
    second.add_argument("--balance", type=float, help="categories to their exposure: 0 not at all, 1 all the way")
    second.add_argument("--negatives", dest="count", type=int, help="hard negatives of a pair, at most")
    second.add_argument(
        "--query-margin", type=float, help="share by which a negative is less similar than the positive"
    )
    second.add_argument("--positive-cap", type=float, help="largest cosine of a negative and the positive")
    second.add_argument("--depth", type=int, help="nearest products of a query that are looked at")
    options = parser.parse_args(argv)
    settings = Settings.from_environment()
    cleaning = _cleaning(options)
    mix = parse_mix(options.mix)
    with (
        running("build_contrastive_pairs", settings.log_level) as job,
        session(settings, "build_contrastive_pairs") as spark,
    ):
        report = run(
            SparkLake(spark, settings),
            options.start,
            options.end,
            stage=options.stage,
            mix=mix,
            cleaning=cleaning,
            written_at=datetime.now(UTC),
        )
        print(job.report(tables=[report.write], pairs=report))


def _cleaning(options: argparse.Namespace) -> CleaningConfig | None:
    """The cleaning that the options of stage 2 ask for; None without any. Raises InputError: some, but no --space."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    mining = {name: given[name] for name in ("count", "query_margin", "positive_cap", "depth") if name in given}
    own = {name: given[name] for name in ("space", "entities", "keep", "balance") if name in given}
    if not own and not mining:
        return None
    if "space" not in own:
        raise InputError("options of stage 2 were given without --space: name the previous embedding space")
    return CleaningConfig(**own, mining=MiningConfig(**mining))


if __name__ == "__main__":
    main()
