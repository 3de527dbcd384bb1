"""Folders that are whole or not there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; after an error nothing has changed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    filling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    aside = filling.with_name(f"{filling.name}-old")  # a rename cannot replace a folder that is not empty
    try:
        yield filling
        filling.chmod(0o755)
        if folder.exists():
            folder.rename(aside)
        filling.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(filling, ignore_errors=True)
