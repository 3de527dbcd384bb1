from __future__ import annotations

import io
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from moonlake.embeddings.contents import content_of, prompt_text, read_contents, read_images
from moonlake.errors import BatchRejected
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake, WriteReport
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from sources.own_files.schema import KINDS
from sources.own_files.staging import SourceInfo, new_stage, stage_path
from sources.simulator.marketplace import stage_marketplace
from spark_jobs import (
    build_contrastive_pairs,
    compute_stats,
    ingest_behaviors,
    ingest_catalogue,
    pack_behavior_sequences,
)

pytestmark = [pytest.mark.spark, pytest.mark.slow]

DAY = datetime(2026, 2, 1, tzinfo=UTC)
DAYS = [DAY + timedelta(days=day) for day in range(20)]


def png(colour: str, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


def stage(settings: Settings, name: str, **kinds: list[dict[str, Any]]) -> Path:
    """A staged source with these rows; columns that a row does not name are null."""
    with new_stage(settings, name) as writer:
        for kind, rows in kinds.items():
            schema = KINDS[kind].schema()
            complete = [{column: row.get(column) for column in schema.names} for row in rows]
            writer.write(kind, pa.Table.from_pylist(complete, schema=schema))
        writer.refuse("products", "price_cents_unreadable", [{"product_id": "p9", "price_cents": "cheap"}])
        writer.describe(SourceInfo(name, False, "test", (DAYS[0], DAYS[-1]), DAYS[9], DAYS[15], "", name))
    return stage_path(settings, name)


def product(product_id: str, title: str | None, images: list[str], day: int = 0, **other: Any) -> dict[str, Any]:
    listed = {"listed_at": DAY, "event_timestamp": DAYS[day], "deleted": False}
    return {"product_id": product_id, "title": title, "image_names": images} | listed | other


def event(number: int, day: float, product_id: str | None, **other: Any) -> dict[str, Any]:
    moment = DAY + timedelta(days=day)
    return {"user_id": "u", "product_id": product_id, "event_timestamp": moment, "query_id": "q"} | other


def reports_by_table(reports: list[WriteReport]) -> dict[str, tuple[int, int, int, int]]:
    return {r.table: (r.rows_in, r.written, r.rejected, r.duplicates) for r in reports}


def test_dirty_input_is_loaded_or_rejected_by_a_named_rule_and_the_counts_add_up(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    folder = stage(
        settings,
        "dirty",
        images=[
            {"name": "red.png", "image_bytes": png("red")},
            {"name": "red again.png", "image_bytes": png("red")},
            {"name": "grey.png", "image_bytes": png("grey", "L", (3, 50))},
            {"name": "text.jpg", "image_bytes": b"I am a text file"},
            {"name": "gone.jpg", "image_bytes": None},
        ],
        products=[
            product("p1", "  red chair ", ["red.png", "grey.png"], attributes=[("material", "oak")]),
            product("p1", "  red chair ", ["red.png", "grey.png"], attributes=[("material", "oak")]),
            product("p2", None, ["text.jpg", "grey.png"], category=None),
            product("p3", " ", ["text.jpg", "nowhere.png"]),
            product("p4", "x" * 2_000, []),
            product("p5", "only a title", []),
        ],
    )
    reports = ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at)
    counts = reports_by_table(reports)
    assert counts["product_images"] == (5, 2, 2, 1)
    assert counts["products"] == (7, 3, 3, 1)
    lake = Lake(settings)
    products = {row["product_id"]: row for row in lake.read("products").to_pylist()}
    red, grey = stable_hash(png("red")), stable_hash(png("grey", "L", (3, 50)))
    assert products["p1"]["image_ids"] == [red, grey]
    assert (
        products["p1"]["content_id"]
        == content_of(prompt_text("red chair", {"material": "oak"}), [red, grey]).content_id
    )
    assert products["p2"]["image_ids"] == [grey]
    assert products.keys() == {"p1", "p2", "p5"}
    rules = sorted((row["table"], row["rule"]) for row in lake.read("rejects").to_pylist())
    assert rules == [
        ("product_images", "image_empty"),
        ("product_images", "image_not_found"),
        ("product_images", "image_not_found"),
        ("product_images", "image_not_found"),
        ("product_images", "image_unreadable"),
        ("products", "has_content"),
        ("products", "price_cents_unreadable"),
        ("products", "title_long"),
    ]
    contents = read_contents(lake)
    assert contents[products["p1"]["content_id"]].text == "red chair, oak"
    assert read_images(lake, [red, "0" * 32]) == {red: png("red")}


def test_pictures_that_are_mostly_no_pictures_refuse_the_source_and_leave_the_lake_untouched(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    texts = [{"name": f"{number}.jpg", "image_bytes": b"I am a text file"} for number in range(2)]
    products = [product("p1", "red chair", ["0.jpg"]), product("p2", "blue chair", ["good.png"])]
    images = [*texts, {"name": "good.png", "image_bytes": png("blue")}]
    folder = stage(settings, "texts", images=images, products=products)
    with pytest.raises(BatchRejected, match=r"product_images: 2 of 3 rows .*image_unreadable \(2\)"):
        ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at)
    assert not any(Lake(settings).exists(name) for name in TABLES)


def test_events_carry_the_content_that_was_true_at_their_own_time_and_bad_judgments_are_rejected_by_name(
    spark: SparkSession, settings: Settings, written_at: datetime
) -> None:
    graded = [
        ("q", "p", 3),
        ("q", "p", 3),
        ("q", "x", 0),
        ("q", "x", 1),
        ("unknown", "p", 2),
        ("q", None, 2),
        ("q", "y", -1),
    ]
    folder = stage(
        settings,
        "changing",
        images=[{"name": "i", "image_bytes": png("red")}],
        products=[product("p", "A", [], 1), product("p", "B", [], 3), product("p", "A", [], 5)],
        queries=[{"query_id": "q", "modality": "image", "image_names": ["i"], "event_timestamp": DAY}],
        behaviors=[
            event(n, day, "p", behavior_id=f"b{n}", action="click") for n, day in enumerate([0.5, 1, 2.9, 3, 4, 5, 9])
        ]
        + [event(8, 2, None, behavior_id="s", action="search"), event(9, 2, "x", behavior_id="x", action="click")],
        judgments=[
            {"query_id": query, "product_id": judged, "grade": grade, "event_timestamp": DAY}
            for query, judged, grade in graded
        ],
    )
    ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at)
    reports = ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=written_at)
    a, b = (content_of(title, []).content_id for title in "AB")
    rows = {row["behavior_id"]: row for row in Lake(settings).read("behaviors").to_pylist()}
    assert [rows[f"b{n}"]["content_id"] for n in range(7)] == [None, a, a, b, b, a, a]
    assert rows["s"]["content_id"] is None
    assert rows["x"]["content_id"] is None
    picture = content_of(None, [stable_hash(png("red"))]).content_id
    assert {row["query_content_id"] for row in rows.values()} == {picture}

    assert reports_by_table(reports)["judgments"] == (len(graded), 3, 3, 1)
    rules = {report.table: report.by_rule for report in reports}["judgments"]
    assert rules == {"conflicting_key": 1, "product_id_missing": 1, "grade_below_minimum": 1}
    judged = {row["query_id"]: row for row in Lake(settings).read("judgments").to_pylist()}
    assert (judged["q"]["query_content_id"], judged["unknown"]["query_content_id"]) == (picture, None)
    versions = {name: Lake(settings).version(name) for name in TABLES}
    ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=written_at + timedelta(days=1))
    assert {name: Lake(settings).version(name) for name in TABLES} == versions


@pytest.fixture
def marketplace(spark: SparkSession, settings: Settings, written_at: datetime) -> Path:
    """The preset `tiny`, ingested."""
    folder = stage_marketplace("tiny", settings)
    ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at)
    ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=written_at)
    return folder


def run_behavior_jobs(spark: SparkSession, settings: Settings, folder: Path, written_at: datetime) -> SourceInfo:
    info = SourceInfo.read(folder)
    assert info.window is not None
    assert info.t1 is not None
    pack_behavior_sequences.run(SparkLake(spark, settings), written_at=written_at)
    compute_stats.run(SparkLake(spark, settings), info.window[1], written_at=written_at)
    build_contrastive_pairs.run(SparkLake(spark, settings), info.window[0], info.t1, written_at=written_at)
    return info


def test_a_marketplace_becomes_sequences_statistics_and_pairs_and_a_second_run_writes_nothing(
    spark: SparkSession, settings: Settings, marketplace: Path, written_at: datetime
) -> None:
    info = run_behavior_jobs(spark, settings, marketplace, written_at)
    lake = Lake(settings)
    versions = {name: lake.version(name) for name in TABLES}
    behaviors = lake.read("behaviors").to_pylist()

    packed = lake.read("behavior_sequences").to_pylist()
    expected: dict[tuple[str, str], list[tuple[datetime, str, str, str | None]]] = {}
    for row in behaviors:
        month = row["event_timestamp"].strftime("%Y-%m")
        entry = (row["event_timestamp"], row["behavior_id"], row["action"], row["product_id"])
        expected.setdefault((row["user_id"], month), []).append(entry)
    assert {(row["user_id"], row["month"]) for row in packed} == expected.keys()
    for row in packed:
        log = sorted(expected[row["user_id"], row["month"]])
        assert row["actions"] == [entry[2] for entry in log]
        assert row["product_ids"] == [entry[3] for entry in log]
        assert row["times_us"] == [round(entry[0].timestamp() * 1e6) for entry in log]

    impressions = lake.read("impressions").to_pylist()
    stats = lake.read("product_stats").to_pylist()
    for row in stats[:: max(1, len(stats) // 50)]:
        end, product_id = row["event_timestamp"], row["product_id"]
        start = end - timedelta(days=7)
        mine = [i for i in impressions if i["product_id"] == product_id and start <= i["label_time"] < end]
        assert row["impressions_7d"] == len(mine)
        assert row["clicks_7d"] == sum(i["clicked"] for i in mine)
        bought = [
            b
            for b in behaviors
            if b["product_id"] == product_id and b["action"] == "purchase" and start <= b["event_timestamp"] < end
        ]
        assert row["purchases_7d"] == len(bought)

    modalities = {row["query_id"]: row["modality"] for row in lake.read("queries").to_pylist()}
    chosen = [row for row in behaviors if row["content_id"] and row["action"] in build_contrastive_pairs.CHOICES]
    pairs = lake.read("contrastive_pairs").to_pylist()
    assert info.t1 is not None
    assert len(pairs) == sum(row["event_timestamp"] < info.t1 for row in chosen) > 0
    assert max(row["event_timestamp"] for row in pairs) < info.t1
    asked = Counter(modalities[row["query_id"]] for row in chosen if row["event_timestamp"] < info.t1)
    assert Counter(row["pair_type"].partition("_query_to_")[0] for row in pairs) == asked

    ingest_catalogue.run(SparkLake(spark, settings), marketplace, written_at=written_at + timedelta(days=1))
    ingest_behaviors.run(SparkLake(spark, settings), marketplace, written_at=written_at + timedelta(days=1))
    run_behavior_jobs(spark, settings, marketplace, written_at + timedelta(days=1))
    assert {name: lake.version(name) for name in TABLES} == versions
