"""New products through the door into the lake and online, in a real stream."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import content_of
from moonlake.errors import ContractError
from moonlake.files import exclusive
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.lake.product_events import ProductEvent, submit
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY = datetime(2026, 3, 1, tzinfo=UTC)
TABLES = ("products", "product_images", "embeddings", "product_arrivals", "rejects")


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


@pytest.fixture
def live(lake: Lake, artifact: Path, release_waived: Callable[..., releases.Release]) -> spaces.Space:
    """A space that similar products run on."""
    from models.encoder.config import read_encoder_artifact

    books: dict[str, Any] = {"artifact": str(artifact), "trained_until": None, "metrics": {}, "written_at": T0}
    definition = read_encoder_artifact(artifact).space
    space = spaces.register(lake, definition, name="first", status="candidate", coverage=1.0, **books)
    release_waived(lake, "similar_products", space.space_id, written_at=T0)
    return space


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def payload(title: str | None, *files: bytes, **cells: Any) -> str:
    images = {f"{at}.png": base64.b64encode(file).decode() for at, file in enumerate(files)}
    return json.dumps({"title": title, "images": images, **cells})


def event(name: str, text: str, *, kind: Any = "upsert", product: str | None = None, hour: int = 0) -> ProductEvent:
    return ProductEvent(name, product or name, kind, text, "shop", DAY + timedelta(hours=hour))


EVENTS = [
    event("mug", payload("blue mug", picture(200), price_cents=700)),
    event("twin", payload("blue mug", picture(200))),
    event("poison", "{"),
    event("long", payload("x" * 2_000)),
    event("blank", payload(None, b"no image", category="mug")),
    event("mug again", payload("red mug", picture(200), price_cents=700), product="mug", hour=1),
    event("mug gone", "", kind="delete", product="mug", hour=2),
]


def clock() -> datetime:
    return DAY + timedelta(hours=3)


def rows_of(lake: Lake) -> dict[str, list[str]]:
    """Rows of the tables, but for when they were written."""
    return {
        name: sorted(str({key: value for key, value in row.items() if key != "created_at"}) for row in found)
        for name in TABLES
        for found in [lake.read(name).to_pylist()]
    }


def test_records_are_checked_written_embedded_and_served_and_a_second_look_changes_nothing(
    spark: SparkSession, settings: Settings, lake: Lake, live: spaces.Space
) -> None:
    from moonlake.feast_delta.store import feature_store
    from spark_jobs import stream_products

    submit(lake, EVENTS, written_at=DAY + timedelta(hours=3))
    settings.incoming.mkdir(parents=True)
    dropped = [json.dumps({"product_id": 9, "title": "dropped cup"}), "", "not json", '{"title": "no id"}']
    (settings.incoming / "cups.jsonl").write_text("\n".join(dropped))
    (settings.incoming / "cups.tmp").write_text("still being written")

    stream_products.run(SparkLake(spark, settings), clock=lambda: datetime.now(UTC), once=True)
    products = (
        lake.read("products").sort_by([("product_id", "ascending"), ("event_timestamp", "ascending")]).to_pylist()
    )
    states = [(row["product_id"], row["title"], row["deleted"]) for row in products]
    assert states == [
        ("9", "dropped cup", False), ("blank", None, False), ("mug", "blue mug", False), ("mug", "red mug", False),
        ("mug", "red mug", True), ("twin", "blue mug", False),
    ]  # fmt: skip
    outcomes = {row["event_id"]: row["outcome"] for row in lake.read("product_arrivals").to_pylist()}
    dropped_id = stable_hash(f"cups.jsonl\0{dropped[0]}")
    assert outcomes == {
        "mug": "servable", "twin": "servable", "poison": "refused", "long": "refused", "blank": "without_vector",
        "mug again": "servable", "mug gone": "servable", dropped_id: "servable",
    }  # fmt: skip
    rules = sorted((row["table"], row["rule"]) for row in lake.read("rejects").to_pylist())
    assert rules == [
        ("embeddings", "content_unreadable"), ("product_events", "payload_unreadable"),
        ("product_events", "payload_unreadable"), ("product_images", "image_unreadable"),
        ("products", "payload_unreadable"), ("products", "title_long"),
    ]  # fmt: skip
    vectors = lake.read("embeddings")
    assert len(vectors) == len(set(vectors["content_id"].to_pylist())) == 3  # two of the mug, and the cup

    blue = content_of("blue mug", [stable_hash(picture(200))]).content_id
    online = feature_store(settings).get_online_features(
        ["content_embedding_v1:vector"], [{"content_id": blue, "space_id": live.space_id}]
    )
    stored = {row["content_id"]: row["vector"] for row in vectors.to_pylist()}
    assert online.to_dict()["vector"] == [stored[blue]]
    profile = feature_store(settings).get_online_features(
        ["product_profile_v1:price_cents", "product_profile_v1:product_content_id"], [{"product_id": "mug"}]
    )
    assert profile.to_dict()["price_cents"] == [700]
    assert 'outcome="refused"} 2.0' in (settings.home / "metrics" / "products.prom").read_text()

    before = {name: lake.version(name) for name in TABLES}
    submit(lake, EVENTS, written_at=DAY + timedelta(hours=4))  # the same records, submitted again
    stream_products.run(SparkLake(spark, settings), clock=lambda: datetime.now(UTC), once=True)
    assert {name: lake.version(name) for name in TABLES} == before


class Cut(Exception):
    """The process died here."""


def dying(_: datetime) -> None:
    raise Cut


class DyingMetrics:
    """Metrics whose process dies when they are written: the last thing that is done for a batch."""

    def record(self, *_: Any) -> None: ...

    def write(self) -> None:
        raise Cut


def test_a_batch_that_was_cut_off_and_comes_again_ends_as_an_unbroken_one(
    spark: SparkSession, settings: Settings, lake: Lake, live: spaces.Space, tmp_path: Path
) -> None:
    from spark_jobs.intake.batch import Intake
    from spark_jobs.intake.metrics import Metrics

    submit(lake, EVENTS, written_at=DAY + timedelta(hours=3))
    records = lake.read("product_events")
    metrics = Metrics(tmp_path / "products.prom")

    def take(rows: pa.Table, serve: Any = lambda _: None, metrics_: Any = metrics) -> None:
        Intake(SparkLake(spark, settings), serve, clock, metrics_).take(rows)

    with pytest.raises(Cut):
        take(records, serve=dying)
    assert not lake.exists("product_arrivals")
    assert len(lake.read("products")) == 5
    take(records)
    once = rows_of(lake)
    outcomes = {row["event_id"]: row["outcome"] for row in lake.read("product_arrivals").to_pylist()}
    assert [outcomes[name] for name in ("mug", "mug gone", "blank", "long")] == [
        "servable", "servable", "without_vector", "refused"
    ]  # fmt: skip
    with pytest.raises(Cut):
        take(records, metrics_=DyingMetrics())
    take(records)
    assert rows_of(lake) == once
    assert [len(once[name]) for name in TABLES] == [5, 1, 2, 7, 4]


def test_a_vector_that_breaks_a_rule_is_refused_and_its_product_taken_in_without_it(
    spark: SparkSession,
    settings: Settings,
    lake: Lake,
    live: spaces.Space,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from models.inference import Embedder
    from spark_jobs.intake.batch import Intake
    from spark_jobs.intake.metrics import Metrics

    embed_readable = Embedder.embed_readable

    def spoiled(self: Embedder, texts: Any, images: Any) -> Any:
        vectors, readable = embed_readable(self, texts, images)
        vectors[0, 0] = np.nan
        return vectors, readable

    monkeypatch.setattr(Embedder, "embed_readable", spoiled)
    submit(lake, [event("mug", payload("mug")), event("cup", payload("cup"))], written_at=DAY)
    Intake(SparkLake(spark, settings), lambda _: None, clock, Metrics(tmp_path / "products.prom")).take(
        lake.read("product_events")
    )
    outcomes = {row["event_id"]: row["outcome"] for row in lake.read("product_arrivals").to_pylist()}
    assert sorted(outcomes.values()) == ["servable", "without_vector"]
    assert len(lake.read("embeddings")) == 1
    (refused,) = lake.read("rejects").to_pylist()
    assert (refused["table"], refused["rule"]) == ("embeddings", "vector_not_finite")
    assert live.space_id in refused["value"]


def test_the_stream_goes_on_after_an_erasure(
    spark: SparkSession, settings: Settings, lake: Lake, live: spaces.Space
) -> None:
    from spark_jobs import erase_subjects, stream_products

    def stream() -> None:
        stream_products.run(SparkLake(spark, settings), clock=lambda: datetime.now(UTC), once=True)

    submit(lake, EVENTS[:2], written_at=DAY)
    stream()
    erased = erase_subjects.run(SparkLake(spark, settings), "product", ["twin"], written_at=DAY)
    assert not erased.left
    submit(lake, [event("cup", payload("cup"))], written_at=DAY)
    stream()
    assert sorted(lake.read("products")["product_id"].to_pylist()) == ["cup", "mug"]
    assert sorted(lake.read("product_arrivals")["event_id"].to_pylist()) == ["cup", "mug"]


def test_one_stream_a_home(spark: SparkSession, settings: Settings) -> None:
    from spark_jobs import stream_products

    said: list[str] = []
    with exclusive(settings.home / "streams" / "products.lock"):
        with pytest.raises(ContractError, match="another stream takes in the product events"):
            stream_products.run(SparkLake(spark, settings), clock=clock)
        stream_products.run(SparkLake(spark, settings), clock=clock, once=True, say=said.append)
    assert said == ["another stream is at work, and takes in what there is"]
