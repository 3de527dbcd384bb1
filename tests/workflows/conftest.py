"""A small shop for workflows: pictures that were searched with, what was bought, two spaces, impressions and clicks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moonlake.embeddings import spaces
from moonlake.embeddings.contents import content_of
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 4
PRODUCTS, IMPRESSIONS = 20, 400


@pytest.fixture
def shop(settings: Settings, write_rows: Callable[..., None]) -> Settings:
    """20 products, each bought after its picture; space "true" knows them, "noise" does not; training set "clicks"."""
    rng, lake = np.random.default_rng(0), Lake(settings)
    styles = np.eye(PRODUCTS, dtype=np.float32)
    products = [content_of(f"product {at}", []) for at in range(PRODUCTS)]
    queries = [content_of(None, [f"x{at}"]) for at in range(PRODUCTS)]
    write_rows(settings, "products", [
        {"product_id": f"p{at}", "title": one.text, "category": f"kind {at % 2}", "content_id": one.content_id,
         "event_timestamp": START - timedelta(days=2)} for at, one in enumerate(products)
    ])  # fmt: skip
    write_rows(settings, "queries", [
        {"query_id": f"q{at}", "modality": "image", "image_ids": list(one.image_ids), "content_id": one.content_id}
        for at, one in enumerate(queries)
    ])  # fmt: skip
    write_rows(settings, "behaviors", [
        {"behavior_id": f"b{at}", "user_id": f"u{at % 5}", "action": "purchase", "product_id": f"p{at}",
         "query_id": f"q{at}", "event_timestamp": START + timedelta(days=3, hours=at)} for at in range(PRODUCTS)
    ])  # fmt: skip
    vectors = {"true": styles, "noise": rng.permutation(styles)}
    for at, (name, of_queries) in enumerate(vectors.items()):
        definition = spaces.SpaceDefinition(name, "", "", "", ("title",), "mean", "l2", "float16", PRODUCTS)
        stated: dict[str, Any] = {"name": name, "artifact": "none", "trained_until": START - timedelta(days=1)}
        moment = START + timedelta(seconds=at)
        space_id = spaces.register(lake, definition, **stated, metrics={}, written_at=moment).space_id
        spaces.set_status(lake, space_id, "candidate", coverage=1.0, written_at=START + timedelta(minutes=1))
        write_rows(settings, "embeddings", [
            {"content_id": one.content_id, "vector": vector.tolist(), "space_id": space_id, "event_timestamp": TIMELESS}
            for contents, of_side in ((products, styles), (queries, of_queries))
            for one, vector in zip(contents, of_side, strict=True)
        ])  # fmt: skip
    asked, shown = rng.integers(0, PRODUCTS, (2, IMPRESSIONS))
    labels = pa.table({
        "impression_id": [f"i{n:03}" for n in range(IMPRESSIONS)],
        "user_id": [f"u{n % 9}" for n in range(IMPRESSIONS)],
        "product_id": [f"p{n}" for n in shown], "content_id": [products[n].content_id for n in shown],
        "query_content_id": [queries[n].content_id for n in asked],
        "clicked": rng.random(IMPRESSIONS) < np.where(asked == shown, 0.9, 0.2),
        "event_timestamp": pa.array(
            [START + n * timedelta(days=DAYS) / IMPRESSIONS for n in range(IMPRESSIONS)], pa.timestamp("us", "UTC")
        ),
        **{f"behavior_{name}": pa.array([["x"]] * IMPRESSIONS)
           for name in ("product_ids", "content_ids", "query_content_ids", "actions")},
        "behavior_times_us": pa.array([[0]] * IMPRESSIONS),
    })  # fmt: skip
    end = START + timedelta(days=DAYS)
    manifest = Manifest(TrainingSetSpec("clicks", START, end), {}, [], stable_hash(""), "test")
    write_training_set(settings.training_sets / "clicks", manifest, labels.select(["impression_id"]), [labels])
    return settings
