"""Negatives of a pair: masks of who may repel whom, rows of other processes, rows of earlier batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def repel_mask(groups_a: Tensor, groups_b: Tensor) -> Tensor:
    """bool [B, C]: true where a row of each share no group, so that neither is the other's twin.

    Args:
        groups_a: int64 [B, G], a column for each kind of group (query content, item content, product, SPU); -1 is none.
        groups_b: int64 [C, G], the same columns.
    """
    shared = torch.zeros(len(groups_a), len(groups_b), dtype=torch.bool, device=groups_a.device)
    for a, b in zip(groups_a.unbind(1), groups_b.unbind(1), strict=True):  # column by column: [B, C, G] would be large
        shared |= (a[:, None] == b) & (a[:, None] >= 0)
    return ~shared


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, with gradient; the tensor itself in a single process.

    The *mean* over processes of the parameters' gradients, which is what DistributedDataParallel and an averaging
    all-reduce leave, is the gradient of the mean of the processes' losses. So where each process takes the loss of all
    gathered rows, that mean equals the gradient of one large batch, for the loss's own parameters too: nothing is to be
    multiplied by the number of processes. Average first, clip then.

    All processes must call it alike, as often and in the same order; their numbers of rows may differ.

    Args: tensor: [B, ...], of any type that can be sent; integers (groups, contents) come back without gradient.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    return _Gather.apply(tensor)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward, each process takes what all of them ask of its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [int(count) for count in _of_all(torch.tensor(len(rows), device=rows.device))]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(_of_all(padded), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, ctx.start, ctx.count)


def _of_all(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process; all have one shape."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts


class NegativeQueue(nn.Module):
    """The last item vectors of earlier batches, with what tells twins: further negatives that cost no forward pass.

    A ring: new rows take the place of the oldest. All of it is in the state dict. With several processes push
    `gathered` rows, so that all hold the same queue.

    Args:
        size: rows that it holds when full.
        dimension: of a vector.
        groups: columns of the groups, as in `repel_mask`.

    Source: MOON's temporal negatives; the queue is MoCo's (arXiv 1911.05722), without its second encoder, which is why
        `staleness` should be watched.
    """

    def __init__(self, size: int, dimension: int, groups: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue of {size} rows holds nothing")
        self.register_buffer("_vectors", torch.zeros(size, dimension))
        self.register_buffer("_groups", torch.zeros(size, groups, dtype=torch.int64))
        self.register_buffer("_contents", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("_pushed", torch.tensor(0))
        self._vectors: Tensor
        self._groups: Tensor
        self._contents: Tensor
        self._pushed: Tensor

    def __len__(self) -> int:
        return min(int(self._pushed), len(self._vectors))

    @property
    def vectors(self) -> Tensor:
        """float32 [E, D] without gradient: what the queue holds, E rows in no order that matters."""
        return self._vectors[: len(self)]

    @property
    def groups(self) -> Tensor:
        """int64 [E, G], row by row those of `vectors`."""
        return self._groups[: len(self)]

    @property
    def contents(self) -> Tensor:
        """int64 [E], row by row those of `vectors`."""
        return self._contents[: len(self)]

    @torch.no_grad()
    def push(self, vectors: Tensor, groups: Tensor, contents: Tensor) -> None:
        """Take in a batch's items, after its loss: float [B, D], int64 [B, G], int64 [B] (numbers of contents)."""
        size = len(self._vectors)
        new = range(max(0, len(vectors) - size), len(vectors))  # the end of a larger batch
        places = (self._pushed + torch.arange(new.start, new.stop, device=self._vectors.device)) % size
        self._vectors[places] = vectors[new.start :].to(self._vectors)
        self._groups[places] = groups[new.start :]
        self._contents[places] = contents[new.start :]
        self._pushed += len(vectors)

    @torch.no_grad()
    def staleness(self, contents: Tensor, current_vectors: Tensor) -> float:
        """The mean cosine of cached and current vectors over the contents that it holds: 1 is fresh; nan if none is.

        Args:
            contents: int64 [B], numbers of contents as they were pushed.
            current_vectors: float [B, D], of these contents by the encoder of now.
        """
        cached, current = torch.nonzero(self.contents[:, None] == contents, as_tuple=True)
        return float(F.cosine_similarity(self.vectors[cached], current_vectors[current].to(self._vectors)).mean())
