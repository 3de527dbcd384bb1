"""One optimiser step's gradients for a contrastive batch larger than memory, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_DRIFT = 0.1
"""Largest relative difference of a chunk's vectors between the passes: far above rounding, far below a new dropout."""


def cached_step(
    encode: Callable[[slice], tuple[Tensor, ...]],
    chunks: Sequence[slice],
    loss_of: Callable[..., Tensor],
    *,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """The loss of the whole batch, detached; its gradient is added to `.grad` of the parameters, as by `backward`.

    All chunks are encoded without graph, the loss is derived at their vectors, and each chunk is encoded again with
    graph to pass its vectors' gradient on: memory for one chunk, two forward passes. A single chunk is a plain step.

    The second pass repeats the first: each chunk begins from the same random state. What else `encode` changes must not
    show in its vectors; in training mode batch normalisation sees its chunk only, and counts it twice in its averages.
    `loss_of` runs once, so that `gathered` works in it. `encode` must not be wrapped in DistributedDataParallel, which
    would average after each chunk: average `.grad` after the step.

    Args:
        encode: float tensors [n, ...] of a chunk of the batch, say queries, items and hard negatives; their numbers of
            rows may differ and be 0.
        chunks: parts of the batch; row order in `loss_of` is theirs.
        loss_of: a scalar from the tensors of `encode`, each concatenated over the chunks.
        generators: those that `encode` draws from beside PyTorch's own.

    Raises: RuntimeError: the second pass gave other vectors than the first.
    Source: GradCache (arXiv 2101.06983).
    """
    if len(chunks) == 1:
        loss = loss_of(*encode(chunks[0]))
        torch.autograd.backward(loss)
        return loss.detach()
    sources = [torch.default_generator, *torch.cuda.default_generators, *generators]
    states: list[list[Tensor]] = []
    cached: list[list[Tensor]] = []
    for chunk in chunks:
        states.append([source.get_state() for source in sources])
        with torch.no_grad():
            cached.append([vectors.detach().requires_grad_() for vectors in encode(chunk)])
    loss = loss_of(*(torch.cat(column) for column in zip(*cached, strict=True)))
    torch.autograd.backward(loss)
    after = [source.get_state() for source in sources]
    for chunk, state, first in zip(chunks, states, cached, strict=True):
        _set(sources, state)
        _pass_on(first, encode(chunk))
    _set(sources, after)  # where a plain step would have left them
    return loss.detach()


def _pass_on(first: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    """Send the gradients that lie at the vectors of the first pass through the graph of the second."""
    pairs = list(zip(first, again, strict=True))
    for old, new in pairs:
        drift = float((new.detach() - old.detach()).norm() / old.detach().norm())
        if drift > MAX_DRIFT:
            raise RuntimeError(
                f"a chunk's vectors differ between the passes by {drift:.0%} of their length: name each generator that "
                "encode draws from in `generators`, and let its vectors depend on nothing else that changes"
            )
    reached = [(new, old.grad) for old, new in pairs if new.requires_grad and old.grad is not None]
    torch.autograd.backward([new for new, _ in reached], [gradient for _, gradient in reached])


def _set(sources: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    for source, state in zip(sources, states, strict=True):
        source.set_state(state)
