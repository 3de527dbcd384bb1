"""CUBE's functions against loops over impressions and behaviours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from models.ctr import cube
from models.ctr.cube import (
    Content,
    Summary,
    last_places,
    nearest,
    pool,
    read,
    similarities,
    similarity_weights,
    summary,
)
from moonlake.arrays import Bools, Float16s, Int64s

B, L, D, N = 8, 6, 4, 20


class Batch(NamedTuple):
    """The arguments of `read`."""

    vectors: Float16s
    target_rows: Int64s
    query_rows: Int64s
    behavior_rows: Int64s
    searched: Bools


@pytest.fixture
def batch() -> Batch:
    """Unit vectors with some of every kind missing; one impression has no behaviour at all, one no target."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N, D))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    targets, queries = rng.integers(0, N, B), rng.integers(0, N, B)
    targets[5], queries[[0, 3]] = -1, -1
    behaviors = np.where(rng.random((B, L)) < 0.7, rng.integers(0, N, (B, L)), -1)
    behaviors[6] = -1
    return Batch(vectors.astype(np.float16), targets, queries, behaviors, rng.random((B, L)) < 0.4)


@pytest.fixture
def content(batch: Batch) -> Content:
    return read(*batch)


def cosine(batch: Batch, b: int, row: int) -> float | None:
    """The cosine of an impression's target and a row of the vectors; None where either is not there."""
    if batch.target_rows[b] < 0 or row < 0:
        return None
    first, second = (batch.vectors[one].astype(np.float64) for one in (batch.target_rows[b], row))
    return float(first @ second)


def test_similarities_are_cosines_where_both_sides_are_known(batch: Batch, content: Content) -> None:
    for b in range(B):
        expected = cosine(batch, b, int(batch.query_rows[b]))
        assert bool(content.pair_known[b]) == (expected is not None)
        assert content.target_query[b] == pytest.approx(expected or 0.0, abs=1e-6)
        for k in range(L):
            expected = cosine(batch, b, int(batch.behavior_rows[b, k]))
            assert bool(content.cosines_known[b, k]) == (expected is not None)
            assert content.cosines[b, k] == pytest.approx(expected or 0.0, abs=1e-6)


def check_summary(found: Summary, batch: Batch, searches: bool) -> None:
    """Hold the summaries of one kind of behaviours against a loop."""
    for b in range(B):
        own = [int(row) for row in batch.behavior_rows[b][batch.searched[b] == searches] if row >= 0]
        cosines = [value for row in own if (value := cosine(batch, b, row)) is not None]
        assert found.used[b] == len(own)
        assert found.largest[b] == pytest.approx(max(cosines, default=0.0), abs=1e-6)
        assert found.mean[b] == pytest.approx(sum(cosines) / max(1, len(cosines)), abs=1e-6)
        counts = np.histogram(np.clip(cosines, -1, 1), cube.HISTOGRAM_BINS, (-1, 1))[0]
        np.testing.assert_allclose(found.histogram[b], counts / max(1, len(cosines)), atol=1e-6)


@pytest.mark.parametrize("keep", [0, 2, L, L + 1])
def test_items_and_searches_are_summed_up_apart_and_over_all_behaviors(batch: Batch, keep: int) -> None:
    found = read(*batch, keep=keep)
    check_summary(found.items, batch, searches=False)
    check_summary(found.searches, batch, searches=True)


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_a_search_keeps_the_most_similar_behaviors_in_the_order_of_time(
    batch: Batch, content: Content, keep: int
) -> None:
    found = read(*batch, keep=keep)
    assert found.kept is not None
    for b in range(B):
        values = [cosine(batch, b, int(row)) for row in batch.behavior_rows[b]]
        order = sorted(range(L), key=lambda k: (1, -k) if (value := values[k]) is None else (0, -value))
        if batch.target_rows[b] >= 0:
            assert found.kept[b].tolist() == sorted(order[:keep])
        for place, k in enumerate(found.kept[b].tolist()):
            assert found.searched[b, place] == batch.searched[b, k]
            assert found.behaviors_known[b, place] == (batch.behavior_rows[b, k] >= 0)
            torch.testing.assert_close(found.cosines[b, place], content.cosines[b, k])
            if batch.behavior_rows[b, k] >= 0:
                torch.testing.assert_close(found.behaviors[b, place], content.behaviors[b, k])


def test_a_long_sequence_is_compared_part_by_part(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = similarities(batch.vectors, batch.target_rows, batch.behavior_rows)
    monkeypatch.setattr(cube, "VECTORS_AT_ONCE", 2 * L)
    torch.testing.assert_close(similarities(batch.vectors, batch.target_rows, batch.behavior_rows), whole)


def test_behaviors_without_a_vector_are_kept_last_and_the_latest_of_them_first() -> None:
    known = torch.tensor([[True, False, True, False, False]])
    kept = [nearest(torch.tensor([[-1.0, 0.0, 0.5, 0.0, 0.0]]), known, count)[0].tolist() for count in (1, 2, 3, 9)]
    assert kept == [[2], [0, 2], [0, 2, 4], [0, 1, 2, 3, 4]]


def test_pools_are_sums_over_known_behaviors(content: Content) -> None:
    values = torch.randn(B, L, 3, generator=torch.Generator().manual_seed(1))
    pooled = pool(similarity_weights(content.cosines, content.cosines_known, 0.5), values)
    for b in range(B):
        own = [k for k in range(L) if content.cosines_known[b, k]]
        raw = np.exp(content.cosines[b, own].numpy().astype(np.float64) / 0.5)
        expected = (raw / raw.sum()) @ values[b, own].numpy() if own else np.zeros(3)
        np.testing.assert_allclose(pooled[b], expected, atol=1e-5)


def test_a_low_temperature_looks_at_the_nearest_behavior_alone() -> None:
    cosines = torch.tensor([[0.2, 0.9, 0.1, 1.0]])
    weights = similarity_weights(cosines, torch.tensor([[True, True, True, False]]), 1e-3)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_cosines_on_and_past_the_edges_fall_into_the_outer_bins() -> None:
    cosines = torch.tensor([[-1.0004, -1.0, 1.0, 1.0004]])
    shares = summary(cosines, torch.ones(1, 4, dtype=torch.bool), torch.ones(1, dtype=torch.bool), 4).histogram
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.0, 0.0, 0.5]]))


def test_no_behaviors_at_all_is_a_shape_like_any_other(batch: Batch) -> None:
    none = read(*batch[:3], np.zeros((B, 0), np.int64), np.zeros((B, 0), bool))
    assert none.cosines.shape == (B, 0)
    assert none.items.histogram.shape == (B, cube.HISTOGRAM_BINS)
    assert not any(one.any() for one in (*none.items, *none.searches))


def test_columns_hold_nan_where_nothing_can_be_compared_and_count_what_is_missing(
    batch: Batch, content: Content
) -> None:
    there = np.ones((B, L), bool)
    there[6] = False
    columns = cube.features(content, there & ~batch.searched, there & batch.searched)
    assert np.isnan(columns["target_query_similarity"]).tolist() == [b in (0, 3, 5) for b in range(B)]
    for kind, plural, own in (("behavior", "behaviors", ~batch.searched), ("search", "searches", batch.searched)):
        used = ((batch.behavior_rows >= 0) & own).sum(1)
        assert columns[f"{plural}_used"].tolist() == used.tolist()
        assert columns[f"{plural}_missing"].tolist() == ((there & own).sum(1) - used).tolist()
        nothing = (used == 0) | (batch.target_rows < 0)
        for name in ("max", "mean"):
            assert np.isnan(columns[f"{kind}_similarity_{name}"]).tolist() == nothing.tolist()
        assert columns[f"{kind}_similarity_histogram"].sum(1) == pytest.approx((~nothing).astype(float))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_last_places_of_lists_are_those_of_a_loop(length: int) -> None:
    lists = [[], [0, 1, 2], [3], [4, 5]]
    offsets, chosen = np.array([0, 0, 3, 4, 6]), np.array([3, 1, 1, 0, 2])
    expected = [([99] * length + lists[one])[-length:] for one in chosen]
    assert last_places(offsets, chosen, length, empty=99).tolist() == expected
