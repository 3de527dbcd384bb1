"""`embedding_refresh`, run for real by Airflow: products arrive, and afterwards Feast serves their vectors online."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from models.encoder.config import EncoderConfig, TinyConfig
from models.inference import Embedder
from models.training.contrastive import TrainingConfig, train_encoder
from moonlake.embeddings import spaces
from moonlake.embeddings.contents import read_contents, read_images
from moonlake.lake.lake import Lake
from moonlake.lake.product_events import ProductEvent, submit
from moonlake.settings import Settings
from sources.simulator.marketplace import stage_arrivals
from workflows.airflow import airflow_environment

pytestmark = [pytest.mark.airflow, pytest.mark.spark, pytest.mark.slow]

TINY = EncoderConfig(
    tiny=TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    image_height=32,
    image_width=32,
    dimension=16,
)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
PRODUCTS = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        home=tmp_path_factory.mktemp("home"),
        spark_master="local[2]",
        spark_driver_memory="1g",
        spark_shuffle_partitions=2,
    )


@pytest.fixture(scope="module")
def space(settings: Settings) -> spaces.Space:
    """An embedding space in the lake's books, of an encoder that was never trained."""
    lake = Lake(settings)
    artifact = settings.artifacts / "encoders" / "untrained"
    train_encoder(lake, TrainingConfig(TINY, steps=0), artifact, before=NOW)
    definition = Embedder.open(artifact).space
    return spaces.register(
        lake,
        definition,
        name="untrained",
        artifact=str(artifact),
        trained_until=None,
        metrics={},
        status="building",
        written_at=NOW,
    )


def refresh(settings: Settings, source: str, space: str, date: str = "2026-11-02") -> subprocess.CompletedProcess[str]:
    """One run of the DAG, as a data engineer starts one on a laptop."""
    command = [sys.executable, "-m", "cli.app", "airflow", "dags", "test", "embedding_refresh", date]
    run_conf = json.dumps({"source": source, "space": space})
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "MOONLAKE_"))}
    return subprocess.run(
        [*command, "--conf", run_conf],
        env=inherited | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )


def test_products_that_arrive_are_embedded_and_served_online(settings: Settings, space: spaces.Space) -> None:
    folder = stage_arrivals("tiny", settings, count=PRODUCTS)
    by_hand = ProductEvent("1", "by-hand", "upsert", '{"title": "oak chair"}', "shop", NOW)
    submit(Lake(settings), [by_hand], written_at=NOW)

    done = refresh(settings, folder.name, space.name)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]

    lake = Lake(settings)
    products = lake.read("products", ["product_id", "content_id"]).to_pylist()
    assert len(products) == PRODUCTS + 1
    assert lake.read("product_arrivals")["product_id"].to_pylist() == ["by-hand"]
    from moonlake.feast_delta.store import feature_store

    content_ids = [product["content_id"] for product in products]
    online = feature_store(settings).get_online_features(
        features=["content_embedding_v1:vector", "product_profile_v1:product_content_id"],
        entity_rows=[
            {"product_id": product["product_id"], "content_id": product["content_id"], "space_id": space.space_id}
            for product in products
        ],
    )
    served = online.to_dict()
    assert served["product_content_id"] == content_ids
    # The same numbers as one gets by embedding the content by hand.
    contents = read_contents(lake, content_ids)
    chosen = [contents[content_id] for content_id in content_ids]
    images = read_images(lake, [image_id for content in chosen for image_id in content.image_ids])
    expected = Embedder.open(Path(space.artifact)).embed(
        [content.text for content in chosen], [[images[name] for name in content.image_ids] for content in chosen]
    )
    np.testing.assert_allclose(np.array(served["vector"], np.float32), expected, atol=2e-3)


def test_a_run_without_a_staged_source_skips_the_ingestion(settings: Settings) -> None:
    environment = airflow_environment(settings, os.environ)
    command = [sys.executable, "-m", "airflow", "tasks", "test", "embedding_refresh", "look_for_products", "2026-11-03"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert f"nothing staged in {settings.staging}/incoming" in done.stdout + done.stderr
