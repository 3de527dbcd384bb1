"""A measurement in a process of its own: seconds and peak memory after imports, and a stop when it takes too much."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_LIMIT_BYTES = 16 << 30
TIME_LIMIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one process.

    Attributes:
        seconds: wall time of the measured call.
        cpu: seconds of all its threads on a processor: what a busy machine leaves as it is.
        peak: bytes of the whole process at its peak, imports included; `above` what the call added to them.
        digest: hash of the result; empty when there was none.
        stopped: why the process was ended, or how it failed; empty when it came to its end.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    above: int = 0
    digest: str = ""
    rows: int = 0
    stopped: str = ""


def measure(call: Callable[[], Any], digest: Callable[[Any], tuple[str, int]]) -> None:
    """Run the call in this process and print what it took as one line of JSON; the result's digest is not counted."""
    _reset_peak()
    before = _memory("VmRSS")
    started, used = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = _memory("VmHWM")
    found, rows = digest(result)
    print(
        json.dumps(
            {"seconds": seconds, "cpu": cpu, "peak": peak, "above": peak - before, "digest": found, "rows": rows}
        )
    )


def run(module: str, arguments: Sequence[str], python: Path | str = sys.executable) -> Measured:
    """The figures of `python -m module arguments`, which is ended at the limits of memory and time."""
    process = subprocess.Popen(
        [python, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started, stopped = time.monotonic(), ""
    while process.poll() is None and not stopped:
        time.sleep(0.1)
        if _memory("VmRSS", process.pid) > MEMORY_LIMIT_BYTES:
            stopped = f"over {MEMORY_LIMIT_BYTES >> 30} GB after {time.monotonic() - started:.0f} s"
        elif time.monotonic() - started > TIME_LIMIT_SECONDS:
            stopped = f"over {TIME_LIMIT_SECONDS / 60:.0f} min"
    if stopped:
        process.kill()
    output, errors = process.communicate()
    if stopped:
        return Measured(stopped=stopped)
    if process.returncode != 0:
        lines = [line for line in errors.splitlines() if line.strip()]
        return Measured(stopped=f"failed: {lines[-1][:120]}" if lines else f"failed: exit {process.returncode}")
    return Measured(**json.loads(output.splitlines()[-1]))


def _memory(field: str, pid: int | str = "self") -> int:
    """Bytes of a field of the process's status; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:")), 0)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
