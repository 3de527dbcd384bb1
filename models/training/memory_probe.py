"""The memory that a training step will need, estimated before the first one, compared with what is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.encoder.available_memory import available_bytes
from moonlake.errors import InputError

SLACK = 1.2
"""What a step takes over the tensors that are counted: temporaries, the allocator's loss."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Probe:
    """A few prompts of a step.

    Attributes:
        forward: computes their vectors or their loss, with graph; each prompt so many times as it is told.
        prompts: how many it computes.
        at_once: how many a step computes at once.
        prepared_bytes: what the batches that are made ahead take.
        advice: what of the configuration makes a step smaller.
    """

    forward: Callable[[int], Tensor]
    prompts: int
    at_once: int
    prepared_bytes: int
    advice: str


def require_room(model: nn.Module, probe: Probe, optimizer: int) -> None:
    """Raise InputError, with the figures, unless a training step fits into the free memory.

    Args: optimizer: bytes of the gradients and of the optimiser's state.
    """
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    some, more = (saved_bytes(model, probe.forward, copies) for copies in (2, 4))  # weights cast by autocast drop out
    per_prompt = (more - some) / (2 * probe.prompts)
    states = int(per_prompt * probe.at_once)
    device = next(model.parameters()).device
    needed, free = int(SLACK * (optimizer + states + probe.prepared_bytes)), available_bytes(device)
    if needed > free:
        raise InputError(
            f"a training step needs about {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB of memory are free: "
            f"states of {probe.at_once} prompts {states / GIB:.1f}, gradients and optimiser of {trained:,} weights "
            f"{optimizer / GIB:.1f}, prepared batches {probe.prepared_bytes / GIB:.1f}; {probe.advice}"
        )


def saved_bytes(model: nn.Module, forward: Callable[[int], Tensor], copies: int) -> int:
    """Bytes that a forward pass keeps for its backward pass, beside the weights."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward(copies)  # noqa: F841 alive while its tensors are counted: a place that is free again would count once
        return sum(kept.values())
