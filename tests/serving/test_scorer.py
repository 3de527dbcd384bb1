"""Online ranking through Feast scores an impression as the training set does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from models.ctr.config import CtrConfig
from models.ctr.model import CtrModel
from models.ctr.train import record_model, train_ctr
from models.ctr.trees import TreesConfig
from models.evaluation.click_metrics import click_metrics
from moonlake.embeddings import spaces
from moonlake.embeddings.snapshots import write_snapshot
from moonlake.errors import InputError, NotFound, SpaceMismatch
from moonlake.feast_delta import materialize
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.training_sets import build
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet
from serving.scorer import Scorer

T1 = datetime(2026, 2, 1, tzinfo=UTC)
BEFORE = T1 - timedelta(days=9)
NOW = T1 + timedelta(days=5, hours=1)
DIMENSION, USERS, PRODUCTS, QUERIES = 8, 12, 30, 6
CONTENT_OF = {
    name: stable_hash(name) for name in [*(f"p{n}" for n in range(PRODUCTS)), *(f"q{n}" for n in range(QUERIES))]
}


def write(lake: Lake, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows past the table's writer; columns that a row does not name are null, `created_at` is T1."""
    table = TABLES[name]
    complete = [{column: row.get(column) for column in table.names} | {"created_at": T1} for row in rows]
    write_deltalake(lake.path(name), pa.Table.from_pylist(complete, schema=arrow_schema(table)), mode="append")


def fill(lake: Lake) -> None:
    """Products, users, queries, statistics, sequences, impressions and vectors of a small shop."""
    rng = np.random.default_rng(0)
    write(lake, "products", [
        {"product_id": f"p{n}", "content_id": CONTENT_OF[f"p{n}"], "category": f"c{n % 4}", "merchant_id": "m",
         "brand": "b" if n % 3 else None, "price_cents": 100 * n, "title": "t", "attributes": [], "image_ids": [],
         "deleted": n == 29, "listed_at": BEFORE, "event_timestamp": BEFORE, "source": "test"}
        for n in range(PRODUCTS)
    ])  # fmt: skip
    write(lake, "queries", [
        {"query_id": f"q{n}", "content_id": CONTENT_OF[f"q{n}"], "modality": "text", "text": "x", "image_ids": [],
         "event_timestamp": T1, "source": "test"} for n in range(QUERIES)
    ])  # fmt: skip
    write(lake, "users", [
        {"user_id": f"u{n}", "segment": f"s{n % 2}", "event_timestamp": BEFORE, "source": "test"}
        for n in range(USERS - 1)
    ])  # fmt: skip
    for name, key, count in (("product_stats", "product_id", PRODUCTS - 5), ("user_stats", "user_id", USERS)):
        write(lake, name, [
            {key: f"{key[0]}{n}", "impressions_7d": int(rng.integers(1, 50)), "clicks_7d": 1, "purchases_7d": 0,
             "ctr_7d": float(rng.random()), "event_timestamp": T1 + timedelta(days=day)}
            for n in range(count) for day in range(6)
        ])  # fmt: skip
    sequences = []
    for n in range(USERS - 2):
        times = [T1 + timedelta(hours=int(hour)) for hour in np.sort(rng.integers(0, 140, 20))]
        bought = [None if k % 4 == 0 else f"p{rng.integers(0, PRODUCTS)}" for k in range(20)]
        sequences.append({
            "user_id": f"u{n}", "month": "2026-02", "times_us": [int(at.timestamp()) * 1_000_000 for at in times],
            "actions": ["click" if one else "search" for one in bought], "product_ids": bought,
            "content_ids": [CONTENT_OF[one] if one else None for one in bought],
            "query_content_ids": [CONTENT_OF["q0"]] * 20, "event_timestamp": times[-1],
        })  # fmt: skip
    write(lake, "behavior_sequences", sequences)
    hours = [*np.sort(rng.integers(0, 120, 400)), *[121] * 60]  # the last sixty are of one moment: NOW
    impressions = []
    for n, hour in enumerate(hours):
        at, product, query = (
            T1 + timedelta(hours=int(hour)),
            f"p{rng.integers(0, PRODUCTS - 1)}",
            f"q{rng.integers(0, QUERIES)}",
        )
        impressions.append({
            "impression_id": f"i{n:03}", "request_id": "r", "user_id": f"u{rng.integers(0, USERS)}", "query_id": query,
            "product_id": product, "position": 1, "clicked": bool(rng.random() < 0.4), "label_time": at,
            "content_id": CONTENT_OF[product], "query_content_id": CONTENT_OF[query], "event_timestamp": at,
            "source": "test",
        })  # fmt: skip
    write(lake, "impressions", impressions)


def new_space(lake: Lake) -> str:
    definition = spaces.SpaceDefinition(
        weights="w", tokenizer="", preprocessing="", prompt="", content_fields=("title",), pooling="mean",
        normalisation="l2", storage_type="float16", dimension=DIMENSION,
    )  # fmt: skip
    facts: dict[str, Any] = {"artifact": "none", "trained_until": None, "metrics": {}, "coverage": 1.0}
    facts |= {"status": "candidate", "written_at": T1}
    space_id = spaces.register(lake, definition, name="test", **facts).space_id
    vectors = np.random.default_rng(1).normal(size=(len(CONTENT_OF), DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    write(lake, "embeddings", [
        {"content_id": one, "space_id": space_id, "vector": vector.tolist(), "event_timestamp": TIMELESS}
        for one, vector in list(zip(CONTENT_OF.values(), vectors, strict=True))[3:]
    ])  # fmt: skip
    return space_id


class Shop:
    """A filled lake, a content model trained on what was before NOW, and online features as of NOW."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.lake = Lake(self.settings)
        fill(self.lake)
        self.snapshot_folder, self.model_folder = home / "snapshots" / "test", home / "artifacts" / "ctr"
        self.snapshot = write_snapshot(self.lake, new_space(self.lake), self.snapshot_folder)
        materialize.run(self.settings, NOW)
        self.spec = TrainingSetSpec("test", T1, NOW + timedelta(seconds=1), sequence_length=50)
        self.training_set: TrainingSet = build.run(self.settings, self.spec, written_at=NOW).training_set
        config = CtrConfig(model="cube", behavior_length=10, hidden=(16,), max_epochs=3, batch_size=64, min_count=1)
        model = train_ctr(self.training_set, self.snapshot, config, window=(T1, NOW))
        self.model: CtrModel = model.save(self.model_folder)
        self.rows = self.training_set.read(start=NOW)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def scorer(shop: Shop) -> Scorer:
    return Scorer.open(shop.settings, shop.model_folder, shop.snapshot_folder)


def test_an_impression_scores_online_as_in_the_training_set(shop: Shop, scorer: Scorer) -> None:
    offline = shop.model.predict(shop.rows, shop.snapshot)
    assert len(offline) == 60
    assert np.ptp(offline) > 0.01  # scores that are all alike would agree by accident
    for row, expected in zip(shop.rows.to_pylist(), offline, strict=True):
        (ranked,) = scorer.rank(row["user_id"], row["query_id"], [row["product_id"]], NOW)
        assert ranked.score == pytest.approx(expected, abs=1e-5), row["impression_id"]


def test_trees_score_online_as_in_the_training_set(shop: Shop, tmp_path: Path) -> None:
    growth = TreesConfig(max_rounds=5, threads=1)
    config = CtrConfig(model="trees", behavior_length=10, min_count=1, trees=growth)
    train_ctr(shop.training_set, shop.snapshot, config, window=(T1, NOW)).save(tmp_path / "trees")
    scorer = Scorer.open(shop.settings, tmp_path / "trees", shop.snapshot_folder)
    offline = scorer.model.predict(shop.rows, shop.snapshot)
    assert np.ptp(offline) > 0.01
    for row, expected in list(zip(shop.rows.to_pylist(), offline, strict=True))[:10]:
        (ranked,) = scorer.rank(row["user_id"], row["query_id"], [row["product_id"]], NOW)
        assert ranked.score == pytest.approx(expected, abs=1e-5), row["impression_id"]


def test_online_rows_are_the_rows_of_the_training_set(shop: Shop, scorer: Scorer) -> None:
    columns = {*shop.model.config.id_features, *shop.model.config.dense_features, "content_id", "query_content_id"}
    columns |= {name for name in shop.rows.column_names if name.startswith("behavior_")}
    for row in shop.rows.to_pylist():
        online = scorer.rows(row["user_id"], row["query_id"], [row["product_id"]], NOW).to_pylist()[0]
        assert {name: online[name] or None for name in columns} == {name: row[name] or None for name in columns}


def test_candidates_come_by_descending_score_and_alone_score_the_same(scorer: Scorer) -> None:
    candidates = [f"p{n}" for n in (3, 1, 4, 15, 9, 26)]
    ranked = scorer.rank("u1", "q1", candidates, NOW)
    assert {one.product_id for one in ranked} == set(candidates)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    for one in ranked:
        assert scorer.rank("u1", "q1", [one.product_id], NOW)[0].score == pytest.approx(one.score, abs=1e-6)
    assert scorer.rank("u1", "q1", [], NOW) == []


def test_a_query_can_be_named_by_its_content(scorer: Scorer) -> None:
    by_content = scorer.rows("u1", CONTENT_OF["q1"], ["p1"], NOW)
    assert by_content["query_content_id"].to_pylist() == [CONTENT_OF["q1"]]
    assert by_content["query_id"].to_pylist() == [None]
    assert scorer.rows("u1", None, ["p1"], NOW)["query_content_id"].to_pylist() == [None]


def test_what_nobody_knows_is_scored_or_named(scorer: Scorer) -> None:
    scores = [one.score for one in scorer.rank("never seen", None, ["p1", "unheard of", "p29"], NOW)]
    assert all(0 < score < 1 for score in scores)
    with pytest.raises(NotFound, match="q99"):
        scorer.rank("u1", "q99", ["p1"], NOW)
    with pytest.raises(InputError, match="time zone"):
        scorer.rank("u1", "q1", ["p1"], NOW.replace(tzinfo=None))


def test_model_and_snapshot_of_two_spaces_are_refused(shop: Shop, scorer: Scorer) -> None:
    with pytest.raises(SpaceMismatch, match=shop.snapshot.space_id):
        Scorer(shop.model, shop.snapshot.shuffled(0), scorer.features, shop.lake)


def test_equal_scores_keep_the_order_of_the_candidates(shop: Shop) -> None:
    class SameForAll:
        """A feature reader that knows nothing about anyone."""

        def read(self, user_id: str, product_ids: Sequence[str]) -> pa.Table:
            bare = shop.rows.slice(0, 1).take(pa.array([0] * len(product_ids)))
            for name in ("content_id", "query_content_id", "query_id", "event_timestamp", "product_id"):
                bare = bare.drop_columns([name])
            return bare.append_column("product_id", pa.array(product_ids))

    unseen = [f"unseen{n}" for n in range(5)]
    ranked = Scorer(shop.model, shop.snapshot, SameForAll(), shop.lake).rank("u", None, unseen, NOW)
    assert [one.product_id for one in ranked] == unseen


def test_the_live_scorer_is_what_was_released(
    shop: Shop, scorer: Scorer, release_waived: Callable[..., object]
) -> None:
    with pytest.raises(NotFound, match="released"):
        Scorer.live(shop.settings)
    nothing = click_metrics([], [], [])
    record_model(shop.lake, shop.model, nothing, name="ctr", artifact=shop.model_folder, written_at=NOW)
    release_waived(
        shop.lake, "ctr_ranking", shop.snapshot.space_id, model_id=shop.model.model_id,
        feature_service="ctr_ranking_v1", snapshot=str(shop.snapshot_folder), written_at=NOW,
    )  # fmt: skip
    assert Scorer.live(shop.settings).rank("u1", "q1", ["p1", "p2"], NOW) == scorer.rank("u1", "q1", ["p1", "p2"], NOW)
