"""Impressions made of a log that has none: each click, and beside it products that were not clicked, sampled.

The clicks are real, the negatives are not: nobody knows what was shown. A source with them is labelled simulated, and
figures measured on it compare models on this sample, nothing else. Negatives are drawn from the products that anybody
in the log had acted on before the click, so that no row knows a product of its future; one from each of N equal parts
of these, oldest to newest, uniformly. So none stands twice beside one click, and `propensity`, one over the size of the
part, is exact; it is null for the click, which was not drawn. The draw depends on the click and the seed alone.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Int64s
from sources.datasets.seen_products import SeenProducts, mixed
from sources.own_files.schema import KINDS

SEED = 7


class NegativeSampler:
    """Draws negatives for the clicks of a log whose products are all known."""

    def __init__(self, seen: SeenProducts, negatives: int, seed: int = SEED) -> None:
        order = np.lexsort((seen.ids, seen.first_us))
        self.ids = seen.ids
        self.rank = np.empty(len(order), np.int64)
        self.rank[order] = np.arange(len(order))
        self.oldest_first, self.first_us = seen.ids[order], seen.first_us[order]
        self.negatives, self.seed = negatives, seed

    def draw(self, users: Int64s, products: Int64s, times_us: Int64s) -> tuple[Int64s, Int64s]:
        """Negatives for B clicks and the size of the part each was drawn from, int64 [B, N]; size 0: there is none."""
        before = np.searchsorted(self.first_us, times_us, side="left")  # [B]
        own = self.rank[np.searchsorted(self.ids, products)]
        others = before - (own < before)
        bounds = others[:, None] * np.arange(self.negatives + 1) // self.negatives  # [B, N + 1]
        sizes = np.diff(bounds, axis=1)
        place = np.arange(self.negatives)
        code = mixed(np.array([self.seed]), users[:, None], products[:, None], times_us[:, None], place)
        drawn = bounds[:, :-1] + (code % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64)
        drawn += drawn >= own[:, None]  # over the clicked product itself
        return self.oldest_first[np.minimum(drawn, len(self.oldest_first) - 1)], sizes

    def impressions(self, behaviors: pa.Table) -> pa.Table:
        """Staged impressions of the clicks among staged behaviours: the click first, then its negatives."""
        clicks = behaviors.filter(pc.equal(behaviors["action"], "click")).combine_chunks()
        users, products = (clicks[name].cast(pa.int64()).to_numpy() for name in ("user_id", "product_id"))
        times = clicks["event_timestamp"].cast(pa.int64()).to_numpy()
        drawn, sizes = self.draw(users, products, times)
        shown = np.column_stack([products, drawn]).ravel()  # [B * (1 + N)]
        sizes = np.column_stack([np.zeros(len(clicks), np.int64), sizes])
        clicked = np.zeros(sizes.shape, np.bool_)
        clicked[:, 0] = True
        place = np.broadcast_to(np.arange(1 + self.negatives), sizes.shape).ravel()
        rows = clicks.take(pa.array(np.repeat(np.arange(len(clicks)), 1 + self.negatives)))
        moment = rows["event_timestamp"]
        columns = {
            "impression_id": pc.binary_join_element_wise(rows["behavior_id"], pa.array(place).cast(pa.string()), "-"),
            "request_id": rows["behavior_id"],
            "user_id": rows["user_id"],
            "query_id": pa.nulls(len(rows), pa.string()),
            "product_id": pa.array(shown).cast(pa.string()),
            "position": np.ones(len(rows), np.int32),
            "propensity": pa.array(1.0 / np.maximum(sizes.ravel(), 1), mask=clicked.ravel()),
            "clicked": clicked.ravel(),
            "event_timestamp": moment,
            "label_time": moment,
        }
        there = pa.array((clicked | (sizes > 0)).ravel())
        return pa.table(columns, schema=KINDS["impressions"].schema()).filter(there)
