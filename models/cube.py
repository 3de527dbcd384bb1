"""CUBE, the content-based user behaviour extractor: what the vectors of target, query and behaviours say together.

One function computes the similarities. Training, the `cube_features` job and the online scorer all call it, so that an
impression has the same similarities wherever it is looked at. Everything is masked: a vector that is missing takes part
in nothing, and is counted.

Source:  MOON (arXiv 2511.11305), figure 5; SimTier (arXiv 2407.19467), section 4.2, for the histogram.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HISTOGRAM_BINS = 20
HISTOGRAM = "behavior_similarity_histogram"


class Content(NamedTuple):
    """Vectors of a batch, and which are there; what stands in the place of a missing one means nothing."""

    target: Tensor  # float32 [B, D], unit rows of one embedding space, as the next two
    query: Tensor  # float32 [B, D]
    behaviors: Tensor  # float32 [B, L, D]
    target_known: Tensor  # bool [B]
    query_known: Tensor  # bool [B]
    behaviors_known: Tensor  # bool [B, L]; false for padding and for missing vectors


class Similarities(NamedTuple):
    """Cosines in [-1, 1], within the rounding of the vectors; 0 where a side has no vector: the masks tell."""

    target_query: Tensor  # float32 [B]
    target_query_known: Tensor  # bool [B]
    behaviors: Tensor  # float32 [B, L], target against each behaviour
    behaviors_known: Tensor  # bool [B, L]


def last_places(offsets: NDArray[np.int64], chosen: NDArray[np.int64], length: int, empty: int) -> NDArray[np.int64]:
    """Where the last `length` elements of each chosen list lie, int64 [B, L]; the latest is at L - 1.

    Args:
        offsets: int64 [n + 1]; list i is [offsets[i], offsets[i + 1]).   chosen: int64 [B].
        empty: the place that stands in front of a list that is shorter.
    """
    places = offsets[chosen + 1][:, None] - length + np.arange(length)  # [B, L]
    return np.where(places >= offsets[chosen][:, None], places, empty)  # [B, L]


def gather(
    vectors: NDArray[Any], target_rows: NDArray[Any], query_rows: NDArray[Any], behavior_rows: NDArray[Any]
) -> Content:
    """The vectors of a batch, read now.

    Args:
        vectors: [N, D], memory-mapped.
        target_rows, query_rows: integers [B], -1 where there is no vector.   behavior_rows: integers [B, L].
    """
    target, query, behaviors = (
        torch.from_numpy(np.take(vectors, np.maximum(rows, 0), axis=0)).float()  # [..., D]
        for rows in (target_rows, query_rows, behavior_rows)
    )
    known = (torch.from_numpy(rows >= 0) for rows in (target_rows, query_rows, behavior_rows))
    return Content(target, query, behaviors, *known)


def similarities(content: Content) -> Similarities:
    """The cosines of each impression's target with its query and with its user's behaviours."""
    pair_known = content.target_known & content.query_known  # [B]
    each_known = content.target_known[:, None] & content.behaviors_known  # [B, L]
    with_query = (content.target * content.query).sum(-1)  # [B, D] -> [B]
    with_each = torch.einsum("bd,bld->bl", content.target, content.behaviors)  # [B, L]
    return Similarities(
        torch.where(pair_known, with_query, 0.0),  # [B]
        pair_known,
        torch.where(each_known, with_each, 0.0),  # [B, L]
        each_known,
    )


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


def histogram(behaviors: Tensor, known: Tensor, bins: int = HISTOGRAM_BINS) -> Tensor:
    """The share of known behaviours by cosine, in equal bins over [-1, 1]; only zeros in a row without any (SimTier).

    Args:    behaviors: float32 [B, L] cosines.   known: bool [B, L].
    Returns: float32 [B, bins].
    """
    place = ((behaviors + 1) * (bins / 2)).long().clamp(0, bins - 1)  # [B, L]
    counts = behaviors.new_zeros(len(behaviors), bins).scatter_add_(1, place, known.to(behaviors.dtype))  # [B, bins]
    return counts / known.sum(-1, keepdim=True).clamp(min=1)  # [B, bins]


def largest(behaviors: Tensor, known: Tensor) -> Tensor:
    """The largest cosine [B] of known behaviours; 0 in a row without any."""
    best = behaviors.masked_fill(~known, -torch.inf).amax(-1) if behaviors.shape[1] else behaviors.sum(-1)  # [B]
    return torch.where(known.any(-1), best, 0.0)  # [B]


def mean(behaviors: Tensor, known: Tensor) -> Tensor:
    """The mean cosine [B] of known behaviours; 0 in a row without any."""
    return (behaviors * known).sum(-1) / known.sum(-1).clamp(min=1)  # [B]


def features(content: Content, on_product: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Columns of `cube_features` of a batch, [B] and HISTOGRAM [B, bins]; NaN where a similarity is not known.

    Args: on_product: bool [B, L], true for an action on a product, with or without a vector.
    """
    found = similarities(content)
    cosines, known = found.behaviors, found.behaviors_known  # [B, L], [B, L]
    some, used = known.any(-1), content.behaviors_known.sum(-1).numpy()  # [B], [B]
    return {
        "target_query_similarity": torch.where(found.target_query_known, found.target_query, torch.nan).numpy(),
        "behavior_similarity_max": torch.where(some, largest(cosines, known), torch.nan).numpy(),
        "behavior_similarity_mean": torch.where(some, mean(cosines, known), torch.nan).numpy(),
        HISTOGRAM: histogram(cosines, known).numpy(),  # [B, bins]
        "behaviors_used": used,
        "behaviors_missing": on_product.sum(-1) - used,
    }
