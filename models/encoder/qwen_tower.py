"""Vision towers of the Qwen-VL family on batches of equally large images: as they are, but no step loops over images.

Stock towers pack the patches of all images into one sequence and then attend, and number positions, image by image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

SEGMENT_ATTENTION = "moonlake_flash_segments"
"""Name of the attention function. transformers hands the bounds of segments to names with "flash" in them; any other
function is called once for each image."""


def without_image_loops(tower: Any) -> None:
    """Let a tower attend with `segment_attention` and project its patches by a matrix product; its weights stay."""
    AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)
    tower.config._attn_implementation = SEGMENT_ATTENTION
    tower.patch_embed.proj = PatchProjection(tower.patch_embed.proj)


def flatten_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """The input form of the towers: float [N * h * w, 3 * frames * patch * patch].

    Patches that the tower merges into one token follow each other; a still image is repeated over `frames`.

    Args: pixels: float [N, 3, H, W]; H and W are multiples of patch * merge.
    """
    count, channels, height, width = pixels.shape
    h, w = height // patch, width // patch
    blocks = pixels.reshape(count, channels, h // merge, merge, patch, w // merge, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [N, h/m, w/m, m, m, 3, patch, patch]
    blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], frames, patch, patch)
    return blocks.reshape(count * h * w, channels * frames * patch * patch)


def positions(tower: Any, grid: Tensor) -> dict[str, Tensor]:
    """Arguments of `get_image_features` that a tower would compute image by image, made from the first image's.

    Args: grid: int64 [N, 3], (1, h, w) in patches, N times the same.
    """
    count, merge = len(grid), tower.spatial_merge_size
    found = {"position_ids": get_vision_position_ids(grid[:1], merge).repeat(count, 1)}
    if hasattr(tower, "window_size"):
        index, bounds = get_vision_window_index(grid[:1], merge, tower.window_size, tower.patch_size)
        image = torch.arange(count, device=grid.device).unsqueeze(1)
        found["window_index"] = (index.to(grid.device) + image * len(index)).flatten()
        ends = (bounds[1:] + image * bounds[-1]).flatten()
        found["cu_window_seqlens"] = F.pad(ends, (1, 0)).to(bounds.dtype)
    return found


def segment_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001 handed over by name
    *,
    cu_seq_lens_q: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """float [1, S, heads, d]: attention of each place to the places of its own segment, equal lengths at once.

    Args:
        query, key, value: float [1, heads, S, d].
        cu_seq_lens_q: int [segments + 1], where each segment begins, and S.
    """
    lengths = cu_seq_lens_q.diff()
    result = torch.empty_like(query[0])
    for length in sorted(set(lengths.tolist())):
        starts = cu_seq_lens_q[:-1][lengths == length]
        places = starts[:, None] + torch.arange(length, device=query.device)  # [n, length]
        q, k, v = (one[0][:, places].transpose(0, 1) for one in (query, key, value))  # [n, heads, length, d]
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        result[:, places] = attended.transpose(0, 1)
    return result.transpose(0, 1).unsqueeze(0), None


class PatchProjection(nn.Module):
    """A convolution over patches that are as large as its kernel: one matrix product with the same weights."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        """float [n, width] of patches [n, 3, frames, patch, patch]."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
