from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from models.evaluation.purchase_trials import TRIALS_PER_QUERY, Trials
from models.evaluation.recall import SMALLEST_SEGMENT, evaluate_encoder, measure, places_of, recall_of, vectors_of
from moonlake.embeddings.contents import Content, content_of
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
START, END = T0 + timedelta(days=4), T0 + timedelta(days=9)


def made_up(query_rows: Sequence[int], positives: Sequence[int], pool: int, **segments: Sequence[str]) -> Trials:
    queries = [content_of(f"q{row}", []) for row in range(max(query_rows) + 1)]
    products = [f"p{row}" for row in range(pool)]
    parts = {name: np.array(names) for name, names in segments.items()}
    rows, right = np.array(query_rows), np.array(positives)
    contents = [content_of(name, []) for name in products]
    return Trials("text_search", START, END, queries, contents, products, rows, right, right * 0 - 1, parts, 0)


@pytest.fixture
def stocked(settings: Settings, write_rows: Callable[..., None]) -> Lake:
    """a and b were bought after the picture x1, c after x2."""

    def row(name: str) -> dict[str, Any]:
        return {"product_id": name, "title": name, "attributes": [], "image_ids": [f"i{name}"],
                "content_id": content_of(name, [f"i{name}"]).content_id, "event_timestamp": T0}  # fmt: skip

    def bought(number: int, name: str, query_id: str) -> dict[str, Any]:
        return {"behavior_id": f"b{number}", "action": "purchase", "product_id": name, "query_id": query_id,
                "event_timestamp": T0 + timedelta(days=5)}  # fmt: skip

    write_rows(settings, "products", [row("a"), row("b"), row("c")])
    pictures = [{"query_id": one, "modality": "image", "image_ids": [one],
                 "content_id": content_of(None, [one]).content_id} for one in ("x1", "x2")]  # fmt: skip
    write_rows(settings, "queries", pictures)
    write_rows(settings, "behaviors", [bought(1, "a", "x1"), bought(2, "b", "x1"), bought(3, "c", "x2")])
    return Lake(settings)


def represent(contents: Sequence[Content]) -> np.ndarray:
    """A made-up encoder: x1 sees a exactly and b half, x2 sees nothing of c."""
    known = {"a": [1, 0, 0], "b": [0.6, 0.8, 0], "c": [0, 1, 0]}
    queries = {"x1": [1, 0, 0], "x2": [0, 0, 1]}
    return np.array([known[one.text] if one.text else queries[one.image_ids[0]] for one in contents], np.float32)


def test_recall_is_what_a_hand_counts(stocked: Lake) -> None:
    recall = evaluate_encoder(stocked, represent, START, END, trained_until=None)
    # a is first for x1, b second; for x2 all three tie, so that c counts as third
    assert [rate.value for rate in recall.hit_rates] == [pytest.approx(1 / 3), 1.0, 1.0]
    # x1 has one of two among the first, x2 none; then two and one of ten
    assert [rate.value for rate in recall.precisions] == pytest.approx([0.5, 0.15, 0.03])
    assert recall.precision_limits == pytest.approx([1, 0.15, 0.03])
    assert (recall.purchases, recall.queries, recall.pool, recall.left_out, recall.seen) == (3, 2, 3, 0, False)
    assert recall.metrics()["image_search_hit_10"] == 1


def test_a_query_without_a_vector_finds_nothing(stocked: Lake) -> None:
    def blind(contents: Sequence[Content]) -> np.ndarray:
        return represent(contents) * np.array([[one.text is not None] for one in contents], np.float32)

    recall = evaluate_encoder(stocked, blind, START, END, trained_until=None)
    assert [rate.value for rate in recall.hit_rates] == [0, 0, 0]


def test_rows_that_the_encoder_saw_are_refused_unless_asked_for_by_name(stocked: Lake) -> None:
    with pytest.raises(InputError, match="ask for seen rows by name"):
        evaluate_encoder(stocked, represent, START, END, trained_until=START)
    assert evaluate_encoder(stocked, represent, START, END, trained_until=START, allow_seen=True).seen


def test_a_window_without_purchases_is_an_error(stocked: Lake) -> None:
    with pytest.raises(InputError, match="image_search: no purchase"):
        evaluate_encoder(stocked, represent, END, END + timedelta(days=2), trained_until=None)


def test_a_content_on_both_sides_is_represented_once_and_left_out_of_its_own_answer() -> None:
    pool = [content_of(name, []) for name in "abc"]
    rows = np.array([0, 1])
    trials = Trials("bought_next", START, END, pool[:2], pool, list("abc"), rows, rows + 1, rows, {}, 0)
    asked: list[str | None] = []

    def seen(contents: Sequence[Content]) -> np.ndarray:
        asked.extend(content.text for content in contents)
        return np.eye(3, dtype=np.float32)[[ord(content.text or "") - ord("a") for content in contents]]

    queries, vectors = vectors_of(trials, seen)
    assert asked == ["a", "b", "c"]
    np.testing.assert_array_equal(queries, vectors[:2])
    assert places_of(trials, queries, vectors).tolist() == [2, 2]  # the query itself is not counted, the tie is


def slow_precision(trials: Trials, places: np.ndarray, cutoff: int) -> float:
    """The mean over queries of the share of distinct products bought after it among the first `cutoff`."""
    shares = []
    for query in range(len(trials.queries)):
        of_query = {trials.positives[row]: places[row] for row in np.flatnonzero(trials.query_rows == query)}
        shares.append(sum(place <= cutoff for place in of_query.values()) / cutoff)
    return float(np.mean(shares))


def test_figures_agree_with_slow_twins_on_repeated_queries_and_products() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.arange(20), rng.integers(20, size=200), np.zeros(60, int)])
    trials = made_up(rows.tolist(), rng.integers(100, size=280).tolist(), 100)
    queries, pool = rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((100, 3)).astype(np.float32)
    recall, places = measure(trials, queries, pool), places_of(trials, queries, pool)
    assert [one.value for one in recall.precisions] == pytest.approx(
        [slow_precision(trials, places, cutoff) for cutoff in (1, 10, 50)]
    )
    by_query = [places[rows == query] <= 10 for query in range(20)]
    weight = np.array([min(len(hits), TRIALS_PER_QUERY) for hits in by_query])
    capped = sum(w * hits.mean() for w, hits in zip(weight, by_query, strict=True)) / weight.sum()
    assert recall.hit_rates[1].value == pytest.approx(capped)
    assert abs(capped - (places <= 10).mean()) > 0.001  # the frequent query would have weighed more


def test_a_segment_has_the_figures_of_its_trials_alone_unless_it_is_small() -> None:
    rng = np.random.default_rng(1)
    names = np.array(["x"] * 60 + ["y"] * 40 + ["few"] * (SMALLEST_SEGMENT - 1))
    count = len(names)
    trials = made_up(list(range(count)), [0] * count, 1, kind=names.tolist())
    places = rng.integers(1, 60, size=count)
    segments = recall_of(trials, places).segments
    assert [(one.division, one.part, one.purchases) for one in segments] == [("kind", "x", 60), ("kind", "y", 40)]
    for one in segments:
        inside = places[names == one.part]
        assert [rate.value for rate in one.hit_rates] == pytest.approx([(inside <= k).mean() for k in (1, 10, 50)])
        assert all(rate.low <= rate.value <= rate.high for rate in one.hit_rates)
