"""Figures and gates of an embedding space, on arrays made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from moonlake.embeddings.checks import Check, record
from moonlake.embeddings.content_index import ContentIndex, words_of
from moonlake.embeddings.gates import Gate, GateLimits, drift_gate, not_applicable, overlap_gate, vector_gates
from moonlake.embeddings.spaces import Space, SpaceDefinition
from moonlake.embeddings.vector_stats import (
    ContentsNow,
    DistinctCount,
    SpaceFigures,
    contents_now,
    measure,
    neighbour_overlap,
    recent_ids,
    recent_since,
    sample_vectors,
)
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, TABLES, TIMELESS

DAY = datetime(2026, 3, 1, tzinfo=UTC)
D = 8
IDS = sorted(stable_hash(str(number)) for number in range(400))
LIMITS = GateLimits(overlap_contents=300, overlap_fewest_contents=200)


def unit(count: int, seed: int = 0, mean: float = 0.0) -> Any:
    """float32 [count, D], rounded unit rows."""
    rows = np.random.default_rng(seed).normal(size=(count, D)) + mean
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def known(ids: Sequence[str], products: int) -> ContentsNow:
    high, low, _ = words_of(pa.array(ids, pa.string()))
    return ContentsNow(ContentIndex(high, low), np.arange(len(ids)) < products)


def batches(
    ids: Sequence[str | None], vectors: Sequence[Any], times: Sequence[datetime] | None = None, rows: int = 64
) -> Any:
    columns = {
        "content_id": pa.array(ids, pa.string()),
        "vector": pa.array([None if one is None else list(one) for one in vectors], pa.list_(pa.float32())),
        "created_at": pa.array(times or [DAY] * len(ids), pa.timestamp("us", tz="UTC")),
    }
    return pa.table(columns).to_batches(max_chunksize=rows)


def figures(vectors: Sequence[Any], ids: Sequence[str | None] = IDS) -> SpaceFigures:
    return measure(batches(ids, vectors), known(IDS, 200), D, None)


def failed(found: SpaceFigures) -> set[str]:
    return {gate.name for gate in [*vector_gates(found, LIMITS), drift_gate(found, LIMITS)] if gate.passed is False}


def test_a_good_space_passes_every_gate_and_its_figures_are_those_of_a_plain_sum() -> None:
    vectors = unit(400)
    found = figures(vectors)
    assert (found.rows, found.contents, found.covered) == (400, 400, 400)
    assert found.norm_error == pytest.approx(np.abs(np.linalg.norm(vectors.astype(float), axis=1) - 1).max())
    assert found.duplicate_share == 0
    assert failed(found) == set()


HOSTILE: dict[str, tuple[set[str], Any]] = {
    "null": ({"shape"}, None),
    "short": ({"shape"}, [1.0]),
    "long": ({"shape"}, [0.0] * D + [1.0]),
    "empty": ({"shape"}, []),
    "null inside": ({"finite"}, [1.0, None, *[0.0] * (D - 2)]),
    "NaN": ({"finite"}, [float("nan")] * D),
    "infinite": ({"finite"}, [float("inf"), *[0.0] * (D - 1)]),
    "zero": ({"zero"}, [0.0] * D),
    "minus zero": ({"zero"}, [-0.0] * D),
    "huge": ({"norm"}, [3e38] * D),
    "not of unit norm": ({"norm"}, [1.01, *[0.0] * (D - 1)]),
}


@pytest.mark.parametrize(("gates", "vector"), HOSTILE.values(), ids=HOSTILE)
def test_one_spoiled_vector_among_many_fails_its_gate_and_no_other(gates: set[str], vector: Any) -> None:
    vectors: list[Any] = list(unit(400))
    vectors[77] = vector
    assert failed(figures(vectors)) == gates


def test_a_space_in_which_nothing_can_be_used_is_measured_and_fails() -> None:
    assert failed(figures([None] * 400)) == {"shape", "norm", "duplicates"}
    nothing = measure([], known(IDS, 200), D, None)
    assert failed(nothing) == {"coverage", "norm", "duplicates"}
    assert failed(measure([], known([], 0), D, None)) == {"coverage", "norm", "duplicates"}


def test_coverage_is_of_contents_and_a_content_that_stands_twice_covers_one() -> None:
    half = figures(unit(200), IDS[:200])
    assert half.covered == 200
    assert failed(half) == {"coverage"}
    for batch_rows in (64, 512):  # the second row may stand in the same batch or in a later one
        rows = batches([*IDS[:399], IDS[0]], unit(400), rows=batch_rows)
        found = measure(rows, known(IDS, 200), D, None)
        assert (found.covered, found.strange_ids) == (399, 1)
    malformed = figures(unit(402), [*IDS, "no hash", None])
    assert malformed.strange_ids == 2
    assert failed(malformed) == {"contents_known"}


def test_vectors_of_contents_that_are_gone_cover_nothing() -> None:
    found = figures(unit(400), [*IDS[:-1], stable_hash("gone")])
    assert found.covered == 399
    assert failed(found) == {"coverage"}


def test_the_share_of_duplicates_is_what_could_go_without_a_vector_being_lost() -> None:
    vectors = unit(400)
    vectors[:81] = vectors[0]
    found = figures(vectors)
    assert found.duplicate_share == pytest.approx(80 / 400)
    assert failed(found) == {"duplicates"}


def test_distinct_vectors_are_counted_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    few = DistinctCount(kept=1_000)
    for _ in range(20):
        few.add(rng.normal(size=(2_000, D)).astype(np.float32))
        few.add(np.ones((2_000, D), np.float32))
    assert len(few._hashes) <= 1_000
    assert few.count == pytest.approx(40_001, rel=0.15)  # five standard errors of a sample of 1,000


def drifted(recent: Any, products: int = 400) -> SpaceFigures:
    times = [DAY] * 250 + [DAY + timedelta(days=2)] * 150
    vectors: Any = np.concatenate([unit(250, 1, mean=0.3), recent])
    return measure(batches(IDS, vectors, times), known(IDS, products), D, DAY + timedelta(days=1))


def test_drift_compares_the_products_written_last_with_those_before() -> None:
    same = drifted(unit(150, 2, mean=0.3))
    assert (same.recent, same.earlier) == (150, 250)
    assert failed(same) == set()
    collapsed = drifted(np.repeat(-unit(1, 3, mean=3.0), 150, axis=0))
    vectors = unit(250, 1, mean=0.3)
    expected = np.linalg.norm(-unit(1, 3, mean=3.0)[0].astype(float) - vectors.astype(float).mean(0))
    assert collapsed.drift == pytest.approx(expected)
    assert "drift" in failed(collapsed)


def test_drift_is_of_products_and_needs_some_of_both_kinds() -> None:
    collapsed = np.repeat(-unit(1, 3, mean=3.0), 150, axis=0)
    queries_last = drift_gate(drifted(collapsed, products=250), LIMITS)
    assert queries_last.passed is None
    assert "0 products in the last 24 hours of writing, 250 before" in queries_last.detail
    assert drift_gate(figures(unit(400)), LIMITS).passed is None


def test_neighbours_are_all_in_common_after_a_rotation_and_none_after_a_shuffle() -> None:
    vectors = unit(400)
    turned = vectors @ np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0].astype(np.float32)
    assert neighbour_overlap(vectors, turned, 10) == pytest.approx(1, abs=0.01)
    shuffled = turned[np.random.default_rng(2).permutation(400)]
    assert abs(neighbour_overlap(vectors, shuffled, 10)) < 0.02
    assert neighbour_overlap(vectors, unit(400, 5)[:, :4], 10) == pytest.approx(0, abs=0.02)


def test_neighbours_that_are_equally_near_are_in_common_as_chance_has_it() -> None:
    one = np.repeat(unit(1), 400, axis=0)
    barely = one + np.random.default_rng(3).normal(scale=1e-8, size=one.shape).astype(np.float32)
    for same in (one, barely):
        assert neighbour_overlap(unit(400, 5), same, 10) == pytest.approx(0, abs=1e-9)
        assert neighbour_overlap(same, same, 10) == pytest.approx(0, abs=1e-9)
    twice = np.repeat(unit(200), 2, axis=0)  # the nearest is the twin, the second either of another pair
    assert neighbour_overlap(twice, twice, 1) == pytest.approx(1)
    assert neighbour_overlap(twice, twice, 2) == pytest.approx((0.5 * (1 + 0.5) - 2 / 399) / (1 - 2 / 399))


DEFINITION = SpaceDefinition("w", "t", "p", "i", ("title",), "mean", "l2", "float16", D)
SPACES = [Space(name * 32, name, "candidate", DEFINITION, "/none", None, 1.0, {}, DAY) for name in ("a", "b")]


def put(lake: Lake, table: str, rows: list[dict[str, Any]]) -> None:
    whole = [{column.name: None for column in TABLES[table]} | {"source": "t", "created_at": DAY} | row for row in rows]
    whole = [{name: row[name] for name in TABLES[table].names} for row in whole]
    write_deltalake(lake.path(table), pa.Table.from_pylist(whole, arrow_schema(TABLES[table])), mode="append")


def embed(lake: Lake, space: Space, ids: Sequence[str], vectors: Any, at: datetime = DAY) -> None:
    facts = {"space_id": space.space_id, "event_timestamp": TIMELESS, "created_at": at}
    rows = [facts | {"content_id": one, "vector": vector} for one, vector in zip(ids, vectors, strict=True)]
    write_deltalake(lake.path("embeddings"), pa.Table.from_pylist(rows, arrow_schema(EMBEDDINGS)), mode="append")


def test_the_contents_of_now_are_those_of_products_and_queries_less_the_refused(lake: Lake) -> None:
    product = {"product_id": "p", "attributes": [], "image_ids": [], "listed_at": DAY, "deleted": False}
    put(lake, "products", [product | {"content_id": one, "event_timestamp": DAY} for one in (IDS[0], IDS[1], IDS[1])])
    query = {"modality": "text", "image_ids": [], "event_timestamp": DAY}
    put(lake, "queries", [query | {"query_id": one, "content_id": one} for one in IDS[1:5]])
    refused = {"table": "embeddings", "rule": "content_unreadable"}
    values = [(SPACES[0], IDS[2]), (SPACES[1], IDS[3])]
    put(
        lake,
        "rejects",
        [
            refused | {"reject_id": one, "value": f'{{"content_id": "{one}", "space_id": "{space.space_id}"}}'}
            for space, one in values
        ],
    )
    found = contents_now(lake, SPACES[0].space_id)
    assert found.ids(slice(None)) == [IDS[0], IDS[1], IDS[3], IDS[4]]
    assert found.of_product.tolist() == [True, True, False, False]
    assert found.known([IDS[2], IDS[4]]) == [IDS[4]]


def test_a_sample_begins_at_an_id_and_stays_whole_at_the_end() -> None:
    contents = known(IDS, 0)
    assert contents.sample(3, IDS[10]) == IDS[10:13]
    assert contents.sample(3, "f" * 32) == IDS[-3:]
    assert contents.sample(999, IDS[5]) == IDS


def test_sampled_vectors_are_of_one_space_and_zero_where_they_cannot_be_used(lake: Lake) -> None:
    vectors: list[Any] = [*unit(3), [1.0], [], [float("nan")] * D]
    embed(lake, SPACES[0], IDS[:6], vectors)
    embed(lake, SPACES[1], IDS[:7], unit(7, 9))
    found, there = sample_vectors(lake, SPACES[0], [IDS[6], *reversed(IDS[:6])])
    assert there.tolist() == [False, *[True] * 6]
    np.testing.assert_array_equal(found[-3:], unit(3)[::-1])
    assert not found[:4].any()


def test_recent_contents_are_those_of_the_last_hours_of_writing(lake: Lake) -> None:
    assert recent_since(lake, SPACES[0], 24) is None
    embed(lake, SPACES[0], IDS[:5], unit(5))
    assert recent_since(lake, SPACES[0], 24) is None  # a first backfill
    embed(lake, SPACES[1], IDS[:5], unit(5), DAY + timedelta(days=9))
    embed(lake, SPACES[0], IDS[5:8], unit(3), DAY + timedelta(days=3))
    since = recent_since(lake, SPACES[0], 24)
    assert since == DAY + timedelta(days=2)
    assert set(recent_ids(lake, SPACES[0], 9, since)) == set(IDS[5:8])
    assert len(recent_ids(lake, SPACES[0], 2, since)) == 2


def test_overlap_is_with_the_live_space_on_contents_of_both(lake: Lake) -> None:
    first, second = SPACES
    contents = known(IDS, 0)
    assert overlap_gate(lake, first, None, contents, IDS[3], LIMITS).detail == "no space is live"
    assert overlap_gate(lake, first, first, contents, IDS[3], LIMITS).detail == "it is the live space"
    embed(lake, first, IDS, unit(400))
    embed(lake, second, IDS[:100], unit(100))
    few = overlap_gate(lake, second, first, contents, "0" * 32, LIMITS)
    assert few.passed is None
    assert "100 of 300 sampled contents have a vector in both spaces, 200 are needed" in few.detail
    embed(lake, second, IDS[100:], unit(400)[100:])
    whole = overlap_gate(lake, second, first, contents, "0" * 32, LIMITS)
    assert whole.passed is True
    assert whole.value == pytest.approx(1, abs=1e-3)


def test_a_gate_passes_within_its_limits_fails_without_a_value_and_says_so() -> None:
    assert Gate("g", 1.0, "d", minimum=1.0, maximum=1.0).passed is True
    assert Gate("g", 0.9, "d", minimum=1.0).passed is False
    assert Gate("g", 1.1, "d", maximum=1.0).passed is False
    assert Gate("g", None, "d").passed is False
    assert not_applicable("g", "why").passed is None
    assert str(Gate("g", 0.5, "d", minimum=1.0)) == "g: 0.5 (expected at least 1): d"
    assert str(Gate("g", None, "d", maximum=1.0)) == "g: not measured (expected at most 1): d"
    assert str(not_applicable("g", "why")) == "g: does not apply: why"


def test_a_check_is_kept_gate_by_gate(lake: Lake) -> None:
    gates = (Gate("norm", 0.5, "far", maximum=0.1), not_applicable("drift", "first"), Gate("coverage", 1, "all", 0.9))
    check = Check(SPACES[0], "ctr_ranking", stable_hash("model"), DAY, 3, gates)
    assert [gate.name for gate in check.failed] == ["norm"]
    record(lake, check, written_at=DAY)
    rows = {row["gate"]: row for row in lake.read("gate_results").to_pylist()}
    assert {name: row["passed"] for name, row in rows.items()} == {"norm": False, "drift": None, "coverage": True}
    assert (rows["norm"]["value"], rows["norm"]["maximum"], rows["norm"]["minimum"]) == (0.5, 0.1, None)
    assert {(row["check_id"], row["embeddings_version"]) for row in rows.values()} == {(check.check_id, 3)}
