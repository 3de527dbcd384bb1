"""The length of kernels that batch normalisation makes free of scale."""

from __future__ import annotations

import torch
from torch import nn

from models.encoder.config import TINY
from models.encoder.encoder import Encoder

NEW_STD = 0.02
"""Standard deviation of the weights of a new model, as transformers draws them."""


def shorten_kernels(encoder: Encoder) -> None:
    """Bring the kernels of a tower that began at random back to the length of new ones, for another stage.

    What the tower computes stays. A normalised kernel has a direction alone, and a short one is turned further by an
    update of the same size. Training makes kernels longer, so without this a later stage learns at a fraction of the
    rate that it is told. Pretrained towers are left as they are.

    Source: van Laarhoven, "L2 regularization versus batch and weight normalization" (arXiv 1706.05350), for the effect.
    """
    if encoder.config.backbone == TINY and encoder.config.tiny.tower_weights == "random":
        set_kernel_std(encoder.backbone.tower(), NEW_STD)


@torch.no_grad()
def set_kernel_std(tower: nn.Module, std: float) -> None:
    """Scale every kernel that a batch normalisation follows to a standard deviation.

    The tower computes the same, but for the little that normalisation adds to a variance.

    Args: tower: one that names each normalisation right after the convolution that it follows, as timm's do.
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
            kernel = module if module.bias is None else None
        elif isinstance(module, nn.BatchNorm2d):
            kernel = None
