"""A new space under a live one: readers see one space whole, and only what is new is embedded."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from cli.app import app
from moonlake.arrays import Float16s
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import content_of
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from sources.own_files.schema import KINDS
from sources.own_files.staging import SourceInfo, new_stage, stage_path

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow]

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
Release = Callable[..., releases.Release]

CONTENTS = 200
SWITCHES = 10
T0 = datetime(2026, 1, 1, tzinfo=UTC)
USES = ("ctr_ranking", "similar_products")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small untrained encoders."""
    from models.encoder.config import EncoderConfig, TinyConfig
    from models.training.contrastive import TrainingConfig, train_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    config = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=16)
    home = tmp_path_factory.mktemp("encoders")
    for seed in range(2):
        empty = Lake(Settings(home=home / "home"))
        train_encoder(empty, TrainingConfig(config, steps=0, seed=seed), home / str(seed), before=T0)
    return [home / str(seed) for seed in range(2)]


def register(lake: Lake, artifact: Path, name: str) -> str:
    """The id of the space of an encoder, entered in the books."""
    from models.encoder.config import read_encoder_artifact

    books: dict[str, Any] = {"artifact": str(artifact), "trained_until": None, "metrics": {}, "written_at": T0}
    return spaces.register(lake, read_encoder_artifact(artifact).space, name=name, **books).space_id


def products(count: int) -> list[dict[str, Any]]:
    """Rows of `products` with a title and a content each."""
    named = {f"p{number}": content_of(f"a chair of kind {number}", []) for number in range(count)}
    return [
        {"product_id": name, "title": content.text, "content_id": content.content_id, "listed_at": T0}
        for name, content in named.items()
    ]


def vectors_of(lake: Lake, space_id: str, content_ids: pa.Array) -> Float16s:
    """float16 [N, D]: what the lake holds of contents in a space."""
    found = lake.read("embeddings", ["content_id", "vector"], where=pc.field("space_id") == space_id)
    places = pc.index_in(content_ids, found["content_id"].combine_chunks()).to_numpy()
    whole = np.stack(found["vector"].to_numpy(zero_copy_only=False)).astype(np.float16)
    return whole[places]


def read_once(lake: Lake, use: str, content_ids: pa.Array, vectors: Mapping[str, Float16s]) -> str:
    """The id of the space that a use runs on, once all that a reader of it opens was found to be of that space."""
    release = releases.current_release(lake, use)
    snapshot = Snapshot.open(Path(str(release.snapshot)))
    assert snapshot.space_id == release.space_id
    rows = snapshot.rows_of(content_ids)
    assert (snapshot.vectors[rows] == vectors[release.space_id]).all()
    assert (rows >= 0).all()
    assert (snapshot.rows_of(pa.array(snapshot.products.values(), pa.string())) >= 0).all()
    if release.model_id is not None:
        model = lake.read("model_versions", ["space_id"], where=pc.field("model_id") == release.model_id)
        assert model["space_id"].to_pylist() == [release.space_id]
    return release.space_id


def read_until(over: threading.Event, settings: Settings, *looked_for: Any) -> Counter[tuple[str, str]]:
    """Counts of reads by use and space, one after the other until the switch is over."""
    lake, seen = Lake(settings), Counter[tuple[str, str]]()
    while not over.is_set():
        for use in USES:
            seen[use, read_once(lake, use, *looked_for)] += 1
    return seen


def model_id(space_id: str) -> str:
    return stable_hash(f"model of {space_id}")


def switch(settings: Settings, use: str, space_id: str, release: Release) -> None:
    """The switch that `moonlake release promote` makes behind its gates."""
    lake = Lake(settings)
    folder = write_snapshot(lake, space_id, settings.snapshots / space_id).folder
    model = {"model_id": model_id(space_id)} if use == "ctr_ranking" else {}
    release(lake, use, space_id, **model, snapshot=str(folder), written_at=datetime.now(UTC))


def roll_back(settings: Settings, use: str) -> None:
    answer = CliRunner().invoke(app, ["release", "rollback", "--use", use], env=settings.environment())
    assert answer.exit_code == 0, answer.output


def to_and_fro(settings: Settings, write_rows: Write, release: Release, other: str, times: int) -> None:
    """Release another space for each use and roll back, again and again; every time with a new product in the lake, so
    that the snapshot that is read is replaced."""
    known = Lake(settings).read("products", ["content_id"])["content_id"][0].as_py()
    for number in range(times):
        write_rows(settings, "products", [{"product_id": f"twin {number}", "content_id": known}])
        for use in USES:
            if number % 2:
                roll_back(settings, use)
            else:
                switch(settings, use, other, release)


def test_readers_of_a_live_release_never_see_two_spaces_mixed_while_another_is_rolled_out_and_back(
    spark: SparkSession,
    settings: Settings,
    artifacts: Sequence[Path],
    write_rows: Write,
    release_waived: Release,
    written_at: datetime,
    tmp_path: Path,
) -> None:
    from spark_jobs import embed_contents

    rows = products(CONTENTS)
    content_ids = pa.array([row["content_id"] for row in rows])
    write_rows(settings, "products", rows)
    ids = [register(Lake(settings), artifact, f"space-{number}") for number, artifact in enumerate(artifacts)]
    for space_id in ids:
        model = {"model_id": model_id(space_id), "space_id": space_id, "training_set_id": stable_hash("set")}
        write_rows(settings, "model_versions", [model])
    embed_contents.run(SparkLake(spark, settings), ids[0], written_at=written_at)
    quiet = settings.model_copy(update={"home": tmp_path / "quiet"})  # where nobody reads and nothing is switched
    shutil.copytree(settings.home, quiet.home)
    embed_contents.run(SparkLake(spark, quiet), ids[1], written_at=written_at)
    vectors = {space_id: vectors_of(Lake(quiet), space_id, content_ids) for space_id in ids}
    assert (vectors[ids[0]] != vectors[ids[1]]).any(axis=1).all()

    for use in USES:
        switch(settings, use, ids[0], release_waived)
    over = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read_until, over, settings, content_ids, vectors) for _ in range(2)]
        try:
            embed_contents.run(SparkLake(spark, settings), ids[1], written_at=written_at)
            to_and_fro(settings, write_rows, release_waived, ids[1], SWITCHES)
        finally:
            over.set()
        seen = sum((reader.result() for reader in readers), Counter())
    assert seen.keys() == {(use, space_id) for use in USES for space_id in ids}
    past = [one.space_id for one in releases.history(Lake(settings), "ctr_ranking")]
    assert past == [ids[0], *[ids[1], ids[0]] * (SWITCHES // 2)]


def stage(settings: Settings, name: str, **kinds: list[dict[str, Any]]) -> Path:
    """A staged source with these rows; columns that a row does not name are null."""
    with new_stage(settings, name) as writer:
        for kind, rows in kinds.items():
            schema = KINDS[kind].schema()
            complete = [{column: row.get(column) for column in schema.names} for row in rows]
            writer.write(kind, pa.Table.from_pylist(complete, schema=schema))
        writer.describe(SourceInfo(name, False, "test", None, None, None, "", name))
    return stage_path(settings, name)


def state(name: str, title: str, day: int = 0) -> dict[str, Any]:
    times = {"listed_at": T0, "event_timestamp": T0 + timedelta(days=day), "deleted": False}
    return {"product_id": name, "title": title, "image_names": []} | times


def test_a_catalogue_of_which_30_percent_repeats_embeds_what_is_distinct_and_nothing_again(
    spark: SparkSession, settings: Settings, artifacts: Sequence[Path], written_at: datetime
) -> None:
    from spark_jobs import embed_contents, ingest_behaviors, ingest_catalogue

    rows = [state(f"p{number}", f"a chair of kind {number % 70}") for number in range(100)]
    folder = stage(settings, "shop", products=rows, users=[{"user_id": "u", "event_timestamp": T0}])
    lake = Lake(settings)
    register(lake, artifacts[0], "first")

    def run_all(at: datetime) -> int:
        ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=at)
        ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=at)
        return embed_contents.run(SparkLake(spark, settings), "first", written_at=at).written

    assert run_all(written_at) == 70
    assert len(lake.read("products")) == 100
    versions = {name: lake.version(name) for name in TABLES}
    assert run_all(written_at + timedelta(days=1)) == 0
    assert {name: lake.version(name) for name in TABLES} == versions


def test_content_that_goes_a_b_a_is_embedded_twice_and_each_label_sees_what_was_true_then(
    spark: SparkSession, settings: Settings, artifacts: Sequence[Path], written_at: datetime
) -> None:
    from feast import FeatureService

    from moonlake.feast_delta.store import apply
    from moonlake.training_sets import build
    from moonlake.training_sets.spec import TrainingSetSpec
    from spark_jobs import embed_contents, ingest_behaviors, ingest_catalogue

    lake = Lake(settings)
    space_id = register(lake, artifacts[0], "first")
    states = [state("p", "A", 0), state("p", "B", 2), state("p", "A", 4)]
    seen = [
        {
            "impression_id": f"i{day}", "request_id": f"r{day}", "user_id": "u", "product_id": "p", "position": 1,
            "clicked": False, "event_timestamp": T0 + timedelta(days=day), "label_time": T0 + timedelta(days=day),
        }
        for day in (1, 3, 5)
    ]  # fmt: skip
    written = []
    for upto in (1, 2, 3):
        folder = stage(settings, "shop", products=states[:upto], impressions=seen)
        ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at + timedelta(hours=upto))
        written.append(embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at).written)
    assert written == [1, 1, 0]
    ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=written_at)

    store = apply(settings)
    store.apply(FeatureService(name="contents_v1", features=[store.get_feature_view("product_profile_v1")]))
    spec = TrainingSetSpec("january", start=T0, end=T0 + timedelta(days=31), feature_service="contents_v1")
    rows = build.run(settings, spec, written_at=written_at).training_set.read()
    a, b = (content_of(title, []).content_id for title in "AB")
    assert rows["impression_id"].to_pylist() == ["i1", "i3", "i5"]
    assert rows["content_id"].to_pylist() == rows["product_content_id"].to_pylist() == [a, b, a]
    snapshot = write_snapshot(lake, space_id, settings.snapshots / space_id)
    gathered = snapshot.vectors[snapshot.rows_of(rows["content_id"])]
    assert (gathered == vectors_of(lake, space_id, pa.array([a, b, a]))).all()
    assert (gathered[0] != gathered[1]).any()


def test_a_space_that_was_retired_half_way_is_filled_by_the_next_backfill_and_a_complete_one_stays_retired(
    spark: SparkSession, settings: Settings, artifacts: Sequence[Path], write_rows: Write, written_at: datetime
) -> None:
    from spark_jobs import embed_contents

    lake = Lake(settings)
    write_rows(settings, "products", products(3))
    register(lake, artifacts[0], "first")
    releases.retire(lake, "first", written_at=written_at)
    found = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at + timedelta(minutes=1))
    assert (found.written, found.space.status, found.space.coverage) == (3, "candidate", 1.0)
    releases.retire(lake, "first", written_at=written_at + timedelta(minutes=2))
    write_rows(settings, "products", products(4)[3:])
    again = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at + timedelta(minutes=3))
    assert (again.written, again.space.status) == (1, "retired")
