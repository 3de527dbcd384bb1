"""Muon: momentum whose update of every matrix and kernel is orthogonalised, so that all its directions learn alike.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), in PyTorch for matrices only;
here convolution kernels too, as matrices [out, in * height * width].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 4
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration: singular values come near 1 within a few rounds, none of them exactly."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; weights decay apart from it.

    Args: groups: parameters of at least two dimensions, with `lr` and `weight_decay`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay})
        if any(one.ndim < 2 for group in self.param_groups for one in group["params"]):
            raise ValueError("Muon updates matrices and kernels; give vectors and scalars to another optimiser")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        momentum: Tensor = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(MOMENTUM).add_(gradient)
        update = orthogonalised(gradient.add(momentum, alpha=MOMENTUM).flatten(1))
        rows, columns = update.shape
        scale = max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - rate * decay).add_(update.view(parameter.shape), alpha=-rate * scale)


def orthogonalised(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """float [R, C]: about the nearest matrix of which all singular values are 1; a zero matrix stays zero."""
    a, b, c = QUINTIC
    wide = matrix.float()
    if tall := matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide.T if tall else wide).to(matrix.dtype)
