"""A product or a user goes from everything, others stay as they were, and a run that was killed is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from moonlake.embeddings.backfill import Backfill
from moonlake.embeddings.snapshots import Snapshot, write_snapshot, write_vectors
from moonlake.errors import NotFound
from moonlake.feast_delta import materialize
from moonlake.feast_delta.serving_logs.request_log import RequestLog, log_of_service
from moonlake.feast_delta.store import apply, online_features
from moonlake.lake.lake import Lake
from moonlake.maintenance.erasure import names_that_go
from moonlake.schema.tables import PAIR_TYPES, TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.training_sets import build
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet
from moonlake.training_sets.verify import reproducible
from sources.own_files.schema import KINDS
from sources.own_files.staging import SourceInfo, new_stage, stage_path
from spark_jobs import erase_subjects, pack_behavior_sequences
from spark_jobs.erase_subjects import Erasure

pytestmark = [pytest.mark.spark, pytest.mark.slow]

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
DAY = datetime(2026, 1, 5, tzinfo=UTC)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
SPACE = "5" * 32
PRODUCTS = ("prod-0001", "prod-0002", "prod-0003")
USERS = ("user-0001", "user-0002")
CONTENTS = {product: str(number) * 32 for number, product in enumerate(PRODUCTS, 1)}
ASKED, PRIVATE = "a" * 32, "b" * 32
ALONE, BOTH = "c" * 32, "d" * 32
CTR = "ctr_ranking_v1"


class Shop:
    """A home in which two users saw and clicked three products; the first two products share a picture."""

    def __init__(self, spark: SparkSession, settings: Settings, write: Write) -> None:
        self.spark, self.settings, self.lake, self.write = spark, settings, Lake(settings), write
        self._catalogue(write)
        self._behaviour(write)
        pack_behavior_sequences.run(SparkLake(spark, settings), written_at=DAY)
        self._embeddings(write)
        self._staged()
        self.online = apply(settings)
        materialize.run(settings, END)
        build.run(settings, TrainingSetSpec("january", DAY - timedelta(days=1), END, space_id=SPACE), written_at=NOW)

    def _catalogue(self, write: Write) -> None:
        images = {PRODUCTS[0]: [ALONE, BOTH], PRODUCTS[1]: [BOTH], PRODUCTS[2]: []}
        of_product = [
            {"product_id": each, "content_id": CONTENTS[each], "image_ids": images[each], "event_timestamp": DAY}
            for each in PRODUCTS
        ]
        rows = pa.Table.from_pylist(of_product)
        unstated = {"title": "t", "listed_at": DAY, "deleted": False, "source": "s", "attributes": {}}
        frame = self.spark.createDataFrame(
            [(*row.values(),) for row in rows.to_pylist()],
            "product_id string, content_id string, image_ids array<string>, event_timestamp timestamp",
        )
        for name, value in unstated.items():
            frame = frame.withColumn(name, f.create_map().cast("map<string,string>") if value == {} else f.lit(value))
        for name in set(TABLES["products"].facts) - set(frame.columns):
            frame = frame.withColumn(name, f.lit(None))
        writes.append(SparkLake(self.spark, self.settings), "products", frame, source="s", written_at=DAY)
        write(self.settings, "product_images", [{"image_id": each} for each in (ALONE, BOTH)])
        write(self.settings, "product_events", [{"event_id": f"e-{each}", "product_id": each} for each in PRODUCTS])
        write(
            self.settings,
            "queries",
            [{"query_id": "q", "content_id": ASKED}, {"query_id": "mine", "content_id": PRIVATE}],
        )
        write(self.settings, "users", [{"user_id": each, "event_timestamp": DAY} for each in USERS])
        refused = [("r1", {"product_id": PRODUCTS[0]}), ("r2", {"user_id": USERS[0]}), ("r3", {"user_id": "x"})]
        write(self.settings, "rejects", [{"reject_id": name, "value": json.dumps(value)} for name, value in refused])

    def _behaviour(self, write: Write) -> None:
        shown, acted, pairs, features = [], [], [], []
        for number, (user, product) in enumerate((user, product) for user in USERS for product in PRODUCTS):
            query = "mine" if (user, product) == (USERS[0], PRODUCTS[2]) else "q"
            both = {"user_id": user, "product_id": product, "query_id": query, "content_id": CONTENTS[product]}
            both |= {"query_content_id": PRIVATE if query == "mine" else ASKED}
            at = DAY + timedelta(hours=number)
            shown.append({"impression_id": f"i{number}", **both, "event_timestamp": at, "label_time": at})
            acted.append({"behavior_id": f"b{number}", **both, "action": "click", "event_timestamp": at})
            features.append({"impression_id": f"i{number}", "space_id": SPACE, "event_timestamp": at})
            pairs.append(
                {
                    "pair_id": self._pair(f"b{number}"),
                    "positive_product_id": product,
                    "positive_spu_id": f"product:{PRODUCTS[0] if product != PRODUCTS[2] else product}",
                    "anchor_content_id": both["query_content_id"],
                    "positive_content_id": CONTENTS[product],
                    "hard_negative_content_ids": [CONTENTS[each] for each in PRODUCTS if each != product],
                }
            )
        for table, rows in {"impressions": shown, "behaviors": acted, "cube_features": features}.items():
            write(self.settings, table, rows)
        write(self.settings, "contrastive_pairs", pairs)
        stats = {"impressions_7d": 1, "event_timestamp": DAY + timedelta(days=1)}
        write(self.settings, "product_stats", [{"product_id": each, **stats} for each in PRODUCTS])
        write(self.settings, "user_stats", [{"user_id": each, **stats} for each in USERS])

    def _pair(self, behavior_id: str) -> str:
        """As `build_contrastive_pairs` names a pair."""
        named = f.md5(f.concat_ws("\0", f.lit(behavior_id), f.lit(1), f.lit(PAIR_TYPES[0])))
        return str(self.spark.range(1).select(named).collect()[0][0])

    def _embeddings(self, write: Write) -> None:
        write(
            self.settings,
            "embedding_spaces",
            [{"space_id": SPACE, "name": "first", "dimension": 2, "storage_type": "float16"}],
        )
        for content in (*CONTENTS.values(), ASKED, PRIVATE):
            row = {"content_id": content, "space_id": SPACE, "vector": [1.0, 0.0], "event_timestamp": TIMELESS}
            write(self.settings, "embeddings", [row])
        write_snapshot(self.lake, SPACE, self.settings.snapshots / SPACE)
        vectors = np.eye(3, dtype=np.float16)
        write_vectors(
            self.settings.snapshots / "apart", list(CONTENTS.values()), vectors, space_id="6" * 32, labels=["x"]
        )
        backfill = Backfill(self.settings.backfills, SPACE)
        plan = backfill.plan(3)
        backfill.keep(plan, 0, pa.table({"content_id": list(CONTENTS.values()), "vector": [[1.0]] * 3}))

    def _staged(self) -> None:
        staged: dict[str, list[dict[str, Any]]] = {
            "products": [{"product_id": each, "image_names": [f"{each}.jpg", "both.jpg"]} for each in PRODUCTS],
            "images": [{"name": f"{each}.jpg", "image_bytes": b"x"} for each in (*PRODUCTS, "both")],
            "users": [{"user_id": each} for each in USERS],
            "behaviors": [{"user_id": user, "product_id": each} for user in USERS for each in PRODUCTS],
        }
        with new_stage(self.settings, "src") as writer:
            for kind, rows in staged.items():
                schema = KINDS[kind].schema()
                filled = [{name: row.get(name) for name in schema.names} for row in rows]
                writer.write(kind, pa.Table.from_pylist(filled, schema=schema))
            writer.describe(SourceInfo("src", False, "test", None, None, None, "", "f"))

    def erase(self, subject: Any, *ids: str) -> Erasure:
        return erase_subjects.run(SparkLake(self.spark, self.settings), subject, ids, written_at=NOW)

    def rows(self, table: str, column: str) -> list[Any]:
        return sorted(self.lake.read(table, [column])[column].to_pylist())

    def served(self, user: str, product: str) -> dict[str, Any]:
        rows = online_features(self.online, CTR, {"user_id": [user], "product_id": [product]})
        return dict(rows.to_pylist()[0])

    def staged(self, kind: str, column: str) -> list[Any]:
        return list(pq.read_table(stage_path(self.settings, "src") / kind)[column].to_pylist())


def by_time(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows as values; in which files they lie is no part of them."""
    return sorted(rows.to_pylist(), key=lambda row: str(row["event_timestamp"]))


@pytest.fixture
def shop(spark: SparkSession, settings: Settings, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    return Shop(spark, settings, write_rows)


def test_a_product_goes_from_everything_and_what_it_shares_stays(shop: Shop) -> None:
    gone, *others = PRODUCTS
    settings, lake = shop.settings, shop.lake
    log = log_of_service(settings, shop.online, CTR)
    with RequestLog(shop.online, CTR, log) as requests:
        for product in PRODUCTS:
            requests(online_features(shop.online, CTR, {"user_id": ["nobody"], "product_id": [product]}))
    manifest = TrainingSet.open(settings.training_sets / "january").manifest
    before = shop.served(USERS[0], gone)
    assert gone in before["behavior_product_ids"]
    planned = erase_subjects.plan(settings, "product", [gone])
    assert shop.rows("products", "product_id") == list(PRODUCTS)
    erasure = shop.erase("product", gone)
    assert (erasure.left, erasure.models, erasure.training_sets) == ([], [], ("january",))
    assert {store: erasure.removed[store] for store in planned.removed} == planned.removed
    for table, column in (
        ("products", "product_id"),
        ("product_events", "product_id"),
        ("product_stats", "product_id"),
    ):
        assert shop.rows(table, column) == others
    assert shop.rows("product_images", "image_id") == [BOTH]
    assert shop.rows("embeddings", "content_id") == sorted([*(CONTENTS[each] for each in others), ASKED, PRIVATE])
    assert shop.rows("impressions", "impression_id") == shop.rows("cube_features", "impression_id")
    assert shop.rows("impressions", "impression_id") == ["i1", "i2", "i4", "i5"]
    assert shop.rows("rejects", "reject_id") == ["r2", "r3"]
    for row in lake.read("behavior_sequences").to_pylist():
        assert row["product_ids"] == others
        assert row["content_ids"] == [CONTENTS[each] for each in others]
        assert {len(row[name]) for name in ("times_us", "actions", "query_content_ids", "written_us")} == {2}
    # The unit of the second product was named by the first: its pairs are built again.
    assert lake.read("contrastive_pairs")["hard_negative_content_ids"].to_pylist() == [[CONTENTS[others[0]]]] * 2
    snapshot = Snapshot.open(settings.snapshots / SPACE)
    assert set(snapshot.products) == set(others)
    assert len(snapshot) == 4
    assert reproducible(settings, snapshot.versions).startswith("as long as")
    assert Snapshot.open(settings.snapshots / "apart").contents()["content_id"].to_pylist() == ["2" * 32, "3" * 32]
    assert shop.staged("products", "product_id") == others
    assert shop.staged("images", "name") == [f"{others[0]}.jpg", f"{others[1]}.jpg", "both.jpg"]
    assert SourceInfo.read(stage_path(settings, "src")).staged["behaviors"] == 4
    assert sorted(DeltaTable(log.path).to_pyarrow_dataset().to_table()["product_id"].to_pylist()) == others
    assert shop.served(USERS[0], others[0])["behavior_product_ids"] == others
    assert shop.served(USERS[0], gone)["product_impressions_7d"] is None
    assert reproducible(settings, manifest.table_versions).endswith("which wins over replay")
    with pytest.raises(NotFound):
        lake.read("products", version=0)
    (book,) = lake.read("erasures").to_pylist()
    assert (book["subject"], book["places_found"]) == ("product", 0)
    assert gone not in json.dumps(book, default=str)


def test_a_user_goes_from_everything_and_the_rows_of_others_stay_as_they_were(shop: Shop) -> None:
    gone, stays = USERS
    settings = shop.settings
    lasting = {
        table: shop.lake.read(table).filter(pa.compute.field("user_id") == stays)
        for table in ("users", "user_stats", "impressions", "behaviors", "behavior_sequences")
    }
    products = shop.lake.read("products").to_pylist()
    assert len(names_that_go(shop.lake, "user", [gone])["pair"]) == 3 * 2 * len(PAIR_TYPES)
    erasure = shop.erase("user", gone)
    assert erasure.left == []
    for table, rows in lasting.items():
        assert by_time(shop.lake.read(table)) == by_time(rows), table
    assert shop.lake.read("products").to_pylist() == products
    assert shop.rows("queries", "query_id") == ["q"]
    assert PRIVATE not in shop.rows("embeddings", "content_id")
    assert len(shop.rows("contrastive_pairs", "pair_id")) == len(shop.rows("cube_features", "impression_id")) == 3
    assert shop.rows("rejects", "reject_id") == ["r1", "r3"]
    assert shop.staged("users", "user_id") == [stays]
    assert shop.served(gone, PRODUCTS[0])["behavior_product_ids"] == []
    assert shop.served(stays, PRODUCTS[0])["behavior_product_ids"] == list(PRODUCTS)
    # What comes later is served from the change feed that begins anew.
    again = materialize.run(settings, END, ["user_behavior_sequence_v1"])
    assert again[0].why == "changed keys"
    # Given again, nothing is left to do; and a user who comes back is a new fact.
    assert shop.erase("user", gone).removed == {}


def test_a_run_that_was_killed_is_finished_by_the_next(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = USERS[0]
    erase_rows = erase_subjects._erase_rows

    def killed(lake: SparkLake, table: Any, names: Any) -> None:
        if table.name == "behavior_sequences":
            raise KeyboardInterrupt
        erase_rows(lake, table, names)

    with monkeypatch.context() as patched:
        patched.setattr(erase_subjects, "_erase_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.erase("user", gone)
    assert shop.rows("impressions", "user_id") == [USERS[1]] * 3  # by which the next run would find cube_features
    assert len(shop.rows("cube_features", "impression_id")) == 6
    assert [each.store for each in erase_subjects.check(shop.settings, "user", [gone]).left]
    # The query was theirs alone; meanwhile somebody else made it too.
    shop.write(shop.settings, "judgments", [{"query_id": "mine", "product_id": PRODUCTS[0]}])
    shop.write(shop.settings, "queries", [{"query_id": "mine", "content_id": PRIVATE}])
    assert shop.erase("user", gone).left == []
    assert "mine" in shop.rows("queries", "query_id")
    assert len(shop.rows("cube_features", "impression_id")) == len(shop.rows("contrastive_pairs", "pair_id")) == 3
    assert not list((shop.settings.home / "erasures").iterdir())


def test_what_no_table_can_reach_is_said_to_be_left(shop: Shop) -> None:
    path: Path = shop.settings.home / "exports" / "mine.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"user_id": [USERS[0]]}), path)
    (left,) = shop.erase("user", USERS[0]).left
    assert (left.store, left.found) == ("exports", {"exports/mine.parquet": 1})
