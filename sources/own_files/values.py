"""Cells of dirty files as values of the contract's types.

Surrounding blanks go, an empty cell and NaN are null, and whatever cannot be read is a `ValueError`: the row that it
stands in is refused by name, never dropped and never guessed at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.contract import ColumnType

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TRUE, FALSE = frozenset({"true", "t", "yes", "y", "1"}), frozenset({"false", "f", "no", "n", "0"})
NOT_UTF8 = "not UTF-8: \udcff"
"""Stands for a list or a map of which a text is not UTF-8; no reader takes a lone surrogate."""
EPOCH_UNITS_US = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""A whole number is a time in seconds below 1e11, in milliseconds below 1e14, in microseconds below 1e17."""


def convert(cells: pa.Array | Sequence[object], to: ColumnType) -> tuple[pa.Array, list[int]]:
    """The cells as an Arrow array of the contract's type, and the rows whose cell cannot be read (null there)."""
    target = ARROW_TYPES[to]
    if isinstance(cells, pa.Array):
        whole = _cast_whole(cells, target)
        if whole is not None:
            return whole, []
        cells = _plain_cells(cells)
    read = READERS[to]
    values: list[object] = []
    unreadable: list[int] = []
    for row, cell in enumerate(cells):
        try:
            values.append(None if _is_absent(cell) else read(cell))
        except (ValueError, TypeError, OverflowError, RecursionError):
            values.append(None)
            unreadable.append(row)
    return pa.array(values, target), unreadable


def plain(cell: pa.Scalar) -> object:
    """The cell as Python has it; a byte that is not UTF-8 is a lone surrogate, as it is in a text file."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        found = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
        return found.as_buffer().to_pybytes().decode(errors="surrogateescape") if _is_text(found.type) else NOT_UTF8


def is_readable_as(found: pa.DataType, to: ColumnType) -> bool:
    """False when no cell of a typed column could be a value of the contract's type: the file has the wrong column."""
    if pa.types.is_null(found):
        return True
    if to == "binary":
        return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_binary_view(found))
    if to == "list<string>":
        return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or _is_text(found))
    if to == "map<string,string>":
        return bool(pa.types.is_map(found) or pa.types.is_struct(found) or _is_text(found))
    return not pa.types.is_nested(found)


def _cast_whole(cells: pa.Array, target: pa.DataType) -> pa.Array | None:
    """The fast path: a typed column cast at once; None where cells must be read one by one."""
    found = cells.type
    if pa.types.is_null(found) or target == pa.binary():
        return cells.cast(target)
    if pa.types.is_timestamp(target) and pa.types.is_timestamp(found):
        return cells.cast(target, safe=False)  # from nanoseconds; a time without a zone is UTC
    if pa.types.is_string(target) and _is_text(found):
        cells = cells.cast(pa.string())
        if not _is_clean(cells):
            return None
        text = pc.utf8_trim_whitespace(cells)
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if pa.types.is_floating(found) and (pa.types.is_integer(target) or pa.types.is_floating(target)):
        cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, found), cells)
    if pa.types.is_floating(target) and pa.types.is_floating(found) and pc.any(pc.is_inf(cells)).as_py():
        return None
    if found == target:
        return cells if _is_clean(cells) else None
    if pa.types.is_integer(target) and (pa.types.is_integer(found) or pa.types.is_floating(found)):
        try:
            return cells.cast(target)
        except pa.ArrowInvalid:  # a fraction or too large a number: the cells say which row
            return None
    return None


def _is_clean(cells: pa.Array) -> bool:
    """False when a text, or one in a list or map, is not UTF-8 or holds a NUL."""
    if pa.types.is_map(cells.type):
        return _is_clean(cells.keys) and _is_clean(cells.items)
    if pa.types.is_list(cells.type):
        return _is_clean(cells.flatten())
    if not _is_text(cells.type):
        return True
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return not pc.any(pc.match_substring(cells, "\0")).as_py()


def _plain_cells(cells: pa.Array) -> list[object]:
    try:
        return list(cells.to_pylist())
    except UnicodeDecodeError:
        return [plain(cell) for cell in cells]


def _is_text(found: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
    return any(is_kind(found) for is_kind in kinds)


def _is_absent(cell: object) -> bool:
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _text(cell: object) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # an id column with gaps, which pandas turned into floats
    if isinstance(cell, bytes | Mapping | list | tuple):
        raise ValueError("not a text")
    text = str(cell).strip()
    text.encode()  # a lone surrogate stands for a byte that is not UTF-8
    if "\0" in text:
        raise ValueError("a NUL byte in a text")
    return text


def _whole_number(cell: object) -> int:
    if isinstance(cell, bool):
        return int(cell)
    number = float(cell) if isinstance(cell, str) and "." in cell else cell
    if isinstance(number, float):
        if not number.is_integer():
            raise ValueError(f"{number} is not a whole number")
        return int(number)
    return int(number)  # type: ignore[call-overload]


def _int32(cell: object) -> int:
    number = _whole_number(cell)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{number} does not fit 32 bits")
    return number


def _int64(cell: object) -> int:
    number = _whole_number(cell)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} does not fit 64 bits")
    return number


def _number(cell: object) -> float:
    number = float(cell)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    return number


def _flag(cell: object) -> bool:
    if isinstance(cell, bool):
        return cell
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip().lower()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError(f"{text} is neither true nor false")


def _moment(cell: object) -> datetime:
    """UTC; a time without a zone is UTC, a day its first moment, a whole number a time since 1970."""
    if isinstance(cell, datetime):
        return cell.replace(tzinfo=UTC) if cell.tzinfo is None else cell.astimezone(UTC)
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day, tzinfo=UTC)
    text = str(cell).strip()
    if text.removeprefix("-").removesuffix(".0").isdigit():
        number = int(text.removesuffix(".0"))
        for limit, unit_us in EPOCH_UNITS_US:
            if abs(number) < limit:
                return EPOCH + timedelta(microseconds=number * unit_us)
        raise ValueError(f"{number} is not a time since 1970")
    if not text[:4].isdigit() or text[4:5] != "-":
        raise ValueError(f"{text} is not a time in ISO 8601")
    moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _texts(cell: object) -> list[str]:
    """A list; or its text: a JSON list, or parts between |."""
    if isinstance(cell, str):
        cell = json.loads(cell) if cell.lstrip().startswith("[") else cell.split("|")
    if not isinstance(cell, list | tuple):
        raise ValueError("not a list")
    return [_text(part) for part in cell if not _is_absent(part)]


def _text_map(cell: object) -> list[tuple[str, str]]:
    """A map, or its text as a JSON object; absent values are left out, values that are no text are written as JSON."""
    if isinstance(cell, str):
        cell = json.loads(cell)
    pairs = cell.items() if isinstance(cell, Mapping) else cell
    if not isinstance(pairs, list | tuple | type({}.items())):
        raise ValueError("not a map")
    values = {_text(key): value for key, value in pairs if not _is_absent(value)}
    return [(key, _text(value) if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]


def _bytes(cell: object) -> bytes:
    if not isinstance(cell, bytes):
        raise ValueError("not bytes")
    return cell


READERS: dict[ColumnType, Callable[[object], object]] = {
    "string": _text,
    "bool": _flag,
    "int32": _int32,
    "int64": _int64,
    "float64": _number,
    "timestamp": _moment,
    "list<string>": _texts,
    "map<string,string>": _text_map,
    "binary": _bytes,
}
