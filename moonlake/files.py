"""Files and folders that are whole or absent, and blocks that one process at a time is in."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

_HERE = -100
"""AT_FDCWD of Linux: paths are what they say."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """An empty file to write, which takes the place of `path` at the end; after an error nothing has changed.

    It lies in the folder of `path`, which has to be there, under a hidden name that ends in the name of `path`. Its
    bytes are on the disk before it gets that name, and the name before the block is left: after a power cut too the old
    file is there or the new one. Of two writers at once, the one that ends last is read afterwards. What a process that
    was killed had written is removed by the next that writes the same file.
    """
    with _unfinished(path, folder=False) as file:
        yield file
        _sync(file)
        file.replace(path)
        _sync(path.parent)


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; after an error nothing has changed.

    A reader finds the old folder or the new one, never none, where the system can exchange two names (Linux). What a
    process that was killed had filled is removed by the next that publishes the same folder. Files are not forced to
    the disk: they are large, and what is published states their hashes: a reader sees what a power cut has torn.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(folder, folder=True) as filling:
        yield filling
        _take_place(filling, folder)


@contextmanager
def exclusive(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """A block that one process at a time is in, of all that name this file; a process that dies leaves it.

    Args: wait: until the others are out; else the block runs at once, and is told whether it is alone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _unfinished(target: Path, *, folder: bool) -> Iterator[Path]:
    """A new hidden file or folder beside the target, held by this process, and gone at the end but for a new name."""
    _remove_abandoned(target)
    path, held = _new_held(target, folder=folder)
    try:
        yield path
    finally:
        _remove(path)
        os.close(held)


def _new_held(target: Path, *, folder: bool) -> tuple[Path, int]:
    """A hidden file or folder beside the target, and the descriptor whose lock says that its process lives."""
    while True:
        path = target.with_name(f".{uuid4().hex[:8]}-{target.name}")
        if folder:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        with suppress(FileNotFoundError):  # taken for an abandoned one by another process, before it was held
            held = os.open(path, os.O_RDONLY)
            if _hold(held) is not False and path.exists():
                return path, held
            os.close(held)


def _remove_abandoned(target: Path) -> None:
    """Remove what processes that no longer live were making to take the place of the target."""
    for path in target.parent.glob(f".{'[0-9a-f]' * 8}-{escape(target.name)}"):
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            if _hold(descriptor):
                _remove(path)
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _hold(descriptor: int) -> bool | None:
    """Whether this process holds a file or folder now; None where the file system cannot say."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


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
