"""Folders that are whole or not there, and blocks that one process at a time is in."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = -100
"""AT_FDCWD of Linux: paths are what they say."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux."""


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; after an error nothing has changed.

    A reader finds the old folder or the new one, never none, where the system can exchange two names (Linux).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    filling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield filling
        filling.chmod(0o755)
        _take_place(filling, folder)
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def _take_place(filling: Path, folder: Path) -> None:
    """Give a folder the name of another, which has the first one's name afterwards or is gone."""
    try:
        filling.rename(folder)
    except OSError:  # there is one already, which is not empty
        if not _exchange(filling, folder):
            aside = filling.with_name(f"{filling.name}-old")
            folder.rename(aside)
            filling.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """True once two folders have exchanged their names at one stroke; false where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """A block that one process at a time is in, of all that name this file; a process that dies leaves it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
