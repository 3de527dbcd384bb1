"""Free memory: of a GPU, of the machine, of the container."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def available_bytes(device: torch.device | None = None) -> int:
    """Memory that is free: of the GPU, or of the machine or container."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():  # not Linux: all that there is, which refuses only what can never fit
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return min(free, _left_in_container())


def _left_in_container() -> int:
    """Bytes that control groups (version 2) leave; files that are only cached do not count as used."""
    group = Path("/sys/fs/cgroup")
    limit, used, detail = group / "memory.max", group / "memory.current", group / "memory.stat"
    if not (limit.is_file() and used.is_file() and detail.is_file()) or limit.read_text().strip() == "max":
        return 2**63
    stat = dict(line.split() for line in detail.read_text().splitlines())
    return int(limit.read_text()) - int(used.read_text()) + int(stat.get("inactive_file", 0))
