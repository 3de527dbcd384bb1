"""An index of where a content's vector lies: 128-bit content ids as sorted halves, looked up by binary search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Bools, Float64s, Int64s, UInt64s
from moonlake.errors import ContractError


@dataclass(frozen=True, slots=True)
class ContentIndex:
    """The place of each content id: `high` and `low` are the halves [N] of 128-bit ids, sorted."""

    high: UInt64s
    low: UInt64s

    def rows_of(self, content_ids: pa.Array | pa.ChunkedArray) -> Int64s:
        """The place of each id [n]; -1 where it is null or not there. Each distinct id is looked up once."""
        chunks = content_ids.chunks if isinstance(content_ids, pa.ChunkedArray) else [content_ids]
        encoded = pa.concat_arrays(chunks or [pa.array([], pa.string())]).dictionary_encode()
        places = np.append(self._places(*words_of(encoded.dictionary)), -1)
        rows: Int64s = places[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return rows

    def _places(self, high: UInt64s, low: UInt64s, well_formed: Bools) -> Int64s:
        places = np.full(len(high), -1, np.int64)
        tried = np.searchsorted(self.high, high)
        pending = np.flatnonzero(well_formed & (tried < len(self.high)))
        while len(pending):  # once, but for ids that share their first 64 bits
            same = self.high[tried[pending]] == high[pending]
            hit = same & (self.low[tried[pending]] == low[pending])
            places[pending[hit]] = tried[pending[hit]]
            pending = pending[same & ~hit]
            tried[pending] += 1
            pending = pending[tried[pending] < len(self.high)]
        return places

    def part(self, rows: slice) -> ContentIndex:
        """Some of the ids."""
        return ContentIndex(self.high[rows], self.low[rows])

    def drawn(self, seed: int, count: int) -> UInt64s:
        """`count` random numbers of each id, [N, count]; they hang on the id and the seed alone."""
        of_seed = np.random.default_rng(seed).integers(2**64, size=count, dtype=np.uint64)
        return _mixed(_mixed(self.high[:, None] ^ of_seed) ^ self.low[:, None])

    def normal(self, seed: int, count: int) -> Float64s:
        """The same as normal deviates, by Box and Muller."""
        radius, angle = np.split((self.drawn(seed, 2 * count) >> np.uint64(11)) * 2.0**-53, 2, axis=1)  # in [0, 1)
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def in_order(ids: Sequence[tuple[UInt64s, UInt64s, Bools]], where: str) -> tuple[UInt64s, UInt64s, Int64s]:
    """Sorted halves of ids that `words_of` gave part by part, and the place of each before. Raises ContractError."""
    high, low, well_formed = (np.concatenate(part) for part in zip(*ids, strict=True))
    if not well_formed.all():
        raise ContractError(f"{where}: a content_id is not 32 hexadecimal digits")
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    twice = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if len(twice):
        name = f"{high[twice[0]]:016x}{low[twice[0]]:016x}"
        raise ContractError(f"{where}: content {name} has two vectors; a space has one each")
    return high, low, order


def words_of(content_ids: pa.Array) -> tuple[UInt64s, UInt64s, Bools]:
    """The 128-bit numbers that the ids [n] write in hexadecimal, as two halves, and whether each id is well formed."""
    count = len(content_ids)
    right = pc.fill_null(pc.equal(pc.binary_length(content_ids), 32), False)
    text = pc.if_else(right, content_ids, "0" * 32).cast(pa.large_string())
    start = np.frombuffer(text.buffers()[1], np.int64)[text.offset] if count else 0
    letters = np.frombuffer(text.buffers()[2], np.uint8, 32 * count, start) if count else np.zeros(0, np.uint8)
    nibbles = _NIBBLE_OF_LETTER[letters].reshape(count, 32)
    halves = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8").astype(np.uint64)
    well_formed = right.to_numpy(zero_copy_only=False) & (nibbles != 255).all(axis=1)
    return halves[:, 0], halves[:, 1], well_formed


_NIBBLE_OF_LETTER = np.full(256, 255, np.uint8)
_NIBBLE_OF_LETTER[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _mixed(words: UInt64s) -> UInt64s:
    """Each number with its bits mixed, one to one.   Source: the finaliser of SplitMix64 (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
