from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from models.evaluation.purchase_trials import Trials, live_products, read_trials
from models.evaluation.trial_segments import popularity
from moonlake.embeddings.contents import content_of
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
START, END = T0 + timedelta(days=4), T0 + timedelta(days=9)
Rows = dict[str, Any]


def product(name: str, image: str, day: float = 0, **stated: Any) -> Rows:
    return {
        "product_id": name, "title": name, "attributes": [], "image_ids": [image], "listed_at": T0, "deleted": False,
        "content_id": content_of(name, [image]).content_id, "event_timestamp": T0 + timedelta(days=day), **stated,
    }  # fmt: skip


def query(name: str, text: str | None, image: str | None, modality: str) -> Rows:
    images = [image] if image else []
    return {
        "query_id": name, "modality": modality, "text": text, "image_ids": images,
        "content_id": content_of(text, images).content_id, "event_timestamp": T0,
    }  # fmt: skip


def purchase(number: int, product_id: str, query_id: str | None, day: float, user: str = "u") -> Rows:
    return {
        "behavior_id": f"b{number:02}", "user_id": user, "action": "purchase", "product_id": product_id,
        "query_id": query_id, "event_timestamp": T0 + timedelta(days=day),
    }  # fmt: skip


@pytest.fixture
def stocked(settings: Settings, write_rows: Callable[..., None]) -> Lake:
    """a and b are old, c is listed on day 4.5 by a merchant without a tier; gone goes, late comes too late."""
    new = T0 + timedelta(days=4.5)
    products = [
        product("a", "ia", category="chair", merchant_id="m1"),
        product("b", "ib", category="chair", merchant_id="m2"),
        product("b", "ib2", 3, category="sofa", merchant_id="m2"),
        product("c", "ic", 4.5, listed_at=new, merchant_id="m3"),
        product("gone", "ig"),
        product("gone", "ig", 8, deleted=True),
        product("late", "il", 9),
    ]
    queries = [
        query("q1", None, "x1", "image"),
        query("q2", None, "x2", "image"),
        query("q3", None, "ia", "image"),  # a picture of the catalogue
        query("t1", "red chair", None, "text"),
        query("t2", "red chair", None, "text"),
        query("p1", "like this", "x4", "product"),
    ]
    behaviors = [
        purchase(1, "a", "q1", 5), purchase(2, "b", "q1", 5.5), purchase(3, "c", "q2", 5, "v"),
        purchase(4, "gone", "q1", 5.6), purchase(5, "a", "q3", 8, "w"),
        purchase(6, "a", "p1", 6, "v"), purchase(7, "a", None, 8.5, "w"),
        purchase(8, "a", "q1", 5) | {"action": "click"},
        purchase(9, "a", "q2", 1), purchase(10, "a", "q2", 9), purchase(11, "b", "t1", 4, "z"),
        purchase(12, "a", "t2", 6, "z"), purchase(13, "a", None, 2), purchase(14, "b", None, 2),
    ]  # fmt: skip
    for name, rows in {"products": products, "queries": queries, "behaviors": behaviors}.items():
        write_rows(settings, name, rows)
    tiers = [("m1", 2, 0), ("m1", 1, 1), ("m2", 3, 0)]
    moments = [T0 + timedelta(days=day) for _, _, day in tiers]
    rows = [
        {"merchant_id": name, "tier": tier, "event_timestamp": moment}
        for (name, tier, _), moment in zip(tiers, moments, strict=True)
    ]
    write_rows(settings, "merchants", rows)
    return Lake(settings)


def pairs(trials: Trials) -> list[tuple[str | None, str]]:
    """Text or picture of the query, and what was bought, trial by trial."""
    return [
        (trials.queries[row].text or trials.queries[row].image_ids[0], trials.products[positive])
        for row, positive in zip(trials.query_rows, trials.positives, strict=True)
    ]


def test_the_pool_is_what_was_on_sale_at_the_end_in_its_latest_state(stocked: Lake) -> None:
    assert list(live_products(stocked, END)) == ["a", "b", "c"]
    assert live_products(stocked, END)["b"] == content_of("b", ["ib2"]).content_id
    assert live_products(stocked, T0 + timedelta(days=2))["b"] == content_of("b", ["ib"]).content_id
    trials = read_trials(stocked, START, END)
    assert [content.image_ids for content in trials.pool] == [("ia",), ("ib2",), ("ic",)]


def test_image_trials_are_purchases_after_an_image_query_in_the_window(stocked: Lake) -> None:
    trials = read_trials(stocked, START, END)
    assert pairs(trials) == [("x1", "a"), ("x1", "b"), ("x2", "c")]
    assert trials.left_out == 2  # gone, and a picture of the catalogue
    assert trials.own.tolist() == [-1, -1, -1]


def test_a_text_that_two_queries_share_is_one_query(stocked: Lake) -> None:
    trials = read_trials(stocked, START, END, "text_search")
    assert pairs(trials) == [("red chair", "b"), ("red chair", "a")]
    assert len(trials.queries) == 1
    assert pairs(read_trials(stocked, START, END, "product_search")) == [("like this", "a")]


def test_bought_next_pairs_purchases_of_one_user_within_a_day(stocked: Lake) -> None:
    trials = read_trials(stocked, START, END, "bought_next")
    # u: a, b, gone; v: c, a a day later; w: a twice; z: b, then a two days later
    assert pairs(trials) == [("a", "b"), ("c", "a")]
    assert [trials.products[row] for row in trials.own] == ["a", "c"]
    assert trials.left_out == 1  # b, then gone


def test_segments_speak_of_what_was_bought(stocked: Lake) -> None:
    segments = read_trials(stocked, START, END).segments  # of a, b, c
    assert segments["age"].tolist() == ["listed under 7 days before"] * 3
    assert segments["category"].tolist() == ["chair", "sofa", "unknown"]
    assert segments["merchant tier"].tolist() == ["tier 1", "tier 3", "unknown"]
    assert segments["popularity"].tolist() == ["head", "tail", "never bought before"]  # a twice before, b once
    later = read_trials(stocked, START, END + timedelta(days=1)).segments["age"]
    assert later.tolist() == ["listed under 7 days before"] * 3 + ["listed 7 to 28 days before"]


def test_a_query_with_many_trials_weighs_as_ten() -> None:
    rows = np.array([0] * 40 + [1] * 10 + [2])
    queries = [content_of(name, []) for name in "abc"]
    trials = Trials("text_search", START, END, queries, [], [], rows, rows * 0, rows * 0 - 1, {}, 0)
    assert [trials.weights[rows == query].sum() for query in range(3)] == pytest.approx([10, 10, 1])


def test_the_head_is_at_most_a_fifth_of_what_was_bought_and_ties_stay_together() -> None:
    counts = {"a": 9, "b": 5, "c": 5, **{f"x{number}": 1 for number in range(7)}}  # 10 bought: the head has 2 at most
    parts = popularity([*counts, "new"], counts).tolist()
    assert parts == ["head"] + ["tail"] * 9 + ["never bought before"]
    assert popularity([*counts, "new"], counts | {"b": 6}).tolist()[:3] == ["head", "head", "tail"]
    assert popularity(["a", "b"], {"a": 1, "b": 1}).tolist() == ["tail", "tail"]
    assert popularity(["a"], {}).tolist() == ["never bought before"]
