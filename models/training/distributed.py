"""Several processes that train one model: each computes its part of every batch, and all take the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Processes:
    """The number of processes that train together, and the rank of this one."""

    rank: int
    count: int


def processes() -> Processes:
    """The processes of this run: one, unless they were joined."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes(0, 1)


def is_first() -> bool:
    """True in the one process that writes."""
    return processes().rank == 0


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that `torchrun` started, joined until the end of the block; this one alone without it."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield processes()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Nothing, once every process is here."""
    if processes().count > 1:
        dist.barrier()


def start_alike(model: nn.Module) -> None:
    """Give every process the weights of the first."""
    if processes().count > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def total(value: int) -> int:
    """The sum of a number over all processes."""
    if processes().count == 1:
        return value
    summed = torch.tensor(value)
    if torch.cuda.is_available():
        summed = summed.cuda()
    dist.all_reduce(summed)
    return int(summed)


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes."""
    if processes().count == 1:
        return value
    summed = value.clone()
    dist.all_reduce(summed)
    return summed / processes().count


def average_gradients(model: nn.Module) -> None:
    """Give every process the mean of all processes' gradients; see `models.training.negatives.gathered`."""
    count = processes().count
    if count == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A part of a batch without any image leaves the tower without a gradient in one process, not in another.
    known = torch.tensor([float(one.grad is not None) for one in trained], device=trained[0].device)
    dist.all_reduce(known)
    learning = [parameter for parameter, share in zip(trained, known.tolist(), strict=True) if share]
    gradients: list[Tensor] = [torch.zeros_like(one) if one.grad is None else one.grad for one in learning]
    summed = torch.cat([gradient.float().flatten() for gradient in gradients])  # one message, not hundreds
    dist.all_reduce(summed)
    means = torch.split(summed / count, [one.numel() for one in learning])
    for parameter, mean in zip(learning, means, strict=True):
        # In the parameter's own memory order: fused AdamW reads both side by side as they lie.
        parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))
