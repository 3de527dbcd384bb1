"""Retrieval: exact nearest neighbours, and the place of the right product in the whole pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import faiss
import numpy as np

from moonlake.arrays import Bools, Float32s, Int64s, UInt8s

CUTOFFS = (1, 10, 50)
QUERIES_PER_SEARCH = 1024
SCORES_AT_ONCE = 4_000_000
TIE = 1e-5
"""Scores closer than this count as equal: the last bits of a dot product depend on where in a matrix a row stands."""
UNFOUND = np.iinfo(np.int64).max
"""The place of a product that is not found at all: it, or its query, has no vector."""


class Neighbours(NamedTuple):
    """The nearest of a pool, best first.

    Attributes:
        scores: float32 [Q, K], cosine.
        rows: int64 [Q, K], rows of the pool.
    """

    scores: Float32s
    rows: Int64s


def nearest(queries: Float32s, pool: Float32s, count: int) -> Neighbours:
    """The `count` rows of the pool with the largest cosine to each query, found exactly.

    Args:
        queries: float32 [Q, D], unit rows.
        pool: float32 [N, D], unit rows; fewer than `count` of them are all returned.
    """
    _require_one_length(queries, pool)
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


def ranks(
    queries: Float32s, pool: Float32s, query_rows: Int64s, positives: Int64s, own: Int64s | None = None
) -> Int64s:
    """int64 [T]: place of each trial's positive in the whole pool, from 1; UNFOUND where a vector is missing.

    Ties count against us: of rows with one score the positive stands last.

    Args:
        queries, pool: float32 [Q, D] and [N, D], unit rows; a row of zeros is a missing vector.
        query_rows, positives: int64 [T], rows of `queries` and of `pool`.
        own: int64 [T], row of the pool that is left out of the search (the query itself); -1 for none.
    """
    _require_one_length(queries, pool)
    asked: Bools = np.any(queries, axis=1)
    there: Bools = np.any(pool, axis=1)
    across = np.ascontiguousarray(pool.T)
    place = np.empty(len(positives), np.int64)
    step = max(1, SCORES_AT_ONCE // max(len(pool), 1))
    for at in range(0, len(positives), step):
        some = slice(at, at + step)
        scores = queries[query_rows[some]] @ across  # [B, N]
        trial = np.arange(len(scores))
        wanted = scores[trial, positives[some]]
        if not there.all():
            scores[:, ~there] = -np.inf
        if own is not None:
            left_out = np.flatnonzero(own[some] >= 0)
            scores[left_out, own[some][left_out]] = -np.inf
        place[some] = np.count_nonzero(scores >= wanted[:, None] - TIE, axis=1)
    place[~asked[query_rows] | ~there[positives]] = UNFOUND
    return place


def pixel_vectors(pictures: Iterable[UInt8s]) -> Float32s:
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


def _require_one_length(queries: Float32s, pool: Float32s) -> None:
    if queries.shape[1:] != pool.shape[1:]:
        raise ValueError(f"queries are {queries.shape}, the pool {pool.shape}: expected vectors of one length")
