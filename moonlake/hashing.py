"""The one hash of the lake."""

from __future__ import annotations

import hashlib


def stable_hash(data: str | bytes) -> str:
    """128-bit BLAKE2b of the data as 32 hexadecimal digits: the form of every hash in the lake."""
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
