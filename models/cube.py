"""CUBE, the content-based user behaviour extractor: what the vectors of target, query and behaviours say together.

One function computes the similarities. Training, the `cube_features` job and the online scorer all call it, so that an
impression has the same similarities wherever it is looked at. Everything is masked: a vector that is missing takes part
in nothing, and is counted.

Source:  MOON (arXiv 2511.11305), figure 5; SimTier (arXiv 2407.19467), section 4.2, for the histogram.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HISTOGRAM_BINS = 20


class Similarities(NamedTuple):
    """Cosines in [-1, 1], within the rounding of the vectors; 0 where a side has no vector: the masks tell."""

    target_query: Tensor  # float32 [B]
    target_query_known: Tensor  # bool [B]
    behaviors: Tensor  # float32 [B, L], target against each behaviour
    behaviors_known: Tensor  # bool [B, L]


def similarities(
    target: Tensor,
    query: Tensor,
    behaviors: Tensor,
    *,
    target_known: Tensor,
    query_known: Tensor,
    behaviors_known: Tensor,
) -> Similarities:
    """The cosines of each impression's target with its query and with its user's behaviours.

    Args:
        target, query: float32 [B, D], unit rows of one embedding space.   behaviors: float32 [B, L, D].
        target_known, query_known: bool [B].   behaviors_known: bool [B, L]; false for padding and for missing vectors.
    """
    pair_known = target_known & query_known  # [B]
    each_known = target_known[:, None] & behaviors_known  # [B, L]
    with_query = (target * query).sum(-1)  # [B, D] -> [B]
    with_each = torch.einsum("bd,bld->bl", target, behaviors)  # [B, L]
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
