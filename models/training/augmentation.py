"""Light image augmentation on whole batches: integer work on bytes, cheap beside the smallest vision tower."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moonlake.arrays import Float64s, Int64s, UInt8s

DRAWS = 10
"""Uniform numbers that the augmentation of one image takes."""
MAX_ZOOM = 1.35
MAX_SHIFT = 0.06
"""Share of the picture's side."""
MAX_LIGHT = 0.2
"""Largest change of brightness (half of it), of contrast, and of each colour's share (a third of it)."""


def augment(images: UInt8s, draws: Float64s) -> Tensor:
    """float32 [N, 3, H, W] in [0, 1], channels last: each picture flipped, zoomed, stretched, shifted and re-lit.

    Rows and columns are picked whole (nearest neighbour; beyond the border its pixels are repeated), and light,
    contrast and colour are one linear map per image and channel.

    Args:
        images: uint8 [N, H, W, 3].
        draws: [N, DRAWS], uniform in [0, 1): the same ones give the same pictures.
    """
    height, width = images.shape[1:3]
    signed = 2 * draws - 1
    zoom = MAX_ZOOM ** signed[:, 0]
    stretch = MAX_ZOOM ** (signed[:, 1] / 3)
    rows = _picked(height, zoom * stretch, signed[:, 2] * MAX_SHIFT)  # [N, H]
    columns = _picked(width, zoom / stretch, signed[:, 3] * MAX_SHIFT)  # [N, W]
    flipped = draws[:, 4] < 0.5
    columns[flipped] = columns[flipped, ::-1]
    moved = np.empty_like(images)
    for picture, across, down, out in zip(images, columns, rows, moved, strict=True):  # 4 times a whole-batch gather
        np.take(picture[down], across, axis=1, out=out, mode="clip")
    return _relit(torch.from_numpy(moved), torch.from_numpy(signed[:, 5:10].astype(np.float32)))


def _picked(size: int, zoom: Float64s, shift: Float64s) -> Int64s:
    """int64 [N, size]: which row of a picture stands in each place after the move."""
    places = (np.arange(size) + 0.5) / size - 0.5
    source = (places * zoom[:, None] + shift[:, None] + 0.5) * size
    return np.clip(np.floor(source).astype(np.int64), 0, size - 1)


def _relit(images: Tensor, signed: Tensor) -> Tensor:
    """Args: signed: [N, 5] in [-1, 1]: colours, contrast, brightness."""
    count, height, width, channels = images.shape
    gain = (1 + signed[:, :3] * MAX_LIGHT / 3) * (1 + signed[:, 3:4] * MAX_LIGHT)  # [N, 3]
    offset = 0.5 + signed[:, 4:5] * MAX_LIGHT / 2 - 0.5 * gain
    gain, offset = ((one.repeat(1, width).unsqueeze(1)) for one in (gain / 255, offset))  # [N, 1, W * 3]: long runs
    lit = images.view(count, height, width * channels).float().mul_(gain).add_(offset).clamp_(0, 1)
    return lit.view(images.shape).permute(0, 3, 1, 2)
