"""Segments of impressions by facts as of the impression, and figures on each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.evaluation.click_metrics import click_metrics, gain_over_runs
from models.evaluation.click_segments import (
    NOT_TRAINED_ON,
    SMALLEST_SEGMENT,
    UNKNOWN,
    ClickFacts,
    gains_by_segment,
    metrics_by_segment,
    read_facts,
    segments_of,
)
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING = T0 + timedelta(days=10), T0 + timedelta(days=20)


def day(number: float) -> datetime:
    return T0 + timedelta(days=number)


def words(count: int, *names: str) -> np.ndarray:
    return np.array([names[at % len(names)] for at in range(count)])


@pytest.fixture
def stocked(settings: Settings, write_rows: Callable[..., None]) -> Lake:
    """chair moves from category old to new on day 25 and changes hands; lamp is new; ghost is not in the lake."""

    def product(name: str, at: float, listed: float, **stated: Any) -> dict[str, Any]:
        return {"product_id": name, "listed_at": day(listed), "event_timestamp": day(at), **stated}

    write_rows(settings, "products", [
        product("chair", 0, 0, category="old", merchant_id="m1"),
        product("chair", 25, 0, category="new", merchant_id="m2"),
        product("lamp", 24.5, 24.5, merchant_id="m3"),
    ])  # fmt: skip
    tiers = [("m1", 3, 0), ("m1", 2, 23), ("m1", 1, 30), ("m2", 1, 0)]
    write_rows(settings, "merchants", [
        {"merchant_id": name, "tier": tier, "event_timestamp": day(at)} for name, tier, at in tiers
    ])  # fmt: skip
    shown = [("u1", "chair")] * 6 + [(f"u{at}", "lamp" if at % 2 else "desk") for at in range(2, 7)]
    write_rows(settings, "impressions", [
        {"impression_id": f"t{at}", "user_id": user, "product_id": name, "event_timestamp": day(10 + at * 0.5)}
        for at, (user, name) in enumerate(shown)
    ] + [{"impression_id": "late", "user_id": "late", "product_id": "chair", "event_timestamp": day(20)}])  # fmt: skip
    return Lake(settings)


def scored(*rows: tuple[str, str, float]) -> pa.Table:
    users, products, days = zip(*rows, strict=True)
    times = pa.array([day(one) for one in days], pa.timestamp("us", "UTC"))
    return pa.table({"user_id": users, "product_id": products, "event_timestamp": times})


def test_facts_are_as_of_the_impression_and_traffic_is_of_the_training_window(stocked: Lake) -> None:
    rows = scored(
        ("u1", "chair", 22), ("u2", "chair", 24), ("late", "chair", 25), ("u1", "lamp", 25), ("u3", "ghost", 25)
    )
    facts = read_facts(stocked, rows, TRAINING)
    np.testing.assert_allclose(facts.age_days, [22, 24, 25, 0.5, np.nan])
    assert facts.category.tolist() == ["old", "old", "new", UNKNOWN, UNKNOWN]
    assert facts.merchant_tier.tolist() == ["tier 3", "tier 2", "tier 1", UNKNOWN, UNKNOWN]
    assert facts.user.tolist() == ["head", "tail", NOT_TRAINED_ON, "head", "tail"]  # u1 six times, the others once
    assert facts.product.tolist() == ["head"] * 3 + ["tail", NOT_TRAINED_ON]  # chair six times, lamp twice
    before_it_was_there = read_facts(stocked, scored(("u1", "lamp", 24)), TRAINING)
    assert np.isnan(before_it_was_there.age_days).all()


def test_an_empty_lake_knows_nothing(lake: Lake) -> None:
    facts = read_facts(lake, scored(("u", "p", 22)), TRAINING)
    assert [part for _, part, _ in segments_of(facts)] == [UNKNOWN] * 3 + [NOT_TRAINED_ON] * 2


def test_every_impression_is_in_one_part_of_each_division() -> None:
    ages = np.array([0, 0.99, 1, 6.9, 7, 27.9, 28, 400, np.nan])
    count = len(ages)
    facts = ClickFacts(ages, words(count, "a", "b", "a"), words(count, "tier 1"), words(count, "head", "tail"),
                       words(count, "tail"))  # fmt: skip
    found = segments_of(facts)
    by_division: dict[str, np.ndarray] = {}
    for one in found:
        by_division[one.division] = by_division.get(one.division, np.zeros(count, int)) + one.chosen
    assert list(by_division) == ["age", "category", "merchant tier", "users", "products"]
    assert all((times == 1).all() for times in by_division.values())
    parts = {one.part: np.flatnonzero(one.chosen).tolist() for one in found if one.division == "age"}
    assert parts == {
        "listed under 1 day before": [0, 1], "listed 1 to 7 days before": [2, 3], "listed 7 to 28 days before": [4, 5],
        "listed 28 days before or more": [6, 7], UNKNOWN: [8],
    }  # fmt: skip
    assert next(iter(parts)) == "listed under 1 day before"
    assert [one.part for one in found if one.division == "category"] == ["a", "b"]  # largest first


def test_figures_of_a_segment_are_those_of_its_rows_alone_and_small_ones_have_none() -> None:
    rng = np.random.default_rng(0)
    count, few = 900, SMALLEST_SEGMENT - 1
    users, clicked = rng.integers(0, 60, count), rng.random(count) < 0.3
    category = np.array(["few"] * few + ["silent"] * 150 + ["large"] * (count - few - 150))
    clicked[category == "silent"] = False
    same = words(count, "x")
    segments = segments_of(ClickFacts(rng.uniform(30, 90, count), category, same, same, same))
    runs, base = clicked + rng.normal(size=(2, count)), rng.normal(size=(2, count))
    probabilities = 1 / (1 + np.exp(-runs[0]))
    own = category == "large"
    measured = {one.part: metrics for one, metrics in metrics_by_segment(segments, clicked, probabilities, users)}
    assert set(measured) == {"listed 28 days before or more", "large", "x"}
    assert measured["large"] == click_metrics(clicked[own], probabilities[own], users[own])
    gains = {one.part: one for one in gains_by_segment(segments, clicked, runs, base, users, metric="gauc")}
    assert set(gains) == set(measured)
    expected = gain_over_runs(clicked[own], runs[:, own], base[:, own], users[own], metric="gauc")
    assert gains["large"].gain == expected
    assert gains["large"].impressions == own.sum()
    assert gains["large"].gain.low > 0
