"""Files of published behaviour logs as batches of text cells, read a block at a time, whatever their size.

One line is one record: quotes mean nothing in these formats, so that a stray one cannot swallow the lines behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from moonlake.errors import InputError, SchemaMismatch
from sources.own_files.staging import StageWriter

BLOCK_BYTES = 16_000_000
FIELD_COUNT_WRONG = "field_count_wrong"


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Text cells by column, "" for an empty one; and the lines that are no rows, by rule."""

    cells: pa.Table
    refused: dict[str, list[object]] = field(default_factory=dict)


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The one file of the folder that has one of the names. Raises InputError: no such folder, no file, or two."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder that holds {' or '.join(names)}")
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none of them"
        raise InputError(f"{folder}: expected one of {', '.join(names)}; found {there}")
    return found[0]


def read_csv(
    path: Path, columns: Sequence[str], *, header: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[TextBatch]:
    """The named columns of a CSV file, plain or gzip, without outer blanks.

    Args:
        columns: with a header those to take, in any order in the file; without one all columns in order.

    Raises:
        InputError: the file is empty, or cannot be read to its end.
        SchemaMismatch: the header lacks a column.
    """
    refused: deque[object] = deque()  # the reader fills it while it reads ahead

    def skip(row: pa.csv.InvalidRow) -> str:
        refused.append(row.text)
        return "skip"

    names = None if header else list(columns)
    try:
        reader = pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names, block_size=block_bytes),
            parse_options=pa.csv.ParseOptions(quote_char=False, invalid_row_handler=skip),
            convert_options=pa.csv.ConvertOptions(
                check_utf8=False,  # a byte that is not UTF-8 refuses its row, not the file
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=list(columns),
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            trimmed = [pc.ascii_trim_whitespace(column) for column in batch.columns]
            taken = [refused.popleft() for _ in range(len(refused))]
            yield TextBatch(pa.table(trimmed, names=batch.schema.names), {FIELD_COUNT_WRONG: taken})
    except pa.ArrowKeyError as error:
        raise SchemaMismatch(f"{path}: {error.args[0]}; expected {', '.join(columns)}") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {str(error).splitlines()[0]}") from None
    yield TextBatch(
        pa.table([[]] * len(columns), schema=pa.schema([(name, pa.string()) for name in columns])),
        {FIELD_COUNT_WRONG: list(refused)},
    )


def refuse_broken(
    writer: StageWriter, kind: str, batch: TextBatch, broken: Mapping[str, pa.ChunkedArray]
) -> pa.ChunkedArray:
    """bool [N]: the good records of the batch; each other one is refused by the first rule that it breaks.

    Args: broken: which records break each rule, bool [N]; null is no. The lines that are no rows are refused too.
    """
    for rule, lines in batch.refused.items():
        writer.refuse(kind, rule, lines)
    whole = [column.combine_chunks() for column in broken.values()]
    found = pc.case_when(pc.make_struct(*whole), *(pa.scalar(rule) for rule in broken))  # null for a good one
    rules = pa.chunked_array([found])
    for rule in pc.unique(rules.drop_null()).to_pylist():
        writer.refuse(kind, rule, records(batch.cells.filter(pc.equal(rules, rule))))
    return pc.is_null(rules)


def is_whole_number(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool [N]: which cells are an id of up to 18 digits, as all these logs have them."""
    return pc.match_substring_regex(cells, "^(0|[1-9][0-9]{0,17})$")


def not_text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool [N]: which cells hold a byte that is not UTF-8, or a NUL."""
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:
        return pa.chunked_array([pa.array([_is_broken(cell) for cell in cells.cast(pa.binary()).to_pylist()])])
    return pc.match_substring(cells, "\0")


def _is_broken(cell: bytes) -> bool:
    try:
        return "\0" in cell.decode()
    except UnicodeDecodeError:
        return True


def records(cells: pa.Table) -> list[object]:
    """The rows as they stand in `rejects`; a byte that is not UTF-8 becomes a lone surrogate."""
    columns = [
        [cell.decode(errors="surrogateescape") for cell in column.cast(pa.binary()).to_pylist()]
        for column in cells.columns
    ]
    return [dict(zip(cells.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
