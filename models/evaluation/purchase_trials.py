"""Purchase trials, on which encoders are measured: a user's query, and the product that was bought after it.

Read once from the lake and used for many encoders: nothing here depends on vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.evaluation.trial_segments import STATE_COLUMNS, segments_of
from moonlake.arrays import Float64s, Int64s, Strings
from moonlake.embeddings.contents import Content, live_states, read_contents
from moonlake.lake.lake import Lake

Task = Literal["image_search", "text_search", "product_search", "bought_next"]

MODALITY: Mapping[Task, str] = {"image_search": "image", "text_search": "text", "product_search": "product"}
TRIALS_PER_QUERY = 10
"""A query content weighs as many trials as it has, up to this: a frequent text would rule the figure otherwise."""
NEXT_WITHIN = timedelta(days=1)
"""`bought_next` pairs a purchase with the same user's next one of another product, at most this much later."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials of one task: query content and the product that was right.

    Attributes:
        queries: content of each distinct query; of each distinct product bought before, for `bought_next`.
        pool: content of each product that was live at the end of the window.
        products: product_id of each row of the pool.
        query_rows, positives: int64 [T], rows of `queries` and of `pool`.
        own: int64 [T], row of the pool that is the query itself and left out of the search; -1 for none.
        segments: by name, the part that each trial belongs to, str [T].
        left_out: trials without a measure: the product was gone by then, or the picture is of the catalogue.
    """

    task: Task
    start: datetime
    end: datetime
    queries: list[Content]
    pool: list[Content]
    products: list[str]
    query_rows: Int64s
    positives: Int64s
    own: Int64s
    segments: Mapping[str, Strings]
    left_out: int

    @property
    def weights(self) -> Float64s:
        """float64 [T]: 1, or less where a query content has more than TRIALS_PER_QUERY trials."""
        count = np.bincount(self.query_rows, minlength=len(self.queries))
        weight: Float64s = np.minimum(1.0, TRIALS_PER_QUERY / np.maximum(count, 1))
        return weight[self.query_rows]

    @property
    def contents(self) -> list[Content]:
        """Every distinct content that a vector is needed of."""
        return list({content.content_id: content for content in (*self.queries, *self.pool)}.values())


class _Found(NamedTuple):
    """Content of the query, product bought, product that is the query (None unless it is one) and time of purchase."""

    query: Content
    product: str
    own: str | None
    bought_at: datetime


def read_trials(lake: Lake, start: datetime, end: datetime, task: Task = "image_search") -> Trials:
    """The purchases of [start, end) as trials of a task, and the products live at its end.

    `image_search`, `text_search` and `product_search` (text and picture): each purchase after a query of that
    modality. `bought_next`: each purchase of a product of the pool, with what the same user bought next within a day.
    """
    states = live_states(lake, end, ["content_id", *STATE_COLUMNS])
    contents = read_contents(lake, {state["content_id"] for state in states})
    pool = [contents[state["content_id"]] for state in states]
    pool_row = {state["product_id"]: row for row, state in enumerate(states)}
    if task == "bought_next":
        found = _bought_next(_purchases(lake, start, end), dict(zip(pool_row, pool, strict=True)))
    else:
        found = _bought_after(_purchases(lake, start, end), _queries(lake, MODALITY[task]))
    catalogue = {image for content in pool for image in content.image_ids}
    kept = [
        one
        for one in found
        if one.product in pool_row and (one.own is not None or catalogue.isdisjoint(one.query.image_ids))
    ]
    distinct = {one.query.content_id: one.query for one in kept}
    query_row = {content_id: row for row, content_id in enumerate(distinct)}
    positives = np.array([pool_row[one.product] for one in kept], np.int64)
    times = np.array([one.bought_at.replace(tzinfo=None) for one in kept], "datetime64[us]")
    return Trials(
        task,
        start,
        end,
        list(distinct.values()),
        pool,
        list(pool_row),
        np.array([query_row[one.query.content_id] for one in kept], np.int64),
        positives,
        np.array([-1 if one.own is None else pool_row[one.own] for one in kept], np.int64),
        segments_of(lake, states, positives, times, start),
        len(found) - len(kept),
    )


def live_products(lake: Lake, at: datetime) -> dict[str, str]:
    """content_id of each product that is on sale just before `at`, by product_id in order."""
    return {state["product_id"]: state["content_id"] for state in live_states(lake, at, ["content_id"])}


def _purchases(lake: Lake, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Purchases of [start, end) in order of behavior_id."""
    inside = (pc.field("event_timestamp") >= start) & (pc.field("event_timestamp") < end)
    names = ["behavior_id", "user_id", "product_id", "query_id", "event_timestamp"]
    rows: pa.Table = lake.read("behaviors", names, where=(pc.field("action") == "purchase") & inside)
    found: list[dict[str, Any]] = rows.sort_by("behavior_id").to_pylist()
    return found


def _queries(lake: Lake, modality: str) -> dict[str, Content]:
    """Content of each query of a modality by query_id."""
    names = ["query_id", "content_id", "text", "image_ids"]
    rows = lake.read("queries", names, where=pc.field("modality") == modality).to_pylist()
    return {row["query_id"]: Content(row["content_id"], row["text"], tuple(row["image_ids"])) for row in rows}


def _bought_after(purchases: Sequence[Mapping[str, Any]], queries: Mapping[str, Content]) -> list[_Found]:
    return [
        _Found(queries[row["query_id"]], row["product_id"], None, row["event_timestamp"])
        for row in purchases
        if row["query_id"] in queries
    ]


def _bought_next(purchases: Sequence[Mapping[str, Any]], pool: Mapping[str, Content]) -> list[_Found]:
    """Pairs of purchases that follow each other; the first product has to be live, for it is shown as it is now."""
    ordered = sorted(purchases, key=lambda row: (row["user_id"], row["event_timestamp"], row["behavior_id"]))
    return [
        _Found(pool[first["product_id"]], then["product_id"], first["product_id"], then["event_timestamp"])
        for first, then in pairwise(ordered)
        if first["user_id"] == then["user_id"]
        and first["product_id"] != then["product_id"]
        and then["event_timestamp"] - first["event_timestamp"] <= NEXT_WITHIN
        and first["product_id"] in pool
    ]
