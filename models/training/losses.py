"""Contrastive losses: unit vectors and a mask of who may repel whom in, a scalar out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCALE = 100.0
"""Largest inverse temperature, as in CLIP."""


class ContrastiveLoss(nn.Module, ABC):
    """Each query is to be nearer to its own item than to the others, and each item to its own query.

    The losses of this form differ only in how a cosine becomes a logit. They are computed in float32 at least, whatever
    the vectors' type and autocast.
    """

    @abstractmethod
    def logits(self, similarity: Tensor, own: Tensor) -> Tensor:
        """float [B, C], from cosines [B, C]; `own` bool [B, C] is true where the column belongs to the row."""

    def forward(
        self,
        queries: Tensor,
        items: Tensor,
        repel: Tensor,
        more_items: Tensor | None = None,
        more_repel: Tensor | None = None,
    ) -> Tensor:
        """The mean of both directions' cross entropy, a scalar. A row that nothing repels adds 0.

        Args:
            queries: float [B, D], unit rows; row i belongs to row i of `items`.
            items: float [B, D], unit rows.
            repel: bool [B, B], true where query i and item j may repel each other. The diagonal is not read.
            more_items: float [E, D], unit rows that only repel queries: hard negatives, a queue.
            more_repel: bool [B, E], true where query i and further item e may repel each other.
        """
        columns = items
        if more_items is not None:
            if more_repel is None:
                raise ValueError("more_items needs more_repel, or twins among them would repel")
            columns, repel = torch.cat([items, more_items]), torch.cat([repel, more_repel], 1)
        similarity = _cosines(queries, columns)  # [B, B + E]
        own = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
        logits = self.logits(similarity, own).masked_fill(~(repel | own), -torch.inf)
        target = torch.arange(len(items), device=logits.device)
        by_query = F.cross_entropy(logits, target)
        by_item = F.cross_entropy(logits[:, : len(items)].T, target)
        return (by_query + by_item) / 2


class InfoNCE(ContrastiveLoss):
    """Symmetric InfoNCE with a temperature that is learnt or fixed.

    Source: MOON, section 3; the learnt temperature is CLIP's.
    """

    def __init__(self, temperature: float, *, learn_temperature: bool) -> None:
        super().__init__()
        if temperature < 1 / MAX_SCALE:
            raise ValueError(f"temperature {temperature} is below {1 / MAX_SCALE}")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    def logits(self, similarity: Tensor, own: Tensor) -> Tensor:  # noqa: ARG002
        with torch.no_grad():  # a clamp with gradient would have none beyond the bound, and never come back
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp() * similarity


class CircleLoss(ContrastiveLoss):
    """Circle loss: a cosine pulls the harder, the farther it is from its optimum.

    Args:
        margin: 0.25, say: own pairs are wanted above 1 - margin, others below margin.
        gamma: the scale; larger than InfoNCE's, as the weights are mostly below one.

    Source: Sun et al. 2020 (arXiv 2002.10857), equations 6 to 8, with one positive a row.
    """

    def __init__(self, margin: float, gamma: float) -> None:
        super().__init__()
        if not 0 <= margin < 1 or gamma <= 0:
            raise ValueError(f"margin {margin} is not in [0, 1) or gamma {gamma} is not positive")
        self.margin, self.gamma = margin, gamma

    def logits(self, similarity: Tensor, own: Tensor) -> Tensor:
        distance = torch.where(own, 1 + self.margin - similarity, similarity + self.margin)  # to the optimum
        boundary = torch.where(own, 1 - self.margin, self.margin)
        weight = distance.detach().clamp(min=0)  # the paper's gradient (equation 10) takes it as a constant
        return self.gamma * weight * (similarity - boundary)


class Matryoshka(nn.Module):
    """A contrastive loss over nested prefixes of the vectors, each cut and normalised again; their weighted mean.

    Args:
        loss: what each prefix is trained with.
        prefixes: numbers of leading dimensions, the whole among them if it is to be trained too.
        weights: of each prefix; all equal if not given.

    Source: Kusupati et al. 2022 (arXiv 2205.13147).
    """

    def __init__(self, loss: ContrastiveLoss, prefixes: Sequence[int], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(prefixes) if weights is None else weights
        if len(weights) != len(prefixes) or min(prefixes, default=0) < 1 or min(weights) < 0 or not sum(weights):
            raise ValueError(f"prefixes {prefixes} want at least one dimension each, and weights {weights} as many")
        self.loss = loss
        self.prefixes = tuple(prefixes)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(
        self,
        queries: Tensor,
        items: Tensor,
        repel: Tensor,
        more_items: Tensor | None = None,
        more_repel: Tensor | None = None,
    ) -> Tensor:
        """The mean over the prefixes, a scalar; arguments as in `ContrastiveLoss.forward`."""
        queries, items = _precise(queries), _precise(items)
        more_items = None if more_items is None else _precise(more_items)
        losses = []
        for prefix in self.prefixes:
            more = None if more_items is None else _cut(more_items, prefix)
            losses.append(self.loss(_cut(queries, prefix), _cut(items, prefix), repel, more, more_repel))
        by_prefix = torch.stack(losses)
        return (by_prefix * by_prefix.new_tensor(self.weights)).sum()


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """float32 or wider [B, C]: autocast would round the product, and bfloat16 tells no two good neighbours apart."""
    with torch.autocast(left.device.type, enabled=False):
        return _precise(left) @ _precise(right).T


def _cut(vectors: Tensor, prefix: int) -> Tensor:
    if prefix > vectors.shape[1]:
        raise ValueError(f"a prefix of {prefix} dimensions cannot be cut from vectors of {vectors.shape[1]}")
    return F.normalize(vectors[:, :prefix], dim=-1)


def _precise(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
