"""Contrastive losses: tensors in, a scalar out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCALE = 100.0
"""Largest inverse temperature, as in CLIP."""


class InfoNCE(nn.Module):
    """Symmetric InfoNCE with in-batch negatives and a temperature that is learnt or fixed.

    Source: MOON, section 3; the learnt temperature is CLIP's.
    """

    def __init__(self, temperature: float, *, learn_temperature: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    def forward(self, queries: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """The loss of unit vectors [B, D] against [B, D]; see `info_nce`."""
        return info_nce(queries, items, negatives, self.log_scale.exp().clamp(max=MAX_SCALE))


def info_nce(queries: Tensor, items: Tensor, negatives: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of both directions' cross entropy: query i against the items, item i against the queries.

    Args:
        queries: float [B, D], row i belongs to row i of `items`.
        items: float [B, D].
        negatives: bool [B, B], symmetric; true where row and column may repel each other. The diagonal is not read.
        scale: inverse temperature.
    """
    logits = scale * queries @ items.T  # [B, B]
    keep = negatives | torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~keep, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def in_batch_negatives(*groups: Tensor) -> Tensor:
    """bool [B, B]: true where two pairs of a batch share nothing, so that they may be each other's negatives.

    Args: groups: int64 [B] each: the number of a pair's query, content, product, SPU; -1 where it has none.
    """
    negatives = torch.ones(len(groups[0]), len(groups[0]), dtype=torch.bool, device=groups[0].device)
    for group in groups:
        same = (group.unsqueeze(0) == group.unsqueeze(1)) & (group >= 0)
        negatives &= ~same
    return negatives.fill_diagonal_(False)
