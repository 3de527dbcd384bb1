"""The parts that studies of hours share: workers that end with their study, settings by name."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moonlake.words import json_by_name

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""What the environment tells workers, since each of them is one of as many as there are cores."""


def one_thread() -> None:
    """Keep this process and those that it starts to one thread each."""
    os.environ.update(ONE_THREAD)
    torch.set_num_threads(1)


def open_worker() -> None:
    """Make this process a worker: of one thread, and ended with the process that started it, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def commit() -> str:
    """The commit of the code, marked where files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def settings_of(given: Sequence[str], known: set[str], what: str) -> dict[str, Any]:
    """Values from words like name=value, where a value is JSON or a plain word.

    >>> settings_of(["steps=3", "loss=circle"], {"steps", "loss"}, "--set")
    {'steps': 3, 'loss': 'circle'}
    """
    found = json_by_name(given, what, names=known)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def say(line: str) -> None:
    """Write a line to the standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
