"""Graded relevance: nDCG of scores against judged grades, BM25, and its blend with an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from moonlake.arrays import Float64s, Int64s

Gain = Literal["exponential", "esci"]

CUTOFF = 10
TIE_DECIMALS = 5
"""Scores that are equal to this many decimals tie: the last bits of a score depend on where its row stands."""
FOLDS = 5
WEIGHTS = tuple(step / 20 for step in range(21))
"""What the encoder's weight in a blend is chosen from: 0 is BM25 alone, 1 the encoder alone."""


class Blend(NamedTuple):
    """A blend whose weight was never chosen on the queries that it is measured on.

    Attributes:
        values: float64 [Q], nDCG of each query.
        weights: the encoder's weight in each fold.
    """

    values: Float64s
    weights: list[float]


class BM25:
    """BM25 of texts, as `bm25s` has it by default (Lucene's, k1 1.5, b 0.75), without stemming.

    No stop words are left out: "without" and "for" say what a shopper does not want.
    """

    def __init__(self, documents: Sequence[str | None]) -> None:
        import bm25s

        self._tokens = bm25s.tokenize
        self._index = bm25s.BM25()
        self._size = len(documents)
        tokens = self._tokens([text or "" for text in documents], stopwords=[], show_progress=False)
        self._words = set(tokens.vocab) if any(tokens.ids) else set()
        if self._words:
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str | None) -> Float64s:
        """float64 [N] of the documents; zeros where no word of the query stands in any."""
        (words,) = self._tokens([query or ""], stopwords=[], return_ids=False, show_progress=False)
        known = [word for word in words if word in self._words]
        if not known:
            return np.zeros(self._size)
        return np.asarray(self._index.get_scores(known), np.float64)


def gains_of(grades: Int64s, gain: Gain) -> Float64s:
    """float64 [N]: what finding products of these grades is worth.

    "exponential" is 2^grade - 1, the field's usual one: 7, 3, 1, 0 for grades 3 to 0.
    "esci" is what the ESCI challenge scores with, 1, 0.1, 0.01, 0 for E, S, C, I: almost only exact matches count.

    >>> gains_of(np.array([3, 2, 1, 0]), "esci").round(3).tolist()
    [1.0, 0.1, 0.01, 0.0]
    """
    if gain == "exponential":
        return np.exp2(grades.astype(np.float64)) - 1.0
    return np.where(grades > 0, 10.0 ** (grades - 3.0), 0.0)


def ndcg(scores: Float64s, gains: Float64s, cutoff: int = CUTOFF) -> float:
    """nDCG of one query: the discounted gain of its first `cutoff` products over that of the best order there is.

    Ties count against us: of equal scores the smallest gain stands first. NaN where no product has a gain.

    Args: scores, gains: float64 [N], of the same candidates.
    Source: Jarvelin and Kekalainen 2002; discount 1 / log2(place + 1).

    >>> ndcg(np.array([0.5, 0.5, 0.1]), np.array([1.0, 0.0, 0.0])).__round__(4)
    0.6309
    """
    if scores.shape != gains.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"scores {scores.shape} and gains {gains.shape}: expected finite numbers of the same candidates"
        )
    discount = 1 / np.log2(np.arange(2, min(cutoff, len(gains)) + 2))
    best = np.sort(gains)[::-1][:cutoff] @ discount
    if not best > 0:
        return float("nan")
    rounded = np.round(scores, TIE_DECIMALS)
    if len(rounded) > cutoff:  # only these can come first, ties of the last place among them
        near = rounded >= np.partition(rounded, -cutoff)[-cutoff]
        rounded, gains = rounded[near], gains[near]
    first = np.lexsort((gains, -rounded))[:cutoff]
    return float(gains[first] @ discount / best)


def blended(lexical: Float64s, cosine: Float64s, weight: float) -> Float64s:
    """float64 [N]: both scores stretched to [0, 1] over the candidates of one query, and averaged with the weight."""
    return (1 - weight) * _stretched(lexical) + weight * _stretched(cosine)


def _stretched(scores: Float64s) -> Float64s:
    span = np.ptp(scores)
    return (scores - scores.min()) / span if span > 0 else np.zeros_like(scores)


def cross_validated(values: Float64s, *, seed: int = 0) -> Blend:
    """For each query the value under the weight that was best on the mean of all queries of the other folds.

    Args: values: float64 [Q, W], nDCG of each query under each of WEIGHTS.
    Raises: ValueError: fewer queries than folds.
    """
    queries = len(values)
    if queries < FOLDS:
        raise ValueError(f"{queries} queries: a weight is chosen over {FOLDS} folds, so that there must be as many")
    fold = np.random.default_rng(seed).permutation(np.arange(queries) % FOLDS)  # [Q]
    best = [int(values[fold != one].mean(0).argmax()) for one in range(FOLDS)]
    return Blend(values[np.arange(queries), np.array(best)[fold]], [WEIGHTS[one] for one in best])
