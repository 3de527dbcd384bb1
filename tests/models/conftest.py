"""A small synthetic world in which content, and nothing else, decides clicks; and a shop of coloured shirts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from PIL import Image

from moonlake.embeddings.contents import content_of
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDING_SPACES, EMBEDDINGS, TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
TRAINED_UNTIL, T1, T2, END = (DAY0 + timedelta(days=days) for days in (-1, 0, 8, 11))
DIMENSION = 16
Rows = dict[str, Any]


@dataclass(frozen=True)
class World:
    """Rows of [T1, END) as a training set, and the true vectors as a snapshot."""

    training_set: TrainingSet
    snapshot: Snapshot
    window: tuple[datetime, datetime] = (T1, T2)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """16,000 impressions of 400 users, 1,500 products and 200 queries."""
    home = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    vectors = _unit(rng, 1_700)
    ids = [stable_hash(f"content {number}") for number in range(len(vectors))]
    snapshot = _snapshot(home, ids, vectors)
    return World(_training_set(home / "world", _impressions(rng, ids, vectors, 16_000)), snapshot)


@pytest.fixture
def make_training_set(tmp_path: Path) -> Callable[[pa.Table], TrainingSet]:
    """A function that writes rows as a training set."""
    return lambda rows: _training_set(tmp_path / "set", rows)


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def _impressions(rng: np.random.Generator, ids: list[str], vectors: np.ndarray, count: int) -> pa.Table:
    """Products 0..1,499 and queries 1,500..1,699; a user's behaviours are the products nearest to a taste."""
    tastes = _unit(rng, 400)
    history = np.argsort(-tastes @ vectors[:1500].T, axis=1)[:, :8]
    user, product = rng.integers(0, 400, count), rng.integers(0, 1500, count)
    query = rng.integers(1500, 1700, count)
    times = np.sort(rng.integers(0, int((END - T1).total_seconds()), count))
    appeal = np.sum(vectors[product] * (vectors[query] + tastes[user]), axis=1)
    clicked = rng.random(count) < 1 / (1 + np.exp(1.5 - 4 * appeal))
    rows: list[Rows] = []
    for n in range(count):
        at = DAY0 + timedelta(seconds=int(times[n]))
        seen = history[user[n]][: rng.integers(0, 9)].tolist()
        rows.append({
            "impression_id": f"i{n}", "request_id": f"r{n // 4}", "user_id": f"u{user[n]}", "query_id": f"q{query[n]}",
            "product_id": f"p{product[n]}", "content_id": ids[product[n]], "query_content_id": ids[query[n]],
            "event_timestamp": at, "clicked": bool(clicked[n]), "category": f"c{product[n] % 7}",
            "brand": None if n % 5 else "b", "merchant_id": f"m{product[n] % 20}", "price_cents": int(product[n]),
            "product_impressions_7d": 5, "product_clicks_7d": 1, "product_purchases_7d": 0, "product_ctr_7d": 0.2,
            "user_impressions_7d": None, "user_clicks_7d": None, "user_purchases_7d": None, "user_ctr_7d": None,
            "segment": "s",
            "behavior_product_ids": ["", *(f"p{one}" for one in seen)],
            "behavior_content_ids": ["", *(ids[one] for one in seen)],
            "behavior_query_content_ids": [ids[query[n]]] * (len(seen) + 1),
            "behavior_actions": ["search", *["click"] * len(seen)],
            "behavior_times_us": [int(at.timestamp() * 1e6) - 1_000_000 * k for k in range(len(seen) + 1, 0, -1)],
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_layout())


def _layout() -> pa.Schema:
    """Columns of a training set of `ctr_ranking_v1`."""
    counts = ("impressions_7d", "clicks_7d", "purchases_7d")
    texts = ("impression_id", "request_id", "user_id", "query_id", "product_id", "content_id", "query_content_id")
    lists = ("product_ids", "content_ids", "query_content_ids", "actions")
    return pa.schema([
        *((name, pa.string()) for name in texts),
        ("event_timestamp", pa.timestamp("us", "UTC")), ("clicked", pa.bool_()),
        *((name, pa.string()) for name in ("category", "brand", "merchant_id")), ("price_cents", pa.int64()),
        *((f"product_{name}", pa.int64()) for name in counts), ("product_ctr_7d", pa.float64()),
        *((f"user_{name}", pa.int64()) for name in counts), ("user_ctr_7d", pa.float64()), ("segment", pa.string()),
        *((f"behavior_{name}", pa.list_(pa.string())) for name in lists), ("behavior_times_us", pa.list_(pa.int64())),
    ])  # fmt: skip


def _training_set(folder: Path, rows: pa.Table) -> TrainingSet:
    inputs = Manifest(TrainingSetSpec(folder.name, T1, END), {}, [], stable_hash(""), "test")
    half = len(rows) // 2
    return write_training_set(folder, inputs, rows.select(["impression_id"]), [rows.slice(0, half), rows.slice(half)])


def _snapshot(home: Path, ids: list[str], vectors: np.ndarray) -> Snapshot:
    lake, space_id = Lake(Settings(home=home)), stable_hash("true space")
    space = {
        "space_id": space_id, "name": "true", "status": "building", "dimension": DIMENSION, "storage_type": "float16",
        "artifact": "none", "definition": "{}", "trained_until": TRAINED_UNTIL, "coverage": 1.0, "metrics": "{}",
        "event_timestamp": T1,
    }  # fmt: skip
    schema = arrow_schema(EMBEDDING_SPACES, EMBEDDING_SPACES.facts)
    lake.append("embedding_spaces", pa.Table.from_pylist([space], schema=schema), written_at=T1)
    columns = {
        "content_id": ids, "space_id": [space_id] * len(ids), "vector": list(vectors),
        "event_timestamp": [TIMELESS] * len(ids), "created_at": [T1] * len(ids),
    }  # fmt: skip
    write_deltalake(lake.path("embeddings"), pa.table(columns, schema=arrow_schema(EMBEDDINGS)))
    return write_snapshot(lake, space_id, home / "snapshot")


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def picture() -> Callable[[tuple[int, int, int], int], bytes]:
    """A function that draws a noisy picture of a colour."""
    return _picture


@pytest.fixture
def stocked(lake: Lake) -> Lake:
    """A lake with a product of each colour and image queries that led to it, one a day, for stages 1 and 2."""
    images: dict[str, bytes] = {}

    def keep(colour: tuple[int, int, int], seed: int) -> str:
        file = _picture(colour, seed)
        images[stable_hash(file)] = file
        return stable_hash(file)

    products = {
        name: content_of(f"{name} shirt", [keep(colour, 10 * at), keep(colour, 10 * at + 1)])
        for at, (name, colour) in enumerate(COLOURS.items())
    }
    pairs: list[Rows] = []
    queries: list[Rows] = []
    for at, (name, colour) in enumerate(COLOURS.items()):
        others = [content.content_id for other, content in products.items() if other != name]
        for day in range(2):
            query = content_of(None, [keep(colour, 10 * at + 2 + day)])
            queries.append({"query_id": query.content_id, "modality": "image", "image_ids": list(query.image_ids),
                            "content_id": query.content_id})  # fmt: skip
            pairs += [
                {"pair_id": stable_hash(f"{name} {day} {stage}"), "anchor_content_id": query.content_id,
                 "positive_content_id": products[name].content_id, "positive_product_id": name,
                 "hard_negative_content_ids": others if stage == 2 else [], "action": "purchase", "stage": stage,
                 "pair_type": "image_query_to_product", "event_timestamp": DAY0 + timedelta(days=day)}
                for stage in (1, 2)
            ]  # fmt: skip
    catalogue = [
        {"product_id": name, "title": content.text, "attributes": [("colour", name)], "category": "shirts",
         "image_ids": list(content.image_ids), "listed_at": DAY0, "deleted": False, "content_id": content.content_id}
        for name, content in products.items()
    ]  # fmt: skip
    pictures = [
        {"image_id": name, "image_bytes": file, "format": "PNG", "width": 30, "height": 40, "perceptual_hash": "0" * 16}
        for name, file in images.items()
    ]
    for name, rows in {"products": catalogue, "queries": queries, "product_images": pictures}.items():
        _write(lake, name, rows)
    _write(lake, "contrastive_pairs", pairs)
    return lake


def _picture(colour: tuple[int, int, int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 40, (40, 30, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour) * 0.8 + noise).clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _write(lake: Lake, name: str, rows: Sequence[Rows]) -> None:
    """Put rows into any table, with a plain Delta write: the jobs that write these tables need Spark."""
    usual = {column.name: None for column in TABLES[name]}
    usual |= {"source": "test", "created_at": DAY0, "event_timestamp": DAY0}  # type: ignore[dict-item]
    usual = {key: value for key, value in usual.items() if key in TABLES[name].names}
    write_deltalake(lake.path(name), pa.Table.from_pylist([usual | row for row in rows], arrow_schema(TABLES[name])))
