"""Rows of a table for ids without a vocabulary: a hash of their text that is the same on every machine, now and later.

FNV-1a of the UTF-8 bytes, 64 bit, mixed by the finaliser of MurmurHash3 and taken modulo the number of rows: FNV alone
spreads ids that differ in their last letters unevenly. Of n ids in R rows, each shares its row with another one with
probability 1 - (1 - 1/R)^(n - 1), about n / R where that is small: 1% with a hundred rows for every id.

Source:  Weinberger et al. 2009 (arXiv 0902.2206) for hashed features; draft-eastlake-fnv for FNV-1a.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Int64s, UInt64s

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


def hashed_rows(ids: pa.Array | pa.ChunkedArray, rows: int) -> Int64s:
    """The row of each id, int64 [n] in [0, rows); -1 for null. Each different id is hashed once.

    >>> hashed_rows(pa.array(["u1", "u2", None, "u1"]), 1000).tolist()
    [785, 918, -1, 785]
    """
    chunked = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
    coded = chunked.cast(pa.large_string()).combine_chunks().dictionary_encode()
    row_of = (mixed(fnv1a(coded.dictionary)) % np.uint64(rows)).astype(np.int64)
    place = pc.fill_null(coded.indices, len(row_of)).to_numpy()
    return np.append(row_of, -1)[place]


def fnv1a(texts: pa.Array) -> UInt64s:
    """FNV-1a of each text's UTF-8 bytes, uint64 [n]; a loop over places, for all texts at once.

    >>> hex(fnv1a(pa.array(["foobar"]))[0])
    '0x85944171f73967e8'
    """
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    octets = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    hashes = np.full(len(texts), _FNV_OFFSET)
    left = np.flatnonzero(edges[1:] > edges[:-1])
    at = edges[left]
    while len(left):
        hashes[left] = (hashes[left] ^ octets[at]) * _FNV_PRIME
        more = at + 1 < edges[left + 1]
        left, at = left[more], at[more] + 1
    return hashes


def mixed(hashes: UInt64s) -> UInt64s:
    """The hashes with every bit depending on all: the finaliser of MurmurHash3, one to one."""
    for factor in _MIX:
        hashes = (hashes ^ (hashes >> np.uint64(33))) * factor
    return hashes ^ (hashes >> np.uint64(33))
