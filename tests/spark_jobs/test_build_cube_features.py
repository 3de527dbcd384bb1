"""Similarities by window and space: against a loop, point in time, idempotent, and equal to what training sees."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from models.ctr import cube
from models.ctr.features import FeatureEncoder, column_reader
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import BEHAVIOR_SEQUENCES, EMBEDDINGS, IMPRESSIONS, TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from spark_jobs.build_cube_features import OF_IMPRESSION, OF_SEQUENCE, run, similarity_rows

DAY0 = datetime(2026, 1, 30, tzinfo=UTC)  # the window crosses a month
USERS, CONTENTS, DIMENSION, LENGTH = 6, 30, 8, 4
IDS = [stable_hash(f"content {number}") for number in range(CONTENTS)]
WITHOUT_VECTOR = {IDS[0], IDS[1]}


def write(lake: Lake, name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Write rows into a table past its writer; columns that a row does not name are null, `created_at` is DAY0."""
    complete = [{column: row.get(column) for column in TABLES[name].names} | {"created_at": DAY0} for row in rows]
    table = pa.Table.from_pylist(complete, schema=arrow_schema(TABLES[name]))
    write_deltalake(lake.path(name), table, mode="append")
    return table


def new_space(lake: Lake, name: str, seed: int) -> str:
    definition = spaces.SpaceDefinition(
        weights=name, tokenizer="", preprocessing="", prompt="", content_fields=("title",), pooling="mean",
        normalisation="l2", storage_type="float16", dimension=DIMENSION,
    )  # fmt: skip
    facts: dict[str, Any] = {"artifact": "none", "trained_until": None, "metrics": {}, "written_at": DAY0}
    space_id = spaces.register(lake, definition, name=name, **facts).space_id
    vectors = np.random.default_rng(seed).normal(size=(CONTENTS, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    rows = [
        {"content_id": one, "space_id": space_id, "vector": vector.tolist(), "event_timestamp": TIMELESS}
        for one, vector in zip(IDS, vectors, strict=True) if one not in WITHOUT_VECTOR
    ]  # fmt: skip
    write(lake, EMBEDDINGS.name, rows)
    return space_id


@pytest.fixture
def filled(lake: Lake) -> Lake:
    """Two spaces, sixty impressions over four days, and behaviours before, at and after each of them."""
    rng = np.random.default_rng(3)
    new_space(lake, "first", 1)
    new_space(lake, "second", 2)
    moments = [DAY0 + timedelta(hours=int(hour)) for hour in np.sort(rng.integers(0, 96, 60))]
    write(lake, IMPRESSIONS.name, [
        {
            "impression_id": f"i{n}", "request_id": "r", "user_id": f"u{rng.integers(0, USERS + 1)}", "product_id": "p",
            "query_id": "q", "position": 1, "clicked": False, "label_time": at, "event_timestamp": at, "source": "test",
            "content_id": IDS[rng.integers(0, CONTENTS)] if n % 7 else None,
            "query_content_id": IDS[rng.integers(0, CONTENTS)] if n % 5 else None,
        }
        for n, at in enumerate(moments)
    ])  # fmt: skip
    sequences = []
    for user in range(USERS):  # the last user of the impressions has no behaviour at all
        hours = np.sort(rng.integers(-24, 96, 12))
        actions = [DAY0 + timedelta(hours=int(hour)) for hour in hours]
        for month in sorted({f"{at:%Y-%m}" for at in actions}):
            own = [at for at in actions if f"{at:%Y-%m}" == month]
            of_product = [rng.random() < 0.8 for _ in own]
            sequences.append({
                "user_id": f"u{user}", "month": month, "times_us": [int(at.timestamp()) * 1_000_000 for at in own],
                "actions": ["click" if known else "search" for known in of_product],
                "product_ids": ["p" if known else None for known in of_product],
                "content_ids": [IDS[rng.integers(0, CONTENTS)] if known else None for known in of_product],
                "query_content_ids": [IDS[rng.integers(0, CONTENTS)] for _ in own], "event_timestamp": own[-1],
            })  # fmt: skip
    write(lake, BEHAVIOR_SEQUENCES.name, sequences)
    return lake


def expected_row(
    impression: dict[str, Any], log: list[tuple[Any, ...]], vectors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The features of one impression, one behaviour at a time."""
    before = sorted((one for one in log if one[0] == impression["user_id"] and one[1] < impression["event_timestamp"]),
                    key=lambda one: one[1])[-LENGTH:]  # fmt: skip
    target, query = (vectors.get(impression[name]) for name in ("content_id", "query_content_id"))
    row: dict[str, Any] = {
        "target_query_similarity": None if target is None or query is None else float(target @ query)
    }
    contents = {
        ("behavior", "behaviors"): [content for _, _, product, content, _ in before if product],
        ("search", "searches"): [asked for _, _, product, _, asked in before if not product],
    }
    for (name, plural), own in contents.items():
        known = [vectors[content] for content in own if content in vectors]
        cosines = [] if target is None else [float(target @ one) for one in known]
        counts = np.histogram(np.clip(cosines, -1, 1), cube.HISTOGRAM_BINS, (-1, 1))[0]
        row |= {
            f"{name}_similarity_max": max(cosines, default=None),
            f"{name}_similarity_mean": sum(cosines) / len(cosines) if cosines else None,
            f"{name}_similarity_histogram": (counts / max(len(cosines), 1)).tolist(),
            f"{plural}_used": len(known),
            f"{plural}_missing": len(own) - len(known),
        }
    return row


def check(found: list[dict[str, Any]], lake: Lake, snapshot: Snapshot) -> None:
    """Hold every row against `expected_row`."""
    known = [one for one in IDS if one not in WITHOUT_VECTOR]
    rows = snapshot.rows_of(pa.array(known))
    vectors = dict(zip(known, snapshot.vectors[rows].astype(np.float32), strict=True))
    log = [
        (row["user_id"], datetime.fromtimestamp(time / 1e6, UTC), *contents)
        for row in lake.read("behavior_sequences").to_pylist()
        for time, *contents in zip(
            row["times_us"], row["product_ids"], row["content_ids"], row["query_content_ids"], strict=True
        )
    ]
    impressions = {row["impression_id"]: row for row in lake.read("impressions").to_pylist()}
    for row in found:
        for name, value in expected_row(impressions[row["impression_id"]], log, vectors).items():
            assert row[name] == (None if value is None else pytest.approx(value, abs=1e-5)), (
                row["impression_id"],
                name,
            )


def test_similarities_are_those_of_a_loop_over_impressions(filled: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(filled, releases.find(filled, "first").space_id, tmp_path / "snapshot")
    impressions = filled.read("impressions", OF_IMPRESSION)
    features = similarity_rows(impressions, filled.read("behavior_sequences", OF_SEQUENCE), snapshot, LENGTH)
    assert features["impression_id"].to_pylist() == impressions["impression_id"].to_pylist()
    found = features.to_pylist()
    check(found, filled, snapshot)
    assert sum(row["behaviors_missing"] for row in found) > 0
    assert max(row["behaviors_used"] for row in found) == LENGTH
    assert sum(row["searches_used"] for row in found) > 0
    assert sum(row["searches_missing"] for row in found) > 0


def test_similarities_are_those_that_training_sees(filled: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(filled, releases.find(filled, "first").space_id, tmp_path / "snapshot")
    impressions = filled.read("impressions").slice(20, 20)
    features = similarity_rows(
        impressions.select(OF_IMPRESSION), filled.read("behavior_sequences", OF_SEQUENCE), snapshot, LENGTH
    ).to_pylist()
    log = filled.read("behavior_sequences").sort_by("month").to_pylist()
    lists = ("times_us", "product_ids", "content_ids", "query_content_ids", "actions")
    rows = []
    for impression in impressions.to_pylist():
        at = int(impression["event_timestamp"].timestamp()) * 1_000_000
        own = [
            one
            for row in log if row["user_id"] == impression["user_id"]
            for one in zip(*(row[name] for name in lists), strict=True)
            if one[0] < at
        ][-LENGTH:]  # fmt: skip
        values = zip(*own, strict=True) if own else [()] * len(lists)
        rows.append(impression | {f"behavior_{name}": list(one) for name, one in zip(lists, values, strict=True)})
    texts = [f"behavior_{name}" for name in lists[1:]]
    types = [(name, pa.list_(pa.string())) for name in texts]
    schema = pa.schema([*impressions.schema, *types, ("behavior_times_us", pa.list_(pa.int64()))])
    read = column_reader(pa.Table.from_pylist(rows, schema=schema).select)
    encoder = FeatureEncoder.fit(read, np.ones(len(rows), bool), ("product_id",), (), min_count=1)
    content = encoder.encode(read, snapshot).batch(np.arange(len(rows)), LENGTH, snapshot.vectors).content
    assert content is not None
    for n, row in enumerate(features):
        assert row["target_query_similarity"] == (
            pytest.approx(float(content.target_query[n]), abs=1e-5) if content.pair_known[n] else None
        )
        np.testing.assert_allclose(row["behavior_similarity_histogram"], content.items.histogram[n], atol=1e-5)
        np.testing.assert_allclose(row["search_similarity_histogram"], content.searches.histogram[n], atol=1e-5)


def test_no_impressions_are_no_rows(filled: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(filled, releases.find(filled, "first").space_id, tmp_path / "snapshot")
    none = filled.read("impressions", OF_IMPRESSION).slice(0, 0)
    assert len(similarity_rows(none, filled.read("behavior_sequences", OF_SEQUENCE), snapshot, LENGTH)) == 0


@pytest.mark.spark
def test_windows_are_idempotent_and_spaces_stand_side_by_side(
    spark: Any, settings: Settings, filled: Lake, written_at: datetime
) -> None:
    middle, end = DAY0 + timedelta(days=2), DAY0 + timedelta(days=4)
    ids = {name: releases.find(filled, name).space_id for name in ("first", "second")}

    def build(space: str, start: datetime, end: datetime) -> Any:
        return run(SparkLake(spark, settings), space, start=start, end=end, length=LENGTH, written_at=written_at)

    assert build("first", DAY0, end).written == 60
    half = build("second", DAY0, middle)
    assert 0 < half.written < 60
    assert half.unchanged == half.written  # the first space's rows of the same half
    version = filled.version("cube_features")
    again = build(ids["first"], DAY0, middle)
    assert (again.written, again.unchanged) == (0, 2 * half.written)
    assert filled.version("cube_features") == version

    rows = filled.read("cube_features").to_pylist()
    for name, space_id in ids.items():
        own = [row for row in rows if row["space_id"] == space_id]
        assert len(own) == (60 if name == "first" else half.written)
        check(own, filled, Snapshot.open(settings.snapshots / f"cube-{space_id}"))
