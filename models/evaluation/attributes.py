"""Same-attribute retrieval, for catalogues without behaviour: how many of the nearest products are of the same kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from models.evaluation.bootstrap import Rate, rates, ratios
from models.evaluation.ranking import SCORES_AT_ONCE, TIE
from moonlake.arrays import Bools, Float32s, Float64s, Int64s, Strings
from moonlake.embeddings.contents import Content, content_of, live_states, read_contents
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake

COLUMNS = ("category", "brand", "spu_id", "merchant_id")
PRECISION_CUTOFFS = (1, 10)
NEVER = -4.0
"""A score below every cosine: what is left out of the search stands behind all, and is never right."""


@dataclass(frozen=True, slots=True)
class AttributeTrials:
    """Products to ask with and products to be found, each with its value of one attribute.

    Attributes:
        queries: content of each query; pictures only, where asked for.
        pool: content of each product that may be found.
        query_labels, pool_labels: the attribute's value, str [Q] and [N].
        own: int64 [Q], row of the pool that is the query itself and left out; -1 for none.
        left_out: live products without a value.
    """

    attribute: str
    queries: list[Content]
    pool: list[Content]
    query_labels: Strings
    pool_labels: Strings
    own: Int64s
    left_out: int


@dataclass(frozen=True, slots=True)
class AttributePrecision:
    """The share of the first k with the query's value; `chance` is the share that a random order would have."""

    attribute: str
    precisions: list[Rate]
    chance: float
    queries: int
    pool: int
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def in_test(product_ids: Sequence[str], share: float, *, seed: int = 0) -> Bools:
    """bool [N]: about `share` of the products, by a hash of id and seed: the same ones in any process and catalogue."""
    return np.array([int(stable_hash(f"{seed} {name}")[:8], 16) < share * 2**32 for name in product_ids], np.bool_)


def read_attribute_trials(
    lake: Lake,
    attribute: str,
    at: datetime,
    *,
    test: Collection[str] | None = None,
    pictures_only: bool = False,
    fresh_pictures: bool = False,
) -> AttributeTrials:
    """The products live just before `at` that have a value of an attribute.

    Args:
        attribute: a column of `products` (category, brand, spu_id, merchant_id), or a name in its attributes.
        test: products that ask, and cannot be found; all others are the pool. None: every product asks, and is left
            out of its own answer.
        pictures_only: ask with the pictures alone; products without one do not ask.
        fresh_pictures: a product does not ask if another one that may be found has a picture of its own, to the byte:
            catalogues hold such twins, and any encoder finds them.

    Raises: InputError: no product has a value, or a side of the split is empty.
    """
    column = attribute if attribute in COLUMNS else "attributes"
    states = live_states(lake, at, ["content_id", column])
    live = {state["product_id"]: state["content_id"] for state in states}
    values = {state["product_id"]: state[column] for state in states}
    if column == "attributes":
        values = {name: dict(pairs).get(attribute) for name, pairs in values.items()}
    label = {name: value for name, value in values.items() if value}
    named = [name for name in live if name in label]
    if not named:
        raise InputError(f"no product live at {at} has a value of {attribute!r}: expected a column or an attribute")
    contents = read_contents(lake, {live[name] for name in named})
    asking = [name for name in named if test is None or name in test]
    pool = [name for name in named if test is None or name not in test]
    queries = {name: contents[live[name]] for name in asking}
    if fresh_pictures:
        shown = Counter(image for name in pool for image in set(contents[live[name]].image_ids))
        itself = int(test is None)  # a product of the pool shows its pictures itself
        queries = {
            name: content
            for name, content in queries.items()
            if all(shown[image] <= itself for image in content.image_ids)
        }
    if pictures_only:
        pictured = {name: content for name, content in queries.items() if content.image_ids}
        queries = {name: content_of(None, content.image_ids) for name, content in pictured.items()}
    if not queries or not pool:
        raise InputError(f"{attribute}: {len(queries)} products ask and {len(pool)} may be found: expected both")
    row = {name: at for at, name in enumerate(pool)}
    return AttributeTrials(
        attribute,
        list(queries.values()),
        [contents[live[name]] for name in pool],
        np.array([label[name] for name in queries], np.str_),
        np.array([label[name] for name in pool], np.str_),
        np.array([row.get(name, -1) for name in queries], np.int64),
        len(live) - len(named),
    )


def measure_attribute(
    trials: AttributeTrials,
    query_vectors: Float32s,
    pool_vectors: Float32s,
    *,
    cutoffs: Sequence[int] = PRECISION_CUTOFFS,
) -> AttributePrecision:
    """Precision at each cutoff with an interval over queries.

    Args: query_vectors, pool_vectors: float32 [Q, D] of `trials.queries` and [N, D] of `trials.pool`, unit rows.
    """
    found = attribute_precision(trials, query_vectors, pool_vectors, cutoffs=cutoffs)
    kinds, kind = np.unique(trials.pool_labels, return_inverse=True)
    share = dict(zip(kinds.tolist(), (np.bincount(kind) / len(kind)).tolist(), strict=True))
    return AttributePrecision(
        trials.attribute,
        rates(cutoffs, ratios(found, np.ones((len(found), 1)), np.arange(len(found)))),
        float(np.mean([share.get(label, 0.0) for label in trials.query_labels.tolist()])),
        len(trials.queries),
        len(trials.pool),
        trials.left_out,
    )


def attribute_precision(
    trials: AttributeTrials,
    query_vectors: Float32s,
    pool_vectors: Float32s,
    *,
    cutoffs: Sequence[int] = PRECISION_CUTOFFS,
) -> Float64s:
    """float64 [Q, K]: of each query's first k, the share with its value; ties count against us.

    Of rows that tie for the last places, the wrong ones are taken first. A query without a vector finds nothing right.
    """
    _, kind = np.unique(np.concatenate([trials.query_labels, trials.pool_labels]), return_inverse=True)
    of_query, of_pool = kind[: len(trials.query_labels)], kind[len(trials.query_labels) :]
    across = np.ascontiguousarray(pool_vectors.T)
    there: Bools = np.any(pool_vectors, axis=1)
    step = max(1, SCORES_AT_ONCE // len(pool_vectors))
    parts = []
    for at in range(0, len(of_query), step):
        some = slice(at, at + step)
        scores = query_vectors[some] @ across  # [B, N]
        scores[:, ~there] = NEVER
        own = np.flatnonzero(trials.own[some] >= 0)
        scores[own, trials.own[some][own]] = NEVER
        parts.append(_share_right(scores, (of_query[some, None] == of_pool) & (scores > NEVER), cutoffs))
    found = np.concatenate(parts)
    found[~np.any(query_vectors, axis=1)] = 0.0
    return found


def _share_right(scores: Float32s, right: Bools, cutoffs: Sequence[int]) -> Float64s:
    """float64 [B, K] of scores and what is right, [B, N]."""
    found = np.empty((len(scores), len(cutoffs)))
    for column, cutoff in enumerate(cutoffs):
        depth = min(cutoff, scores.shape[1])
        last = np.partition(scores, -depth, axis=1)[:, -depth, None]  # [B, 1], score of the last place
        above, tied = scores > last + TIE, np.abs(scores - last) <= TIE
        places = depth - above.sum(1)
        sure = (above & right).sum(1) + np.maximum(places - (tied & ~right).sum(1), 0)
        found[:, column] = sure / cutoff
    return found
