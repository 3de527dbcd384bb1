"""Attention within segments of a packed sequence, equally long ones at once: a batch of images in one call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

SEGMENT_ATTENTION = "moonlake_flash_segments"
"""Name of the attention function. transformers hands the bounds of segments only to names with "flash" in them, and
cuts the sequence into one call for each image for every other."""


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
    """float [1, S, heads, d]: attention of each place to the places of its own segment.

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


def attend_within_segments(tower: Any) -> None:
    """Let a vision tower of the Qwen-VL family attend with `segment_attention`."""
    AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)
    tower.config._attn_implementation = SEGMENT_ATTENTION  # its setter asks for no kernel of flash attention
