"""Light image augmentation on whole batches, seeded by a generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ZOOM = 1.35
MAX_SHIFT = 0.12
"""Share of half the picture."""
MAX_TURN_RADIANS = math.radians(10)
MAX_LIGHT = 0.2
"""Largest change of brightness, contrast and of each colour's share (a third of it)."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """float [N, 3, H, W] in [0, 1]: each picture flipped, zoomed, shifted, turned and re-lit by chance.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        generator: on the CPU; the same state gives the same pictures.
    """
    if not len(images):
        return images
    draws = torch.rand(len(images), 10, generator=generator).to(images.device)
    signed = 2 * draws - 1
    zoom = MAX_ZOOM ** signed[:, 0] * torch.where(draws[:, 1] < 0.5, -1.0, 1.0)
    angle = signed[:, 2] * MAX_TURN_RADIANS
    scale = MAX_ZOOM ** signed[:, 0]
    rows_x = torch.stack([zoom * angle.cos(), -scale * angle.sin(), signed[:, 3] * MAX_SHIFT], 1)
    rows_y = torch.stack([zoom * angle.sin(), scale * angle.cos(), signed[:, 4] * MAX_SHIFT], 1)
    grid = F.affine_grid(torch.stack([rows_x, rows_y], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    colour = 1 + signed[:, 5:8, None, None] * MAX_LIGHT / 3
    contrast = 1 + signed[:, 8, None, None, None] * MAX_LIGHT
    light = signed[:, 9, None, None, None] * MAX_LIGHT / 2
    mean = moved.mean((1, 2, 3), keepdim=True)
    return ((moved - mean) * contrast * colour + mean + light).clamp(0, 1)
