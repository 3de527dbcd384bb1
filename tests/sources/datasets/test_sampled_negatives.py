"""Negatives that are sampled beside real clicks: none from the future, none twice, and the propensity is exact."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sources.datasets.sampled_negatives import NegativeSampler
from sources.datasets.seen_products import SeenProducts
from sources.own_files.schema import KINDS

START = datetime(2026, 1, 1, tzinfo=UTC)
N = 3


def log(count: int, products: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        moment = START + timedelta(seconds=number // 2)
        action = "cart" if number % 5 == 4 else "click"
        product = str(rng.integers(1, products))
        rows.append(
            {
                "behavior_id": f"b{number}",
                "user_id": str(rng.integers(100)),
                "action": action,
                "product_id": product,
                "query_id": None,
                "event_timestamp": moment,
            }
        )
    return rows


def sampler(rows: list[dict[str, Any]], seed: int = 7) -> NegativeSampler:
    seen = SeenProducts()
    ids = np.array([int(str(row["product_id"])) for row in rows])
    times = np.array([(row["event_timestamp"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for row in rows])  # fmt: skip  # noqa: E501
    seen.take(ids, times, np.zeros(len(rows), np.uint64))
    return NegativeSampler(seen, N, seed)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=KINDS["behaviors"].schema())


def test_every_click_has_its_row_and_negatives_that_were_seen_before_it() -> None:
    rows = log(400, 80)
    impressions = sampler(rows).impressions(table(rows)).to_pylist()
    clicks = {row["behavior_id"]: row for row in rows if row["action"] == "click"}
    positives = {row["request_id"]: row for row in impressions if row["clicked"]}
    assert {name: row["product_id"] for name, row in positives.items()} == {
        name: row["product_id"] for name, row in clicks.items()
    }
    assert all(row["propensity"] is None for row in positives.values())
    assert len({row["impression_id"] for row in impressions}) == len(impressions)
    for request, click in clicks.items():
        before = {row["product_id"] for row in rows if row["event_timestamp"] < click["event_timestamp"]}
        before -= {click["product_id"]}
        mine = [row for row in impressions if row["request_id"] == request and not row["clicked"]]
        assert len(mine) == min(N, len(before))
        assert {row["product_id"] for row in mine} <= before
        assert len({row["product_id"] for row in mine}) == len(mine)
        assert {(row["user_id"], row["event_timestamp"], row["label_time"]) for row in mine} <= {
            (click["user_id"], click["event_timestamp"], click["event_timestamp"])
        }


def test_a_product_is_drawn_as_often_as_its_propensity_says() -> None:
    known = log(200, 40)
    drawn: Counter[int] = Counter()
    said: Counter[int] = Counter()
    one = sampler(known)
    last = max(one.first_us) + 1
    clicks = 20_000
    products, sizes = one.draw(np.arange(clicks), np.full(clicks, 5), np.full(clicks, last))
    drawn.update(products.ravel().tolist())
    for product, size in zip(products.ravel().tolist(), sizes.ravel().tolist(), strict=True):
        said[product] += size  # inverse propensity of every draw sums to the number of clicks
    others = set(one.ids.tolist()) - {5}
    assert set(drawn) == others
    assert all(said[product] == pytest.approx(clicks, rel=0.15) for product in others)


def test_the_draw_depends_on_the_click_and_the_seed_and_not_on_the_batch() -> None:
    rows = log(300, 60)
    one = sampler(rows)
    whole = one.impressions(table(rows))
    parts = [one.impressions(table(rows[start : start + 70])) for start in range(0, 300, 70)]
    assert pa.concat_tables(parts).equals(whole)
    assert not sampler(rows, seed=8).impressions(table(rows)).equals(whole)
