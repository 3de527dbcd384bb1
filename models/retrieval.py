"""Retrieval: exact nearest neighbours, and how often the product that was bought is among them.

Image-search recall: a query picture against the whole pool; the positive is the product bought after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CUTOFFS = (1, 10, 50)
QUERIES_PER_SEARCH = 1024
TIE = 1e-5
"""Scores closer than this count as equal: the last bits of a dot product depend on where in a matrix a row stands."""
BOOTSTRAP_DRAWS = 1_000


class Neighbours(NamedTuple):
    """The nearest of a pool, best first.

    Attributes:
        scores: float32 [Q, K], cosine.
        rows: int64 [Q, K], rows of the pool.
    """

    scores: Floats
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HitRate:
    """Share of queries with the positive among the first `cutoff`, and its 95% bootstrap interval."""

    cutoff: int
    value: float
    low: float
    high: float


def nearest(queries: Floats, pool: Floats, count: int) -> Neighbours:
    """The `count` rows of the pool with the largest cosine to each query, found exactly.

    Args:
        queries: float32 [Q, D], unit rows.
        pool: float32 [N, D], unit rows; fewer than `count` of them are all returned.
    """
    if queries.shape[1:] != pool.shape[1:]:
        raise ValueError(f"queries are {queries.shape}, the pool {pool.shape}: expected vectors of one length")
    count = min(count, len(pool))
    index = faiss.IndexFlatIP(pool.shape[1])
    index.add(np.ascontiguousarray(pool, np.float32))
    found = [
        index.search(np.ascontiguousarray(queries[at : at + QUERIES_PER_SEARCH], np.float32), count)
        for at in range(0, len(queries), QUERIES_PER_SEARCH)
    ]
    scores = np.concatenate([one for one, _ in found]) if found else np.empty((0, count), np.float32)
    rows = np.concatenate([one for _, one in found]) if found else np.empty((0, count), np.int64)
    return Neighbours(scores, rows)


def ranks(queries: Floats, pool: Floats, positives: NDArray[np.int64], *, deepest: int) -> NDArray[np.int64]:
    """int64 [Q]: place of each query's positive in the pool, from 1; `deepest` + 1 for any place behind `deepest`.

    Ties count against us: of rows with one score the positive stands last.

    Args: positives: int64 [Q], row of the pool.
    """
    found = nearest(queries, pool, deepest + 1)
    own = np.einsum("qd,qd->q", queries, pool[positives])  # [Q]
    place = (found.scores >= own[:, None] - TIE).sum(1)  # the positive is one of these, if it is near enough
    return np.where((found.rows == positives[:, None]).any(1), place, deepest + 1)


def hit_rates(
    place: NDArray[np.int64],
    clusters: NDArray[np.int64] | None = None,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    seed: int = 0,
) -> list[HitRate]:
    """The hit rate at each cutoff, with a bootstrap interval over clusters.

    Args:
        place: int64 [Q], from `ranks`.
        clusters: int64 [Q], equal for rows that are not independent (purchases after one query); None for all apart.
    """
    if not len(place):
        raise ValueError("no query to measure on")
    _, cluster = np.unique(np.arange(len(place)) if clusters is None else clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    size = np.bincount(cluster)
    draws = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), size=BOOTSTRAP_DRAWS)  # [draws, clusters]
    rates = []
    for cutoff in cutoffs:
        hit = place <= cutoff
        drawn = draws @ np.bincount(cluster, weights=hit) / (draws @ size)
        low, high = np.quantile(drawn, [0.025, 0.975])
        rates.append(HitRate(cutoff, float(hit.mean()), float(low), float(high)))
    return rates


def pixel_vectors(pictures: Iterable[NDArray[np.uint8]]) -> Floats:
    """float32 [N, 3 * H * W]: pictures of one size as centred unit vectors: the baseline that learns nothing.

    A picture of one flat colour has no direction of its own: it gets the direction of a constant, equal for all such.
    """
    rows = np.stack([picture.reshape(-1) for picture in pictures]).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = norms[:, 0] < 1e-3
    rows[flat], norms[flat] = 1.0, np.sqrt(rows.shape[1])
    rows /= norms
    return rows
