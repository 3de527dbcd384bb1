"""The one hash of the lake, of texts, bytes and files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def stable_hash(data: str | bytes) -> str:
    """128-bit BLAKE2b of the data as 32 hexadecimal digits: the form of every hash in the lake."""
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def hash_of_file(path: Path) -> str:
    """`stable_hash` of a file's bytes, of which a part is held at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
