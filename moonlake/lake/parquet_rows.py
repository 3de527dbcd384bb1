"""Rows of a Parquet dataset by position: narrow columns in blocks, wide columns by pointer, each read once."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake.arrays import Bools, Int64s
from moonlake.point_in_time import NO_ROW, Keys

ROWS_PER_BATCH = 4_096
"""Rows that are decoded at a time when few are taken: of 64-d vectors these are 1 MB, which stay in the cache."""

ROWS_PER_BLOCK = 4_000_000
"""Narrow rows that are looked through at a time."""

READERS = os.cpu_count() or 1

T = TypeVar("T")


class RowGroups:
    """The row groups of a dataset that a filter cannot rule out. A row's position counts through all of them, in order.

    Statistics of files and of row groups decide what is left out, never the rows themselves, so that a row has the
    same position whichever columns are read.
    """

    def __init__(self, dataset: ds.Dataset, where: ds.Expression) -> None:
        self.schema: pa.Schema = dataset.schema
        self._groups: list[ds.ParquetFileFragment] = [
            group
            for fragment in dataset.get_fragments(where)
            if isinstance(fragment, ds.ParquetFileFragment)  # a table that was never written has another kind
            for group in _split(fragment, where, dataset.schema)
        ]
        self._starts = np.cumsum([0, *(group.row_groups[0].num_rows for group in self._groups)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def values(self, column: str) -> int:
        """The number of values in a column: of a list column, of the elements of all lists."""
        return sum(chunk.num_values for chunk in self._chunks({column}))

    def nbytes(self, columns: Iterable[str]) -> int:
        """Bytes of the columns as Parquet states them: encoded, and not compressed."""
        return sum(chunk.total_uncompressed_size for chunk in self._chunks(set(columns)))

    def _chunks(self, columns: set[str]) -> Iterator[pq.ColumnChunkMetaData]:
        for group in self._groups:
            metadata = group.metadata.row_group(group.row_groups[0].id)
            for index in range(metadata.num_columns):
                chunk = metadata.column(index)
                if chunk.path_in_schema.split(".")[0] in columns:
                    yield chunk

    def blocks(self, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pa.Table]]:
        """(position of the first row, rows) of everything, in order, in blocks of at least that many rows."""
        first, size, pending = 0, 0, []
        for table in self._each(lambda number: self._whole(number, columns), range(len(self._groups))):
            pending.append(table)
            size += len(table)
            if size >= rows:
                yield first, pa.concat_tables(pending)
                first, size, pending = first + size, 0, []
        yield first, pa.concat_tables([self._table(columns, ()), *pending])

    def meeting(
        self, where: ds.Expression, columns: Sequence[str], conditions: Sequence[str]
    ) -> tuple[pa.Table, Int64s]:
        """The rows that meet a condition on the columns `conditions`, and their positions."""
        tables, positions = [], []
        for first, rows in self.blocks(list(dict.fromkeys([*columns, *conditions])), ROWS_PER_BLOCK):
            met = mask(rows, where)
            tables.append(rows.select(list(columns)).filter(pa.array(met)))
            positions.append(first + np.flatnonzero(met))
        return pa.concat_tables(tables), np.concatenate(positions)

    def take(self, columns: Sequence[str], rows: Int64s, scratch: Path | None = None) -> pa.Table:
        """The rows at ascending positions, in memory or in the file `scratch`; see `gathered`."""
        return gathered(self.pieces(columns, rows), self._table(columns, ()).schema, scratch)

    def pieces(self, columns: Sequence[str], rows: Int64s) -> Iterator[pa.Table]:
        """The rows at ascending positions, as they are read. Row groups that hold none of them are not read."""
        bounds = np.searchsorted(rows, self._starts)

        def taken(number: int) -> pa.Table:
            within = rows[bounds[number] : bounds[number + 1]] - self._starts[number]
            return self._table(columns, take_ascending(self._read(number, columns), within))

        return self._each(taken, np.flatnonzero(np.diff(bounds)).tolist())

    def _whole(self, number: int, columns: Sequence[str]) -> pa.Table:
        return self._table(columns, self._read(number, columns, batch_size=1 << 20))

    def _read(self, number: int, columns: Sequence[str], batch_size: int = ROWS_PER_BATCH) -> Iterator[pa.RecordBatch]:
        """The rows of one row group, with the columns and types of the dataset."""
        group = self._groups[number]
        stored = set(group.physical_schema.names)
        constants = ds.get_partition_keys(group.partition_expression)
        with pq.ParquetFile(group.open(), metadata=group.metadata, pre_buffer=False) as file:
            for batch in file.iter_batches(
                batch_size=batch_size,
                row_groups=[group.row_groups[0].id],
                columns=[column for column in columns if column in stored],
                use_threads=len(self._groups) == 1,
            ):
                arrays = []
                for column in columns:
                    wanted = self.schema.field(column).type
                    if column in stored:
                        found = batch[column]
                        arrays.append(found if found.type == wanted else found.cast(wanted))
                    else:  # a partition's value, or a column younger than the file
                        arrays.append(pa.repeat(pa.scalar(constants.get(column), wanted), len(batch)))
                yield pa.record_batch(arrays, list(columns))

    def _table(self, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> pa.Table:
        schema = pa.schema([pa.field(column, self.schema.field(column).type) for column in columns])
        return pa.Table.from_batches(batches, schema)

    def _each(self, read: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
        """The result of `read` for each row group, in order, while the next ones are being read."""
        with ThreadPoolExecutor(READERS) as readers:
            running: deque[Future[T]] = deque()
            for number in numbers:
                if len(running) > READERS:
                    yield running.popleft().result()
                running.append(readers.submit(read, number))
            while running:
                yield running.popleft().result()


def mask(rows: pa.Table, where: ds.Expression) -> Bools:
    """bool [rows]: which rows meet the condition; an unknown answer is a no."""
    met = ds.dataset(rows).to_table(columns={"met": where})["met"]
    return pc.fill_null(met, False).to_numpy()


def shards_of(keys: Keys, needed: int, available: int) -> list[range]:
    """The codes of keys in ranges, so many that each needs about the bytes that are available."""
    shards = min(1 + needed // max(available, 1), max(keys.size, 1))
    bounds = [keys.size * shard // shards for shard in range(shards + 1)]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]


def gathered(pieces: Iterator[pa.Table], schema: pa.Schema, scratch: Path | None) -> pa.Table:
    """The pieces as one table: each column one array in memory, or mapped from an Arrow file where one is named."""
    if scratch is None:
        return pa.concat_tables([schema.empty_table(), *pieces]).combine_chunks()
    with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for piece in pieces:
            file.write_table(piece)
    return pa.ipc.open_file(pa.memory_map(str(scratch))).read_all()


def take_any(rows: pa.Table, which: Int64s) -> pa.Table:
    """The rows at any positions, NO_ROW giving nulls, without bringing the chunks of a large table together."""
    if max((column.num_chunks for column in rows.columns), default=1) <= 1:
        return _taken(rows, which)
    wanted, inverse = np.unique(which, return_inverse=True)
    ascending = wanted[wanted != NO_ROW]
    few = pa.Table.from_batches(take_ascending(rows.to_batches(), ascending), rows.schema).combine_chunks()
    places = inverse - (len(wanted) - len(ascending))
    return _taken(few, np.maximum(places, NO_ROW))


def _split(fragment: ds.ParquetFileFragment, where: ds.Expression, schema: pa.Schema) -> list[ds.ParquetFileFragment]:
    """The row groups of a file that the filter cannot rule out by their statistics."""
    try:
        return list(fragment.split_by_row_group(where, schema=schema))
    except pa.ArrowNotImplementedError:
        # Updates and merges of delta-rs store strings as string_view, whose statistics Arrow cannot compare.
        return list(fragment.split_by_row_group(schema=schema))


def take_ascending(batches: Iterable[pa.RecordBatch], rows: Int64s) -> Iterator[pa.RecordBatch]:
    """The rows at ascending positions, counted through the batches."""
    first = done = 0
    for batch in batches:
        until = done + int(np.searchsorted(rows[done:], first + len(batch)))
        if until > done:
            at = pa.array(rows[done:until] - first)
            yield pa.record_batch([_values(column, at) for column in batch.columns], batch.schema)
        first, done = first + len(batch), until


def _taken(rows: pa.Table, which: Int64s) -> pa.Table:
    """Rows of a table of one chunk, NO_ROW giving nulls."""
    at = pa.array(which, mask=which == NO_ROW)
    columns = [_values(column.chunk(0), at) if column.num_chunks else column.take(at) for column in rows.columns]
    return pa.table(columns, rows.schema)


def _values(column: pa.Array, at: pa.Array) -> pa.Array:
    """The values at positions. Lists of one length, as vectors are, are copied whole, which is 30 times faster."""
    if not pa.types.is_list(column.type) or not len(column) or column.null_count:
        return column.take(at)
    offsets = column.offsets.to_numpy()
    length = int(offsets[1] - offsets[0])
    if not length or (np.diff(offsets) != length).any() or len(at) * length >= 2**31:
        return column.take(at)
    fixed = pa.FixedSizeListArray.from_arrays(column.values.slice(offsets[0], len(column) * length), length).take(at)
    known = fixed.is_valid().to_numpy(zero_copy_only=False)
    ends = pa.array(np.concatenate([[0], np.cumsum(known) * length]).astype(np.int32))
    return pa.ListArray.from_arrays(ends, fixed.flatten(), column.type, mask=None if known.all() else pa.array(~known))
