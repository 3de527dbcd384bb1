"""Behaviour sequences as pointers: a log that holds each action once, and (start, stop) into it for each label row.

20 million labels with 200 actions each are 320 MB of pointers and one log, and not 32 GB of ids. Needs pyarrow only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from moonlake.arrays import Int64s
from moonlake.errors import InputError, NotFound
from moonlake.lake.parquet_rows import take_any


def pointer_names(view: str) -> tuple[str, str]:
    """The columns that hold the pointers of a sequence view."""
    return f"{view}__start", f"{view}__stop"


def write_log(path: Path, schema: pa.Schema, blocks: Iterable[pa.Table]) -> None:
    """Lay a log down as an Arrow file: a column for each feature, actions in order of entity and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for block in blocks:
            file.write_table(block)


@dataclass(frozen=True, slots=True)
class SequenceLog:
    """A log that was written, mapped into memory: what is not read costs nothing."""

    actions: pa.Table

    @classmethod
    def open(cls, path: Path) -> Self:
        """The log in a file. Raises NotFound when there is none."""
        if not path.is_file():
            raise NotFound(f"there is no log of behaviour sequences at {path}")
        return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def expand(self, start: Int64s, stop: Int64s, length: int | None = None) -> dict[str, pa.ListArray]:
        """The sequences between pointers by feature: lists, oldest action first.

        Args:
            start, stop: int64 [rows]; both -1 for a row without an entity, which gives null.
            length: of longer sequences the last so many actions.
        """
        if length is not None:
            start = np.maximum(start, stop - length)
        return lists_of(self.actions, None, start, stop)


def lists_of(actions: pa.Table, which: Int64s | None, start: Int64s, stop: Int64s) -> dict[str, pa.ListArray]:
    """By column, the list `actions[which[start:stop]]` of each row; null where stop is -1.

    Args: which: rows of `actions`; None where they lie in the order that is wanted.
    Raises: InputError: more elements than one Arrow list column can have.
    """
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise InputError(
            f"{len(start)} sequences hold {offsets[-1]} actions, more than one Arrow list column can; take fewer rows"
            " at a time, or sequences as pointers"
        )
    small = np.int32 if len(actions) < 2**31 and (which is None or len(which) < 2**31) else np.int64
    places = np.arange(offsets[-1], dtype=small) + np.repeat((start - offsets[:-1]).astype(small), lengths)
    taken = take_any(actions, places if which is None else which[places])
    ends, nulls = pa.array(offsets.astype(np.int32)), pa.array(stop < 0)
    return {name: pa.ListArray.from_arrays(ends, _array(taken[name]), mask=nulls) for name in taken.column_names}


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
