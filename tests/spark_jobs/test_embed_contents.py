from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import CONTENT_UNREADABLE, content_of, prompt_text
from moonlake.errors import SpaceMismatch
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow]

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def write(lake: Lake, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into any table, with a plain Delta write."""
    whole = [{column.name: None for column in TABLES[name]} | {"created_at": T0, "source": "t"} | row for row in rows]
    write_deltalake(lake.path(name), pa.Table.from_pylist(whole, arrow_schema(TABLES[name])), mode="append")


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def image(file: bytes) -> dict[str, Any]:
    return {
        "image_id": stable_hash(file), "image_bytes": file, "format": "PNG", "width": 20, "height": 20,
        "perceptual_hash": "0" * 16,
    }  # fmt: skip


def product(name: str, title: str | None, images: Sequence[bytes], material: str | None = None) -> dict[str, Any]:
    attributes = {"material": material} if material else {}
    ids = [stable_hash(file) for file in images]
    return {
        "product_id": name, "title": title, "attributes": list(attributes.items()), "image_ids": ids, "listed_at": T0,
        "deleted": False, "content_id": content_of(prompt_text(title, attributes), ids).content_id,
        "event_timestamp": T0,
    }  # fmt: skip


def query(text: str) -> dict[str, Any]:
    return {
        "query_id": text, "modality": "text", "text": text, "image_ids": [],
        "content_id": content_of(text, []).content_id, "event_timestamp": T0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained encoder."""
    from models.encoder.config import EncoderConfig, TinyConfig
    from models.training.contrastive import TrainingConfig, train_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    config = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=16)
    home = tmp_path_factory.mktemp("encoder")
    empty = Lake(Settings(home=home / "home"))
    train_encoder(empty, TrainingConfig(config, steps=0), home / "artifact", before=T0)
    return home / "artifact"


WHITE, GREY, BROKEN = picture(250), picture(120), b"\x89PNG broken"
PRODUCTS = [
    product("a", "red shirt", [WHITE, GREY], "cotton"),
    product("b", None, [GREY]),
    product("c", None, [BROKEN]),
    product("d", "mug", [BROKEN]),
    product("twin of b", None, [GREY]),
]


@pytest.fixture
def stocked(lake: Lake, artifact: Path, written_at: datetime) -> Lake:
    from models.encoder.config import read_encoder_artifact

    write(lake, "products", PRODUCTS)
    write(lake, "queries", [query("a shirt")])
    write(lake, "product_images", [image(file) for file in (WHITE, GREY, BROKEN)])
    definition = read_encoder_artifact(artifact).space
    spaces.register(
        lake, definition, name="first", artifact=str(artifact), trained_until=None, metrics={}, written_at=written_at
    )
    return lake


def test_what_is_missing_is_embedded_as_the_embedder_does_and_the_space_becomes_candidate(
    spark: SparkSession, settings: Settings, stocked: Lake, artifact: Path, written_at: datetime
) -> None:
    from models.inference import Embedder
    from spark_jobs import embed_contents

    report = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    assert (report.written, report.rejected) == (4, 1)
    assert (report.space.status, report.space.coverage) == ("candidate", 1.0)
    rows = {row["content_id"]: row for row in stocked.read("embeddings").to_pylist()}
    assert {row["event_timestamp"] for row in rows.values()} == {TIMELESS}
    texts = ["red shirt, cotton", None, "mug", "a shirt"]
    images: list[list[bytes]] = [[WHITE, GREY], [GREY], [BROKEN], []]
    expected = Embedder.open(artifact).embed(texts, images)
    ids = [
        PRODUCTS[0]["content_id"],
        PRODUCTS[1]["content_id"],
        PRODUCTS[3]["content_id"],
        query("a shirt")["content_id"],
    ]
    np.testing.assert_allclose([rows[one]["vector"] for one in ids], expected, atol=2e-3)


def test_a_content_of_which_nothing_can_be_read_is_refused_by_name(
    spark: SparkSession, settings: Settings, stocked: Lake, written_at: datetime
) -> None:
    from spark_jobs import embed_contents

    embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    (refused,) = stocked.read("rejects").to_pylist()
    assert (refused["table"], refused["rule"]) == ("embeddings", CONTENT_UNREADABLE)
    assert PRODUCTS[2]["content_id"] in refused["value"]


def test_a_second_run_loads_no_model_and_commits_nothing(
    spark: SparkSession, settings: Settings, stocked: Lake, written_at: datetime, tmp_path: Path
) -> None:
    from spark_jobs import embed_contents

    space = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at).space
    tables = ("embeddings", "rejects", "embedding_spaces")
    versions = [stocked.version(name) for name in tables]
    moved = shutil.move(space.artifact, tmp_path / "away")  # a run that opened the model would fail
    try:
        report = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    finally:
        shutil.move(moved, space.artifact)
    assert report.writes == ()
    assert [stocked.version(name) for name in tables] == versions


def test_a_new_product_alone_is_embedded_afterwards(
    spark: SparkSession, settings: Settings, stocked: Lake, written_at: datetime
) -> None:
    from spark_jobs import embed_contents

    embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    before = stocked.read("embeddings")
    write(stocked, "products", [product("new", "green lamp", [])])
    report = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    assert [(one.rows_in, one.written) for one in report.writes] == [(1, 1)]
    after = stocked.read("embeddings")
    kept = after.filter(pc.is_in(after["content_id"], before["content_id"])).sort_by("content_id")
    assert kept.equals(before.sort_by("content_id"))


def test_an_artifact_of_another_space_is_refused_before_anything_is_written(
    spark: SparkSession, settings: Settings, stocked: Lake, artifact: Path, written_at: datetime
) -> None:
    from dataclasses import replace

    from spark_jobs import embed_contents

    other = replace(releases.find(stocked, "first").definition, weights="another")
    spaces.register(
        stocked, other, name="other", artifact=str(artifact), trained_until=None, metrics={}, written_at=written_at
    )
    with pytest.raises(SpaceMismatch, match=other.space_id):
        embed_contents.run(SparkLake(spark, settings), "other", written_at=written_at)
    assert not stocked.exists("embeddings")


MANY = [query(f"a thing of kind {number}") for number in range(2_000)]
"""Four chunks and more."""


def rows_of(lake: Lake) -> pa.Table:
    return lake.read("embeddings").select(["content_id", "vector"]).sort_by("content_id")


def test_a_run_that_was_killed_goes_on_with_the_chunks_that_it_had_and_ends_as_an_unbroken_one(
    spark: SparkSession,
    settings: Settings,
    stocked: Lake,
    artifact: Path,
    written_at: datetime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moonlake.embeddings.backfill import Backfill
    from spark_jobs import embed_contents

    write(stocked, "queries", MANY)
    unbroken = settings.model_copy(update={"home": tmp_path / "unbroken"})
    shutil.copytree(settings.home, unbroken.home)
    space_id = embed_contents.run(SparkLake(spark, unbroken), "first", written_at=written_at).space.space_id

    backfill = Backfill(settings.backfills, space_id)
    command = [sys.executable, "-m", "spark_jobs.embed_contents", "--space", "first"]
    killed = subprocess.Popen(command, env={**os.environ, **settings.environment()})
    while (plan := backfill.current()) is None or not backfill.kept(plan):
        assert killed.poll() is None, "it ended before its first chunk was kept"
        time.sleep(0.01)
    # Spark's Python workers are in a process group of their own, and would keep further chunks.
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    for one in family:
        one.kill()
    killed.wait()
    psutil.wait_procs(family[1:], timeout=10)
    before = {file.name: file.stat().st_mtime_ns for file in backfill.kept(plan)}
    kept = sum(pq.read_metadata(file).num_rows for file in backfill.kept(plan))
    assert not stocked.exists("embeddings")
    assert kept

    after: dict[str, int] = {}
    finish = Backfill.finish

    def finishing(this: Backfill) -> None:
        after.update({file.name: file.stat().st_mtime_ns for file in this.kept(plan)})
        finish(this)

    joined: list[int] = []
    with_images = embed_contents.with_images

    def joining(wanted: DataFrame, images: DataFrame) -> DataFrame:
        joined.append(wanted.count())
        return with_images(wanted, images)

    monkeypatch.setattr(Backfill, "finish", finishing)
    monkeypatch.setattr(embed_contents, "with_images", joining)
    report = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    assert {name: after[name] for name in before} == before  # nothing was embedded twice
    assert joined == [len(MANY) + 5 - kept]  # nor were the images of what was kept read again
    assert report.written == len(MANY) + 4
    assert (report.space.status, report.space.coverage) == ("candidate", 1.0)
    assert rows_of(stocked).equals(rows_of(Lake(unbroken)))


def test_contents_that_come_in_behind_a_plan_are_embedded_by_the_next(
    spark: SparkSession, settings: Settings, stocked: Lake, artifact: Path, written_at: datetime
) -> None:
    from moonlake.embeddings.backfill import Backfill
    from spark_jobs import embed_contents

    space = releases.find(stocked, "first")
    backfill = Backfill(settings.backfills, space.space_id)
    plan = backfill.plan(1)  # of a run that was killed when it had embedded its only chunk
    kept = query("a shirt")["content_id"]
    unit = np.eye(16)[0].astype(np.float32)
    vector = pa.array([unit], pa.list_(pa.float32()))
    backfill.keep(plan, 0, pa.table({"content_id": [kept], "vector": vector}))
    found = embed_contents.survey(SparkLake(spark, settings), "first")
    assert (found.kept, found.missing, found.vector_bytes) == (1, 4, 5 * 16 * 4)
    report = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    assert [one.written for one in report.writes] == [1, 3]
    assert report.space.status == "candidate"
    rows = {row["content_id"]: row["vector"] for row in stocked.read("embeddings").to_pylist()}
    assert rows[kept] == unit.tolist()


def test_two_runs_at_once_write_every_content_once(
    spark: SparkSession, settings: Settings, stocked: Lake, written_at: datetime
) -> None:
    from spark_jobs import embed_contents

    write(stocked, "queries", MANY)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                embed_contents.run,
                SparkLake(spark, settings),
                "first",
                written_at=written_at + timedelta(seconds=number),
            )
            for number in range(2)
        ]
        reports = [run.result() for run in runs]
    assert sum(report.written for report in reports) == len(MANY) + 4
    rows = stocked.read("embeddings")
    assert len(rows) == len(set(rows["content_id"].to_pylist())) == len(MANY) + 4
    assert {report.space.status for report in reports} == {"candidate"}


def test_a_survey_counts_what_a_run_would_do_and_writes_nothing(
    spark: SparkSession, settings: Settings, stocked: Lake, written_at: datetime
) -> None:
    from spark_jobs import embed_contents

    before = embed_contents.survey(SparkLake(spark, settings), "first")
    assert (before.rows, before.contents, before.missing, before.kept, before.refused) == (6, 5, 5, 0, 0)
    assert before.rate is not None
    assert before.seconds == pytest.approx(5 / before.rate)
    assert before.vector_bytes == 5 * 16 * 4
    assert not stocked.exists("embeddings")
    embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    after = embed_contents.survey(SparkLake(spark, settings), "first")
    assert (after.contents, after.missing, after.refused, after.rate) == (5, 0, 1, None)


def test_the_commands_say_what_is_to_be_done_do_it_and_say_how_far_it_is(
    spark: SparkSession, settings: Settings, stocked: Lake
) -> None:
    from moonlake.embeddings.backfill import Backfill

    def ask(*arguments: str) -> str:
        answer = CliRunner().invoke(app, ["backfill", *arguments], env=settings.environment())
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    planned = ask("plan", "first", "--hour-price", "3600")
    for line in ("5 distinct contents in 6 rows", "5 without a vector", "0 refused before", "at 3600 an hour"):
        assert line in planned
    assert "no backfill is under way" in ask("status", "first")
    backfill = Backfill(settings.backfills, releases.find(stocked, "first").space_id)
    backfill.plan(5)
    assert "about 0 of 5 contents embedded" in ask("status", "first")
    assert "4 vectors written, 1 contents refused; first" in ask("run", "first")
    assert "coverage 100.00%" in ask("status", "first")
    assert "nothing is to be done" in ask("plan", "first")
