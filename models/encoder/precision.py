"""The number type to compute in: bfloat16 where it was asked for and the hardware has instructions for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def computing_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 if it was asked for, or on "auto" where the hardware has instructions for it: emulated it is slow."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else "avx512_bf16" in cpu_flags()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def cpu_flags() -> frozenset[str]:
    """The processor's flags, as Linux names them; none on another system, where float32 is right everywhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    lines = [line for line in path.read_text().splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split()) if lines else frozenset()
