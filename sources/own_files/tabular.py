"""Tables in files as batches of raw cells: Parquet, CSV, JSON lines and Delta, whatever state they are in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from moonlake.errors import InputError, SchemaMismatch

BATCH_ROWS = 16_384
BATCH_ROWS_BINARY = 256
"""Rows of a batch that may carry image bytes."""
MAX_CELL_CHARACTERS = 16_000_000
TABLE_ENDINGS = (".parquet", ".csv", ".tsv", ".csv.gz", ".jsonl", ".ndjson", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw cells by column, `rows` of each; and the records that are not even rows, by rule."""

    columns: dict[str, pa.Array | Sequence[object]]
    rows: int
    refused: dict[str, list[object]] = field(default_factory=dict)


def find_table(folder: Path, name: str) -> Path | None:
    """The file or folder that holds the named table, None when there is none.

    Raises: InputError: there are two.
    """
    found = [path for ending in TABLE_ENDINGS if (path := folder / f"{name}{ending}").exists()]
    nested = folder / name
    if (nested / "_delta_log").is_dir() or any(nested.glob("*.parquet")):
        found.append(nested)
    if len(found) > 1:
        raise InputError(f"{folder} holds {name} twice: {', '.join(path.name for path in found)}; keep one")
    return found[0] if found else None


def read_batches(path: Path) -> Iterator[Batch]:
    """The table in batches, at least one, so that its columns are known even without rows.

    Raises:
        InputError: the file is not what its name says.
        SchemaMismatch: a column is named twice.
    """
    name = path.name.removesuffix(".gz")
    if path.is_dir() or name.endswith(".parquet"):
        return _typed(path)
    if name.endswith((".csv", ".tsv")):
        return _csv(path)
    return _json_lines(path)


def _typed(path: Path) -> Iterator[Batch]:
    try:
        dataset = _dataset(path)
        _no_column_twice(path, dataset.schema.names)
        binary = any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in dataset.schema.types)
        yield _batch(dataset.schema.empty_table().combine_chunks())
        for batch in dataset.to_batches(batch_size=BATCH_ROWS_BINARY if binary else BATCH_ROWS, batch_readahead=2):
            if batch.num_rows:
                yield _batch(pa.Table.from_batches([batch]))
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet or Delta: {str(error).splitlines()[0]}") from None


def _dataset(path: Path) -> ds.Dataset:
    if (path / "_delta_log").is_dir():
        # An explicit filesystem: the default one can abort the interpreter at exit (delta-rs 2184).
        local = pyarrow.fs.SubTreeFileSystem(str(path), pyarrow.fs.LocalFileSystem())
        return DeltaTable(str(path)).to_pyarrow_dataset(filesystem=local)
    files = sorted(str(part) for part in path.glob("*.parquet")) if path.is_dir() else [str(path)]
    schemas = [pq.read_schema(file) for file in files]
    return ds.dataset(files, format="parquet", schema=pa.unify_schemas(schemas, promote_options="permissive"))


def _batch(table: pa.Table) -> Batch:
    columns = {name: _one_array(table[name]) for name in table.column_names}
    return Batch(columns, len(table))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _csv(path: Path) -> Iterator[Batch]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with _text(path) as lines:
        first = lines.readline()
        delimiter = max(",;\t", key=first.count)
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if not header:
            raise InputError(f"{path}: the file is empty; its first line must name the columns")
        _no_column_twice(path, header)
        reader = csv.reader(lines, delimiter=delimiter)
        rows: list[list[str]] = []
        refused: list[object] = []
        try:
            for row in reader:
                if len(row) == len(header):
                    rows.append(row)
                elif row:
                    refused.append(row)
                if len(rows) + len(refused) == BATCH_ROWS:
                    yield _csv_batch(header, rows, refused)
                    rows, refused = [], []
        except (csv.Error, OSError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as CSV near line {reader.line_num + 1}: {error}") from None
        yield _csv_batch(header, rows, refused)


def _csv_batch(header: list[str], rows: list[list[str]], refused: list[object]) -> Batch:
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return Batch(dict(zip(header, columns, strict=True)), len(rows), {"field_count_wrong": refused})


def _json_lines(path: Path) -> Iterator[Batch]:
    with _text(path) as lines:
        rows: list[dict[str, object]] = []
        refused: list[object] = []
        try:
            for line in lines:
                if not line.strip():
                    continue
                row = _json_row(line)
                if row is None:
                    refused.append(line.strip())
                else:
                    rows.append(row)
                if len(rows) + len(refused) == BATCH_ROWS:
                    yield _json_batch(rows, refused)
                    rows, refused = [], []
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as JSON lines: {error}") from None
        yield _json_batch(rows, refused)


def _json_row(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or nested without end
        return None
    return row if isinstance(row, dict) else None


def _json_batch(rows: list[dict[str, object]], refused: list[object]) -> Batch:
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, pa.Array | Sequence[object]] = {name: [row.get(name) for row in rows] for name in names}
    return Batch(columns, len(rows), {"json_unreadable": refused})


def _text(path: Path) -> io.TextIOWrapper:
    """The lines of a text file: UTF-8 with or without BOM; other bytes become lone surrogates, seen by `cells`."""
    raw = gzip.open(path) if path.name.endswith(".gz") else path.open("rb")  # noqa: SIM115, closed with the wrapper
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _no_column_twice(path: Path, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SchemaMismatch(f"{path}: column {twice[0]} is there twice; found {', '.join(names)}")
