"""The scale of kernels that batch normalisation makes free of scale."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def set_kernel_std(tower: nn.Module, std: float) -> None:
    """Scale kernels that learn and that a batch normalisation follows to a standard deviation.

    What the tower computes stays, but for the little that normalisation adds to a variance. A normalised kernel has a
    direction alone, and a short one is turned further by an update of the same size. Training makes kernels longer, so
    without this a later stage learns at a fraction of the rate that it is told.

    Args: tower: one that names each normalisation right after the convolution that it follows, as timm's do.

    Source: van Laarhoven, "L2 regularization versus batch and weight normalization" (arXiv 1706.05350), for the effect.
    """
    kernel: nn.Conv2d | None = None
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d) and kernel is not None and kernel.out_channels == module.num_features:
            scale = std / kernel.weight.std(correction=0).clamp(min=1e-12)
            kernel.weight.mul_(scale)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.mul_(scale)
                module.running_var.mul_(scale**2)
        if isinstance(module, nn.Conv2d):
            kernel = module if module.bias is None and module.weight.requires_grad else None
        elif isinstance(module, nn.BatchNorm2d):
            kernel = None
