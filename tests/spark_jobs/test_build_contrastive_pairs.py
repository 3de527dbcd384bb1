"""Pairs of both stages: what becomes of every choice, which products are one, what is kept and what repels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from models.training.entities import Phrase
from models.training.hard_negatives import MiningConfig
from moonlake.embeddings import spaces
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.tables import PAIR_TYPES, TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import spark_schema
from spark_jobs import build_contrastive_pairs
from spark_jobs.build_contrastive_pairs import CleaningConfig
from spark_jobs.pairs import hard_negatives, purchase_cleaning, user_choices
from spark_jobs.pairs.product_units import components, near_duplicates, units
from spark_jobs.pairs.user_choices import DEFAULT_MIX, parse_mix

pytestmark = pytest.mark.spark

START = datetime(2026, 2, 1, tzinfo=UTC)
END = START + timedelta(days=10)

Rows = Sequence[Mapping[str, Any]]
WriteRows = Callable[[Settings, str, Rows], None]


def frame(spark: SparkSession, name: str, rows: Rows) -> DataFrame:
    """Rows of a table; columns that a row does not name are null."""
    schema = spark_schema(TABLES[name])
    for column in schema:
        column.nullable = True
    return spark.createDataFrame([tuple(row.get(column) for column in schema.names) for row in rows], schema)


def content(name: str) -> str:
    return stable_hash(name)


def product(product_id: str, title: str | None = None, images: Sequence[str] = (), **other: Any) -> dict[str, Any]:
    shown = {"product_id": product_id, "title": title, "image_ids": [content(name) for name in images]}
    common = {"attributes": {}, "deleted": False, "event_timestamp": START - timedelta(days=1), "created_at": START}
    return (
        shown | common | {"listed_at": START, "category": "mug", "content_id": content(f"content {product_id}")} | other
    )


def image(name: str, perceptual_hash: str) -> dict[str, Any]:
    return {"image_id": content(name), "perceptual_hash": perceptual_hash}


def query(query_id: str, modality: str, text: str | None = None) -> dict[str, Any]:
    images = [] if modality == "text" else [content(f"picture {query_id}")]
    return {"query_id": query_id, "modality": modality, "text": text, "image_ids": images} | {
        "content_id": content(f"query {query_id}"), "event_timestamp": START
    }  # fmt: skip


def behavior(
    number: int, query_id: str | None, product_id: str, action: str = "purchase", **other: Any
) -> dict[str, Any]:
    return {
        "behavior_id": f"b{number:05}",
        "user_id": "u",
        "action": action,
        "product_id": product_id,
        "query_id": query_id,
        "content_id": content(f"content {product_id}"),
        "query_content_id": None if query_id is None else content(f"query {query_id}"),
        "event_timestamp": START + timedelta(minutes=number),
        "created_at": START,
    } | other


def unit_rows(spark: SparkSession, products: Rows) -> DataFrame:
    return spark.createDataFrame(
        [(row["product_id"], row.get("spu_id") or row["product_id"], row["category"]) for row in products],
        "product_id string, unit_id string, category string",
    )


def test_a_mix_is_read_by_modality() -> None:
    assert parse_mix("") == DEFAULT_MIX
    mix = parse_mix("image_query_to_product=0.4,image_query_to_text=1")
    assert (mix["image_query_to_product"], mix["image_query_to_image"]) == (0.4, 0.0)
    assert mix["text_query_to_image"] == DEFAULT_MIX["text_query_to_image"]
    for wrong in ("image_query_to_video=1", "image_query_to_text", "image_query_to_text=-1", "image_query_to_text=inf"):
        with pytest.raises(InputError, match=r"--mix"):
            parse_mix(wrong)


def test_every_choice_is_shown_as_it_can_be_or_dropped_for_a_reason(spark: SparkSession) -> None:
    products = [
        product("whole", "red mug", ["a"]),
        product("titled", "red mug"),
        product("pictured", None, ["b"]),
        product("material", None, attributes={"material": "clay"}),
        product("nothing"),
    ]
    queries = [query(modality, modality) for modality in ("text", "image", "product")]
    names = [row["product_id"] for row in products[:4]]
    rows = [
        behavior(number, modality, name, ("click", "cart", "purchase")[number % 3])
        for number, (modality, name) in enumerate(
            (modality, name) for modality in ("text", "image", "product") for name in names for _ in range(60)
        )
    ]
    odd = [
        behavior(90_000, "text", "nothing"),
        behavior(90_001, "text", "unheard of"),
        behavior(90_002, None, "whole"),
        behavior(90_003, "gone", "whole"),
        behavior(90_004, "text", "whole", content_id=None),
        behavior(90_005, "text", "whole", "search"),
        behavior(90_006, "text", "whole", "favorite"),
    ]
    mix = parse_mix("product_query_to_text=1,product_query_to_image=0")
    made = user_choices.choices(
        frame(spark, "behaviors", rows + odd),
        frame(spark, "queries", queries),
        frame(spark, "products", products),
        unit_rows(spark, products),
        mix,
    ).collect()
    reasons = {row["behavior_id"]: row["dropped"] for row in made if row["dropped"]}
    assert reasons == {
        "b90000": "content_unreadable", "b90001": "content_unknown", "b90002": "query_unknown",
        "b90003": "query_unknown", "b90004": "content_unknown",
    }  # fmt: skip
    drawn: dict[str, Counter[str]] = {}
    for row in made:
        if not row["dropped"]:
            assert row["pair_type"].startswith(f"{row['anchor_content_id'] and row['modality']}_query_to_")
            form = row["pair_type"].partition("_to_")[2]
            drawn.setdefault(f"{row['modality']} {row['positive_product_id']}", Counter())[form] += 1
    for modality in ("text", "image"):
        shares = {form: count / 60 for form, count in drawn[f"{modality} whole"].items()}
        assert shares == pytest.approx({"product": 0.7, "image": 0.2, "text": 0.1}, abs=0.2)
        assert drawn[f"{modality} titled"].keys() == drawn[f"{modality} material"].keys() == {"product", "text"}
        assert drawn[f"{modality} pictured"].keys() == {"product", "image"}
    assert drawn["product whole"] == drawn["product titled"] == {"text": 60}
    assert drawn["product pictured"] == {"product": 60}  # no text to show: whatever there is


def test_the_draw_depends_on_behaviour_and_type_alone(spark: SparkSession) -> None:
    products, queries = [product("p", "red mug", ["a"])], [query("q", "image")]
    rows = [behavior(number, "q", "p") for number in range(300)]

    def drawn(some: Rows, mix: str) -> dict[str, str]:
        made = user_choices.choices(
            frame(spark, "behaviors", some),
            frame(spark, "queries", queries),
            frame(spark, "products", products),
            unit_rows(spark, products),
            parse_mix(mix),
        )
        return {row["behavior_id"]: row["pair_type"] for row in made.collect()}

    every = drawn(rows, "image_query_to_image=1,image_query_to_text=1,image_query_to_product=1")
    assert (
        every.items()
        >= drawn(rows[100:200][::-1], "image_query_to_image=1,image_query_to_text=1,image_query_to_product=1").items()
    )
    more_text = drawn(rows, "image_query_to_image=1,image_query_to_text=3,image_query_to_product=1")
    moved = {behavior: name for behavior, name in more_text.items() if every[behavior] != name}
    assert set(moved.values()) == {"image_query_to_text"}


FACE, FACE_3, FACE_4 = "00ff00ff00ff00ff", "00ff00ff00ff00f8", "00ff00ff00ff00f0"


def test_units_merge_what_picture_and_title_agree_on_and_nothing_on_a_title_alone(spark: SparkSession) -> None:
    products = [
        product("a", "Red striped mug", ["a"], spu_id="s1"),
        product("b", None, ["b"], spu_id="s1"),  # the SKU of one SPU
        product("c", "MUG, striped red", ["c"], spu_id="s2"),  # near-duplicate picture, the same words: joins a and b
        product("d", "red striped mug", ["d"], spu_id="s3"),  # the title alone
        product("e", "blue striped mug", ["e"]),  # the picture alone
        product("f", "red striped mug", ["f"], category="bag"),  # another category
        product("g", "one file", ["shared"]),
        product("h", None, ["other", "shared"], category="bag"),  # the same file
        product("i", "plain mug", ["i"]),
        product("j", "plain mug", ["j"]),  # pictures with nothing in them
        product("k", "red striped mug", ["k"]),  # 4 bits from a, 1 from c: by the chain
        product("l", "red striped mug"),
    ]
    hashes = {"a": FACE, "b": "1234567890abcdef", "c": FACE_3, "d": "f0f0f0f0f0f0f0f0", "e": FACE, "f": FACE}
    hashes |= {"shared": "0123456789abcdef", "other": FACE, "i": "0" * 16, "j": "0" * 16, "k": FACE_4}
    made = units(
        frame(spark, "products", products),
        frame(spark, "product_images", [image(name, bits) for name, bits in hashes.items()]),
    ).collect()
    assert {row["product_id"]: row["unit_id"] for row in made} == {
        "a": "s1", "b": "s1", "c": "s1", "k": "s1", "d": "s3", "e": "product:e", "f": "product:f", "g": "product:g",
        "h": "product:g", "i": "product:i", "j": "product:j", "l": "product:l",
    }  # fmt: skip


def test_a_file_that_too_many_products_show_joins_none_of_them(spark: SparkSession) -> None:
    products = [product(f"p{number:03}", None, ["logo"]) for number in range(51)]
    images = frame(spark, "product_images", [image("logo", FACE)])
    made = units(frame(spark, "products", products), images)
    assert made.select("unit_id").distinct().count() == 51
    assert units(frame(spark, "products", products[:50]), images).select("unit_id").distinct().count() == 1


def test_bands_find_the_near_duplicates_that_comparing_all_with_all_finds(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 4)
    vocabulary = [f"w{number}" for number in range(12)]
    titles = [sorted(rng.choice(vocabulary, 6, replace=False).tolist()) for _ in range(2)]
    pictures = []
    for number in range(120):
        bits = int(seeds[rng.integers(4)])
        for flipped in rng.choice(64, rng.integers(0, 5), replace=False):
            bits ^= 1 << int(flipped)
        words = titles[rng.integers(2)][: 6 - int(rng.integers(2))]
        pictures.append((f"{number:03}", str(rng.choice(["mug", "bag"])), f"{bits:016x}", words))
    schema = "product_id string, category string, perceptual_hash string, words array<string>"
    made = spark.createDataFrame(pictures, schema).withColumn("picture", f.col("product_id"))
    found = {(row["from"], row["to"]) for row in near_duplicates(made).collect()}
    slow = {
        (one[0], other[0])
        for one in pictures
        for other in pictures
        if one[0] < other[0]
        and one[1] == other[1]
        and (int(one[2], 16) ^ int(other[2], 16)).bit_count() <= 3
        and len({*one[3]} & {*other[3]}) >= 0.8 * len({*one[3]} | {*other[3]})
    }
    assert len(slow) > 50
    assert found <= slow
    assert len(found) >= 0.95 * len(slow)  # a title that differs in a word may miss all bands


def test_components_are_named_by_their_first_node(spark: SparkSession) -> None:
    edges = spark.createDataFrame([("b", "a"), ("c", "b"), ("y", "x"), ("x", "z")], "from string, to string")
    found = {row["node"]: row["component"] for row in components(edges).collect()}
    assert found == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x", "z": "x"}


BOUGHT = """behavior_id string, modality string, query_text string, anchor_content_id string,
    positive_content_id string, positive_spu_id string, category string, event_timestamp timestamp"""


def bought(spark: SparkSession, *rows: tuple[str, str, str]) -> DataFrame:
    """Purchases from query, product unit and category."""
    return spark.createDataFrame(
        [
            (f"b{number}", "text", asked, asked, f"of {unit}", unit, category, START + timedelta(minutes=number))
            for number, (asked, unit, category) in enumerate(rows)
        ],
        BOUGHT,
    )


def ids(frame: DataFrame) -> set[str]:
    return {row["behavior_id"] for row in frame.select("behavior_id").collect()}


def test_text_queries_that_name_too_little_are_dropped(spark: SparkSession) -> None:
    products = [
        product(f"p{number}", "Red striped mug", brand="Acme & Co", attributes={"origin": "Far East"})
        for number in range(5)
    ]
    products.append(product("rare", "unicorn 7 x", category=None))
    phrases = [Phrase(*row) for row in purchase_cleaning.vocabulary(frame(spark, "products", products)).collect()]
    assert sorted(phrases) == [
        ("ATTRIBUTE", "far east"), ("BRAND", "acme & co"), ("CATEGORY", "mug"), ("WORD", "mug"), ("WORD", "red"),
        ("WORD", "striped"),
    ]  # fmt: skip
    texts = ["RED mug", "red, red", "mug by Acme & Co", "far east", "unicorn mug", "far east mug", ""]
    counts = purchase_cleaning.entity_counts(
        spark.createDataFrame([(text,) for text in texts], "query_text string"), phrases
    )
    assert [row["entities"] for row in counts.collect()] == [2, 1, 2, 1, 1, 2, 0]
    rows = bought(spark, *[(text, "u", "mug") for text in texts])
    pictured = (
        rows.where("behavior_id = 'b1'")
        .withColumn("modality", f.lit("image"))
        .withColumn("behavior_id", f.lit("image"))
    )
    kept = purchase_cleaning.with_entities(rows.unionByName(pictured), counts, 2)
    assert ids(kept) == {"b0", "b2", "b5", "image"}


def test_a_unit_keeps_each_query_once_and_then_its_least_similar_ones(spark: SparkSession) -> None:
    rows = bought(
        spark, ("q0", "u", "mug"), ("q1", "u", "mug"), ("q0", "u", "mug"), ("q2", "u", "mug"), ("q0", "v", "mug")
    )
    once = purchase_cleaning.each_query_once(rows)
    assert ids(once) == {"b0", "b1", "b3", "b4"}
    vectors = {"q0": [0.6, 0.8], "q1": [1.0, 0.0], "q2": [0.8, 0.6], "of u": [1.0, 0.0]}
    similar = purchase_cleaning.with_similarity(
        once, spark.createDataFrame(list(vectors.items()), "content_id string, vector array<float>")
    )
    assert {row["behavior_id"]: round(row["similarity"], 5) for row in similar.collect()} == {
        "b0": 0.6,
        "b1": 1.0,
        "b3": 0.8,
    }
    assert ids(purchase_cleaning.least_similar(similar, 1)) == {"b0"}
    assert ids(purchase_cleaning.least_similar(similar, 2)) == {"b0", "b3"}


def test_categories_are_drawn_towards_their_exposure(spark: SparkSession) -> None:
    rows = bought(spark, *[("q", "u", "mug" if number % 4 else "bag") for number in range(2_000)])  # 3 to 1
    products = [product("mug"), product("bag", category="bag")]
    shown = [{"product_id": name} for name in ["mug", "bag"] * 50]  # 1 to 1
    impressions, named = frame(spark, "impressions", shown), unit_rows(spark, products)

    def kept(strength: float) -> dict[str, int]:
        weights = purchase_cleaning.category_weights(rows, impressions, named, strength)
        return {
            row["category"]: row["count"]
            for row in purchase_cleaning.rebalanced(rows, weights).groupBy("category").count().collect()
        }

    assert kept(0.0) == {"bag": 500, "mug": 1_500}
    assert kept(1.0) == {"bag": 500, "mug": pytest.approx(500, abs=80)}
    assert kept(0.5) == {"bag": 500, "mug": pytest.approx(1_500 / 3**0.5, abs=100)}


def test_the_pool_holds_one_content_a_unit_and_each_content_once(spark: SparkSession) -> None:
    products = [
        product("a", spu_id="s"),
        product("a", spu_id="s", content_id=content("newer"), event_timestamp=START),
        product("b", spu_id="s"),
        product("c", content_id=content("newer")),
        product("gone", deleted=True),
        product("bag", category="bag"),
    ]
    rows = frame(spark, "products", products)
    made = hard_negatives.pool(rows, units(rows, frame(spark, "product_images", []))).collect()
    assert sorted((row["block"], row["content_id"], row["unit_ids"]) for row in made) == sorted([
        ("mug", content("newer"), ["product:c", "s"]),
        ("bag", content("content bag"), ["product:bag"]),
    ])  # fmt: skip


def test_hard_negatives_are_of_the_category_and_never_chosen_after_the_query(spark: SparkSession) -> None:
    pairs = bought(spark, ("q", "u", "mug"), ("q", "w", "bag"))
    near = [[float(np.cos(angle)), float(np.sin(angle))] for angle in (0.2, 0.7, 0.8, 0.9, 1.0, 1.1)]
    pairs = pairs.withColumn("anchor_vector", f.array(f.lit(1.0), f.lit(0.0)).cast("array<float>")).withColumn(
        "positive_vector", f.array(f.lit(0.866), f.lit(-0.5)).cast("array<float>")
    )
    pool = [("mug", f"c{at}", [f"u{at}"], vector) for at, vector in enumerate(near)]
    pool[2] = ("mug", "c2", ["u2", "clicked"], near[2])
    pool[3] = ("mug", "c3", ["u", "u3"], near[3])
    pool.append(("bag", "elsewhere", ["x"], near[1]))
    candidates = spark.createDataFrame(
        pool, "block string, content_id string, unit_ids array<string>, vector array<float>"
    )
    chosen = spark.createDataFrame([("q", ["clicked", "u"])], "anchor_content_id string, chosen_units array<string>")
    config = MiningConfig(count=2, depth=6)
    made = {
        row["behavior_id"]: row["hard_negative_content_ids"]
        for row in hard_negatives.with_negatives(pairs, candidates, chosen, config).collect()
    }
    # c0 is nearer to the query than the positive, c2 was clicked, c3 is of the positive's own unit.
    assert made == {"b0": ["c1", "c4"], "b1": ["elsewhere"]}


@pytest.fixture
def shop(settings: Settings, write_rows: WriteRows, tmp_path: Path) -> Settings:
    """A lake of 20 mugs and 2 bags, searched by text and bought, with vectors of half the contents in a space."""
    from models.artifacts import write_artifact
    from models.encoder.config import ENCODER, EncoderConfig, TinyConfig, read_encoder_artifact
    from models.encoder.factory import new_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    encoder = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=8)
    folder = tmp_path / "previous"
    folder.mkdir()
    new_encoder(encoder, ["red mug"]).save(folder)
    write_artifact(folder, ENCODER, Made(encoder), tables={}, trained_until=None, metrics={})
    space = read_encoder_artifact(folder).space
    lake = Lake(settings)
    spaces.register(
        lake, space, name="previous", artifact=str(folder), trained_until=None, metrics={}, written_at=START
    )
    products = [product(f"p{number:02}", f"red mug number{number}") for number in range(20)]
    products += [product("bag1", "blue bag", category="bag"), product("bag2", "red bag", category="bag")]
    queries = [query(f"q{number}", "text", f"red mug {number}") for number in range(5)] + [
        query("vague", "text", "red")
    ]
    rows = [behavior(number, f"q{number % 5}", f"p{number % 7:02}") for number in range(35)]
    rows += [behavior(40, "vague", "p00"), behavior(41, "q0", "p15", "click"), behavior(42, "gone", "p00")]
    rows += [behavior(43, "q0", "p00"), behavior(44, "q0", "bag1"), behavior(9_999_999, "q0", "p01")]
    rng = np.random.default_rng(0)
    contents = sorted({row["content_id"] for row in [*products, *queries]})
    vectors = rng.normal(size=(len(contents), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_rows(settings, "products", [row | {"attributes": []} for row in products])
    write_rows(settings, "queries", queries)
    write_rows(settings, "behaviors", rows)
    write_rows(
        settings,
        "impressions",
        [{"impression_id": str(at), "product_id": "p00", "event_timestamp": START} for at in range(9)],
    )
    half = zip(contents[::2], vectors[::2], strict=True)
    write_rows(
        settings, "embeddings", [{"content_id": name, "space_id": space.space_id, "vector": one} for name, one in half]
    )
    return settings


@dataclass(frozen=True)
class Made:
    """An artifact's record of its training."""

    encoder: Any


def test_stages_stand_side_by_side_and_a_second_run_writes_nothing(
    spark: SparkSession, shop: Settings, written_at: datetime
) -> None:
    lake = Lake(shop)
    first = build_contrastive_pairs.run(SparkLake(spark, shop), START, END, written_at=written_at)
    cleaning = CleaningConfig("previous", keep=3, mining=MiningConfig(count=4, query_margin=0.0, positive_cap=0.99))
    second = build_contrastive_pairs.run(
        SparkLake(spark, shop), START, END, stage=2, cleaning=cleaning, written_at=written_at
    )
    version = lake.version("contrastive_pairs")
    again = build_contrastive_pairs.run(
        SparkLake(spark, shop), START, END, stage=2, cleaning=cleaning, written_at=written_at
    )
    assert (again.write.written, again.write.unchanged) == (0, second.write.written)
    assert lake.version("contrastive_pairs") == version

    # 38 purchases and a click with a known query within the window; one purchase has an unknown query.
    assert (first.write.written, first.dropped) == (39, {"query_unknown": 1})
    assert [(step["step"].split()[0], step["rows"]) for step in second.steps] == [
        ("choices", 40), ("purchases", 39), ("choices", 38), ("text", 37), ("each", 36), ("both", 36), ("the", 22),
        ("categories", 22), ("hard", 22),
    ]  # fmt: skip
    assert second.as_dict()["stage"] == 2
    rows = lake.read("contrastive_pairs").to_pylist()
    stages = {stage: [row for row in rows if row["stage"] == stage] for stage in (1, 2)}
    assert {stage: len(found) for stage, found in stages.items()} == {1: 39, 2: second.write.written}
    assert all(not row["hard_negative_content_ids"] for row in stages[1])
    assert {row["pair_type"] for row in rows} <= set(PAIR_TYPES)
    assert all(START <= row["event_timestamp"] < END for row in rows)
    products = {row["content_id"]: row for row in lake.read("products").to_pylist()}
    behaviors = lake.read("behaviors").to_pylist()
    for row in stages[2]:
        negatives = row["hard_negative_content_ids"]
        after = {one["content_id"] for one in behaviors if one["query_content_id"] == row["anchor_content_id"]}
        assert len(set(negatives)) == len(negatives) <= 4
        assert not set(negatives) & {row["positive_content_id"], *after}
        assert {products[content_id]["category"] for content_id in negatives} <= {row["category"]}
    assert second.negatives == sum(len(row["hard_negative_content_ids"]) for row in stages[2]) > 20


def test_options_of_a_stage_that_is_not_run_are_refused(settings: Settings) -> None:
    no_session: Any = None  # it is refused before a session is looked at
    lake = SparkLake(no_session, settings)
    with pytest.raises(InputError, match="stage 2 needs --space"):
        build_contrastive_pairs.run(lake, START, END, stage=2, written_at=START)
    cleaning = CleaningConfig("live")
    with pytest.raises(InputError, match="for stage 2"):
        build_contrastive_pairs.run(lake, START, END, cleaning=cleaning, written_at=START)
    window = ["--start", START.isoformat(), "--end", END.isoformat()]
    with pytest.raises(InputError, match="without --space"):
        build_contrastive_pairs.main([*window, "--stage", "2", "--keep", "3"])
    with pytest.raises(InputError, match="no 'picture_query_to_product'"):
        build_contrastive_pairs.main([*window, "--mix", "picture_query_to_product=1"])
    with pytest.raises(InputError, match="balance"):
        CleaningConfig("live", balance=2.0)
