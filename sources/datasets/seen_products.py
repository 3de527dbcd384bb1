"""The products of a behaviour log: which there are, since when, and when what is said of them changes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from moonlake.arrays import Bools, Int64s, UInt64s
from moonlake.hashing import stable_hash


class SeenProducts:
    """Products seen so far, 24 bytes each: what a log of any length needs of memory.

    Attributes:
        ids: int64 [P], ascending.
        first_us: int64 [P], the earliest time that each was seen.
    """

    def __init__(self) -> None:
        self.ids: Int64s = np.empty(0, np.int64)
        self.first_us: Int64s = np.empty(0, np.int64)
        self._states: UInt64s = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, ids: Int64s, times_us: Int64s, states: UInt64s) -> tuple[Bools, Int64s]:
        """The rows that say something else of their product than the row before, and since when it is known.

        Args:    ids, times_us, states: [N], in the order of the file; `states` are codes of what a row says.
        Returns: bool [N], and int64 [N]: the earliest time that the product was seen, in this row or before.
        """
        order = np.argsort(ids, kind="stable")
        sorted_ids, sorted_states = ids[order], states[order]
        opens = np.append(True, sorted_ids[1:] != sorted_ids[:-1])[: len(ids)]
        starts = np.flatnonzero(opens)
        mine = sorted_ids[starts]  # [G], each id of the rows once
        place = np.searchsorted(self.ids, mine)
        known = place < len(self.ids)
        known[known] = self.ids[place[known]] == mine[known]

        changed = np.append(True, sorted_states[1:] != sorted_states[:-1])[: len(ids)] | opens
        changed[starts[known]] = sorted_states[starts[known]] != self._states[place[known]]
        first = np.minimum.reduceat(times_us[order], starts) if len(ids) else np.empty(0, np.int64)
        first[known] = np.minimum(first[known], self.first_us[place[known]])
        last_states = sorted_states[np.append(starts[1:], len(ids))[: len(starts)] - 1]

        self.first_us[place[known]], self._states[place[known]] = first[known], last_states[known]
        fresh, at = ~known, place[~known]
        self.ids = np.insert(self.ids, at, mine[fresh])
        self.first_us = np.insert(self.first_us, at, first[fresh])
        self._states = np.insert(self._states, at, last_states[fresh])

        begins, since = np.empty(len(ids), np.bool_), np.empty(len(ids), np.int64)
        begins[order], since[order] = changed, np.repeat(first, np.diff(np.append(starts, len(ids))))
        return begins, since


def mixed(*columns: Int64s | UInt64s) -> UInt64s:
    """One well-spread 64-bit code a row, of integers that broadcast together (the finaliser of splitmix64)."""
    code: UInt64s = np.zeros(1, np.uint64)
    for column in columns:
        code = code ^ np.asarray(column).astype(np.uint64)
        code = code + np.uint64(0x9E3779B97F4A7C15)
        code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        code = code ^ (code >> np.uint64(31))
    return code


def codes_of(column: pa.ChunkedArray) -> UInt64s:
    """A code for each value of a column of texts or whole numbers, the same in every run; 0 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = [int(stable_hash(str(value))[:16], 16) for value in encoded.dictionary.to_pylist()]
    return np.array([*codes, 0], np.uint64)[encoded.indices.fill_null(len(codes)).to_numpy()]
