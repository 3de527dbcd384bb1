"""CUBE, the content-based user behaviour extractor: what the vectors of target, query and behaviours say together.

One function reads the vectors of a batch and computes the similarities. Training, the `cube_features` job and the
online scorer all call it, so that an impression has the same similarities wherever it is looked at. A behaviour is an
action on an item, or a search: the two share one list and its order, and `searched` tells them apart. Everything is
masked: a vector that is missing takes part in nothing, and is counted.

Source:  MOON (arXiv 2511.11305), figure 5; SimTier (arXiv 2407.19467), section 4.2, for the histogram; SIM (arXiv
2006.05639) for the search of long sequences, here by the similarity of content.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moonlake.arrays import Bools, Int64s

HISTOGRAM_BINS = 20
ITEM_COLUMNS = (
    "behavior_similarity_max",
    "behavior_similarity_mean",
    "behavior_similarity_histogram",
    "behaviors_used",
    "behaviors_missing",
)
SEARCH_COLUMNS = (
    "search_similarity_max",
    "search_similarity_mean",
    "search_similarity_histogram",
    "searches_used",
    "searches_missing",
)
"""Columns of `cube_features`, in the order of `Summary` and then how many have no vector."""
VECTORS_AT_ONCE = 65_536
"""Vectors of behaviours that are held at once while a long sequence is searched."""


class Summary(NamedTuple):
    """A summary of the cosines of each row's known behaviours; zeros in a row without any, or without a target."""

    histogram: Tensor  # float32 [B, bins], the share of them by cosine, in equal bins over [-1, 1] (SimTier)
    largest: Tensor  # float32 [B]
    mean: Tensor  # float32 [B]
    used: Tensor  # int64 [B], how many behaviours are known, whatever the target


class Content(NamedTuple):
    """Vectors of a batch, which of them are there, and their cosines in [-1, 1], within the rounding of the vectors.

    What stands in the place of a missing vector means nothing; in the place of its cosine stands 0. K is L, or less
    where a long sequence was searched for its nearest behaviours.
    """

    target: Tensor  # float32 [B, D], unit rows of one embedding space, as the next two
    query: Tensor  # float32 [B, D]
    behaviors: Tensor  # float32 [B, K, D]; of a search what was searched, of other actions the item
    target_known: Tensor  # bool [B]
    query_known: Tensor  # bool [B]
    behaviors_known: Tensor  # bool [B, K]; false for padding and for missing vectors
    searched: Tensor  # bool [B, K]
    target_query: Tensor  # float32 [B], cosines
    cosines: Tensor  # float32 [B, K], target against each behaviour
    kept: Tensor | None  # int64 [B, K], which of the L behaviours these are, where a search chose them
    items: Summary  # of all L behaviours, as the next
    searches: Summary

    @property
    def pair_known(self) -> Tensor:
        """bool [B], true where target and query have a vector."""
        return self.target_known & self.query_known

    @property
    def cosines_known(self) -> Tensor:
        """bool [B, K], true where target and behaviour have a vector."""
        return self.target_known[:, None] & self.behaviors_known


def last_places(offsets: Int64s, chosen: Int64s, length: int, empty: int) -> Int64s:
    """Places of the last `length` elements of each chosen list, int64 [B, L]; the latest is at L - 1.

    Args:
        offsets: int64 [n + 1]; list i is [offsets[i], offsets[i + 1]).   chosen: int64 [B].
        empty: the place that stands in front of a list that is shorter.
    """
    places = offsets[chosen + 1][:, None] - length + np.arange(length)  # [B, L]
    return np.where(places >= offsets[chosen][:, None], places, empty)  # [B, L]


def read(
    vectors: NDArray[Any],
    target_rows: NDArray[Any],
    query_rows: NDArray[Any],
    behavior_rows: NDArray[Any],
    searched: Bools,
    *,
    keep: int = 0,
) -> Content:
    """The vectors of a batch, read now, and their similarities.

    Args:
        vectors: [N, D], memory-mapped.
        target_rows, query_rows: integers [B], -1 where there is no vector.   behavior_rows: integers [B, L].
        searched: bool [B, L], true where a behaviour is a search.
        keep: search each row for so many behaviours and hold the vectors of these alone; 0 holds all, without a search.
    """
    target, query = _vectors(vectors, target_rows), _vectors(vectors, query_rows)  # [B, D], [B, D]
    target_known, query_known = torch.from_numpy(target_rows >= 0), torch.from_numpy(query_rows >= 0)
    known, are_searches = torch.from_numpy(behavior_rows >= 0), torch.from_numpy(searched)  # [B, L], [B, L]
    kept = None
    if 0 < keep < behavior_rows.shape[1]:
        cosines = similarities(vectors, target_rows, behavior_rows)  # [B, L]
        kept = nearest(cosines, known, keep)  # [B, K]
        behaviors = _vectors(vectors, np.take_along_axis(behavior_rows, kept.numpy(), 1))  # [B, K, D]
    else:
        behaviors = _vectors(vectors, behavior_rows)  # [B, L, D]
        cosines = _cosines(target, behaviors, target_known[:, None] & known)  # [B, L]
    kinds = known & ~are_searches, known & are_searches  # [B, L], [B, L]
    items, searches = (summary(cosines, of_kind, target_known) for of_kind in kinds)
    if kept is not None:
        cosines, known, are_searches = (one.gather(1, kept) for one in (cosines, known, are_searches))  # [B, K]
    with_query = (target * query).sum(-1).where(target_known & query_known, 0.0)  # [B, D] -> [B]
    return Content(
        target=target,
        query=query,
        behaviors=behaviors,
        target_known=target_known,
        query_known=query_known,
        behaviors_known=known,
        searched=are_searches,
        target_query=with_query,
        cosines=cosines,
        kept=kept,
        items=items,
        searches=searches,
    )


def similarities(vectors: NDArray[Any], target_rows: NDArray[Any], behavior_rows: NDArray[Any]) -> Tensor:
    """Cosine of each target with each of its behaviours, float32 [B, L]; 0 where either has no vector.

    So many rows at a time that few vectors are held at once: a sequence may be as long as it likes.
    """
    each = max(1, VECTORS_AT_ONCE // max(1, behavior_rows.shape[1]))
    found = torch.empty(behavior_rows.shape)  # [B, L]
    for start in range(0, len(found), each):
        part = slice(start, start + each)
        both = torch.from_numpy((target_rows[part] >= 0)[:, None] & (behavior_rows[part] >= 0))
        found[part] = _cosines(_vectors(vectors, target_rows[part]), _vectors(vectors, behavior_rows[part]), both)
    return found


def nearest(cosines: Tensor, known: Tensor, count: int) -> Tensor:
    """Places of the behaviours most similar to their target, int64 [B, min(count, L)], in the order of time.

    Behaviours without a vector come after all that have one, the latest first.

    Args: cosines: float32 [B, L].   known: bool [B, L].
    """
    length = cosines.shape[1]
    behind = torch.arange(length) / max(1, length) - 3.0  # [L], below every cosine
    return cosines.where(known, behind).topk(min(count, length)).indices.sort().values


def similarity_weights(behaviors: Tensor, known: Tensor, temperature: Tensor | float) -> Tensor:
    """Weights that sum to 1 over the known behaviours of a row; a row without any has only zeros.

    Args:    behaviors: float32 [B, L] cosines.   known: bool [B, L].   temperature: above 0; low sees the nearest.
    Returns: float32 [B, L].
    """
    scores = (behaviors / temperature).masked_fill(~known, torch.finfo(behaviors.dtype).min)  # [B, L]
    return torch.where(known, scores.softmax(-1), 0.0)  # [B, L]


def pool(weights: Tensor, values: Tensor) -> Tensor:
    """The weighted sum of each row's values.

    Args:    weights: float32 [B, L].   values: float32 [B, L, E].
    Returns: float32 [B, E].
    """
    return torch.einsum("bl,ble->be", weights, values)


def summary(cosines: Tensor, known: Tensor, target_known: Tensor, bins: int = HISTOGRAM_BINS) -> Summary:
    """A summary of the cosines of each row's known behaviours.

    Args: cosines: float32 [B, L].   known: bool [B, L].   target_known: bool [B].
    """
    both, used = known & target_known[:, None], known.sum(-1)  # [B, L], [B]
    count = used.clamp(min=1)  # [B]
    place = ((cosines + 1) * (bins / 2)).long().clamp(0, bins - 1)  # [B, L]
    counts = cosines.new_zeros(len(cosines), bins).scatter_add_(1, place, both.to(cosines.dtype))  # [B, bins]
    best = cosines.masked_fill(~both, -torch.inf).amax(-1) if cosines.shape[1] else cosines.sum(-1)  # [B]
    largest = best.where(both.any(-1), 0.0)  # [B]
    return Summary(counts / count[:, None], largest, (cosines * both).sum(-1) / count, used)


def features(content: Content, on_product: Bools, searched: Bools) -> dict[str, NDArray[Any]]:
    """Columns of `cube_features` of a batch: each [B], histograms [B, bins]; NaN where a similarity is not known.

    Args: on_product, searched: bool [B, L], true for an action on a product, and for a search, vector or not.
    """
    items = _columns(content.items, content.target_known, on_product & ~searched)
    searches = _columns(content.searches, content.target_known, searched)
    return {
        "target_query_similarity": torch.where(content.pair_known, content.target_query, torch.nan).numpy(),
        **dict(zip(ITEM_COLUMNS, items, strict=True)),
        **dict(zip(SEARCH_COLUMNS, searches, strict=True)),
    }


def _columns(found: Summary, target_known: Tensor, there: Bools) -> list[NDArray[Any]]:
    known = target_known & (found.used > 0)  # [B]
    used = found.used.numpy()  # [B]
    largest, mean = (torch.where(known, one, torch.nan).numpy() for one in (found.largest, found.mean))
    return [largest, mean, found.histogram.numpy(), used, there.sum(-1) - used]


def _cosines(target: Tensor, behaviors: Tensor, both: Tensor) -> Tensor:
    """float32 [B, L] of targets [B, D] and behaviours [B, L, D]; 0 where `both` [B, L] is false."""
    return torch.einsum("bd,bld->bl", target, behaviors).where(both, 0.0)


def _vectors(vectors: NDArray[Any], rows: NDArray[Any]) -> Tensor:
    """float32 [..., D]: the vectors of rows [...]; a row below 0 gets the first one."""
    return torch.from_numpy(np.take(vectors, np.maximum(rows, 0), axis=0)).float()
