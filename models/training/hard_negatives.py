"""Hard negatives: products near a query that nobody chose after it, kept clear of likely false negatives.

Source: the cap relative to the positive is TopK-PercPos of NV-Retriever (arXiv 2407.15831).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from moonlake.arrays import Float32s, Int64s
from moonlake.errors import InputError

QUERIES_PER_SEARCH = 256
LISTS_PROBED = 32


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """Configuration of the choice of hard negatives.

    Attributes:
        count: negatives of a pair, at most.
        query_margin: a negative is less similar to the query than its positive p is: at most p - margin * |p|.
        positive_cap: and its cosine with the positive is at most this.
        depth: nearest products of a query that are looked at. A pair for which all of these are too near gets none:
            its positive is far from its query, and what is between them may well be relevant.
        exact_up_to: products of a block up to which the search is exact; above, an inverted file is searched.
    """

    count: int = 16
    query_margin: float = 0.05
    positive_cap: float = 0.95
    depth: int = 2_048
    exact_up_to: int = 50_000

    def __post_init__(self) -> None:
        if self.count < 0 or self.depth < self.count or not 0 <= self.query_margin < 1:
            raise InputError(f"{self}: expected 0 <= count <= depth and a margin in [0, 1)")


def hard_negatives(
    queries: Float32s,
    positives: Float32s,
    pool: Float32s,
    forbidden: Sequence[Int64s],
    config: MiningConfig,
) -> list[Int64s]:
    """[P] rows of the pool for each pair, the most similar to its query first; none to `config.count`.

    Args:
        queries, positives: float32 [P, D], unit rows: both sides of each pair.
        pool: float32 [N, D], unit rows: the products of one block (a category), each content once.
        forbidden: [P] rows of the pool that are never a pair's negatives, whatever their similarity.
    """
    if not len(pool) or not len(queries):
        return [np.empty(0, np.int64) for _ in range(len(queries))]
    index = new_index(pool, config)
    depth = min(config.depth, len(pool))
    found: list[Int64s] = []
    for start in range(0, len(queries), QUERIES_PER_SEARCH):
        part = slice(start, start + QUERIES_PER_SEARCH)
        scores, rows = index.search(np.ascontiguousarray(queries[part]), depth)  # [B, K], [B, K]
        own = np.einsum("pd,pd->p", queries[part], positives[part])  # [B]
        allowed = (rows >= 0) & (scores <= (own - config.query_margin * np.abs(own))[:, None])
        for at in range(len(rows)):
            pair = start + at
            candidates = rows[at][allowed[at]]
            candidates = candidates[~np.isin(candidates, forbidden[pair])]
            found.append(_clear_of(positives[pair], candidates, pool, config))
    return found


def _clear_of(positive: Float32s, candidates: Int64s, pool: Float32s, config: MiningConfig) -> Int64s:
    """The first `config.count` candidates that are not too near to the positive."""
    kept: list[Int64s] = []
    held = 0
    for start in range(0, len(candidates), 4 * max(config.count, 1)):
        if held >= config.count:
            break
        part = candidates[start : start + 4 * config.count]
        kept.append(part[pool[part] @ positive <= config.positive_cap])
        held += len(kept[-1])
    return np.concatenate(kept)[: config.count] if kept else np.empty(0, np.int64)


def new_index(pool: Float32s, config: MiningConfig) -> faiss.Index:
    """An index of inner products over the pool: exact, or an inverted file where the pool is large."""
    rows = np.ascontiguousarray(pool, np.float32)
    dimension = rows.shape[1]
    if len(rows) <= config.exact_up_to:
        exact = faiss.IndexFlatIP(dimension)
        exact.add(rows)
        return exact
    lists = round(4 * math.sqrt(len(rows)))
    coarse = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFFlat(coarse, dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # faiss warns below 39 on stderr; 4 sqrt(N) lists are meant
    index.train(rows)
    index.add(rows)
    index.nprobe = min(lists, LISTS_PROBED)
    return index


def rows_of_units(units: Sequence[Sequence[str]]) -> Mapping[str, Int64s]:
    """The rows of a pool by product unit.

    Args: units: [N], the units that have each row's content.
    """
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(units):
        for name in names:
            rows.setdefault(name, []).append(row)
    return {name: np.array(found, np.int64) for name, found in rows.items()}
