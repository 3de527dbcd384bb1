"""The parts that trials are told apart by: age, category, popularity and merchant of the product that was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from moonlake.arrays import Int64s, Strings
from moonlake.lake.lake import Lake

STATE_COLUMNS = ("category", "merchant_id", "listed_at")
"""What `segments_of` reads of a product's state, besides its id."""
AGES = ("listed under 7 days before", "listed 7 to 28 days before", "listed 28 days before or more")
AGE_DAYS = (7, 28)
HEAD_SHARE = 0.2
"""Of the products bought before the window, at most this share with most purchases is the head."""


def segments_of(
    lake: Lake, states: Sequence[Mapping[str, Any]], positives: Int64s, bought_at: NDArray[Any], start: datetime
) -> dict[str, Strings]:
    """By name of the division, the part of each trial, str [T].

    - age: of the product when it was bought (the query came at most a day before).
    - popularity: by purchases before `start`, so that what is measured does not sort itself: head, tail, never bought.
    - category and merchant tier: as they were at the end; "unknown" where the lake does not say.

    Args:
        states: of each product of the pool.   positives: int64 [T], rows of them.   bought_at: datetime64 [T].
        start: first moment of the window.
    """
    listed = np.array([state["listed_at"].replace(tzinfo=None) for state in states], "datetime64[us]")
    days = (bought_at - listed[positives]) / np.timedelta64(1, "D")
    tiers = _tiers(lake)
    tier = [tiers.get(state["merchant_id"]) for state in states]
    of_product = {
        "category": np.array([state["category"] or "unknown" for state in states], np.str_),
        "merchant tier": np.array(["unknown" if one is None else f"tier {one}" for one in tier], np.str_),
        "popularity": popularity([state["product_id"] for state in states], _purchases_before(lake, start)),
    }
    age = np.array(AGES, np.str_)[np.digitize(days, AGE_DAYS)]
    return {"age": age} | {name: parts[positives] for name, parts in of_product.items()}


def popularity(names: Sequence[str], counts: Mapping[str, int], *, none: str = "never bought before") -> Strings:
    """str [N], "head", "tail" or `none`, by earlier purchases or the like; what ties with the tail is of it."""
    count = np.array([counts.get(name, 0) for name in names], np.int64)
    counted = np.sort(count[count > 0])[::-1]
    first_of_tail = int(np.ceil(HEAD_SHARE * len(counted)))
    most_of_tail = counted[first_of_tail] if first_of_tail < len(counted) else 0
    return np.where(count == 0, none, np.where(count > most_of_tail, "head", "tail")).astype(np.str_)


def _purchases_before(lake: Lake, start: datetime) -> dict[str, int]:
    earlier = (pc.field("action") == "purchase") & (pc.field("event_timestamp") < start)
    counts = pc.value_counts(lake.read("behaviors", ["product_id"], where=earlier)["product_id"].combine_chunks())
    return {one["values"]: one["counts"] for one in counts.to_pylist()}


def _tiers(lake: Lake) -> dict[str, int]:
    """The latest tier of each merchant."""
    rows = lake.read("merchants", ["merchant_id", "tier", "event_timestamp", "created_at"])
    rows = rows.sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    return dict(zip(rows["merchant_id"].to_pylist(), rows["tier"].to_pylist(), strict=True))
