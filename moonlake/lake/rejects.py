"""Refused records as rows of `rejects`: one canonical text of a record, and one id, from Spark and from Arrow alike.

The text is JSON that a person can read and search: the columns in contract order, then others by name; what is absent
is left out. Numbers are as precise as their column, so that a float32 is written as 0.1; times are in UTC with
microseconds; of bytes their length and hash stand there; letters stand as they are, not escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from moonlake.hashing import stable_hash
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.contract import Table
from moonlake.schema.tables import REJECTS

MAX_VALUE_CHARACTERS = 2_000
ROWS = arrow_schema(REJECTS, REJECTS.facts)
"""Schema of what is kept of a refused record."""


def reject_rows(table: Table, refused: Iterable[tuple[str, Mapping[str, Any]]], *, source: str) -> pa.Table:
    """Rows of `rejects`, each once: of each record the rule that it broke, and the record.

    Args: table: the one that the records were meant for.
    """
    rows = (_row(table, rule, record, source) for rule, record in refused)
    return pa.Table.from_pylist(list({row["reject_id"]: row for row in rows}.values()), ROWS)


def reject_batches(table: Table, batches: Iterable[pa.RecordBatch], *, source: str) -> Iterator[pa.RecordBatch]:
    """The same for batches of records, with their rule in `_rule`; other columns named `_...` are left out."""
    for batch in batches:
        columns = {name: _values(batch[name]) for name in batch.schema.names if name[:1] != "_"}
        names, rules = tuple(columns), batch["_rule"].to_pylist()
        records = zip(*columns.values(), strict=True) if columns else ((),) * len(rules)
        refused = ((rule, dict(zip(names, record, strict=True))) for rule, record in zip(rules, records, strict=True))
        yield from reject_rows(table, refused, source=source).to_batches()


def canonical(table: Table, record: Mapping[str, Any]) -> str:
    """The text of a record, the same for equal values whatever they came as.

    >>> from moonlake.schema.tables import MERCHANTS
    >>> canonical(MERCHANTS, {"tier": 7, "merchant_id": "Müller", "source": None, "wrong": b"ab"})
    '{"merchant_id":"Müller","tier":7,"wrong":"2 bytes, hash 3dc9ae220222e2e156b2a5abb60d01c7"}'
    """
    types = {column.name: column.type for column in table}
    ordered = [*(name for name in types if name in record), *sorted(record.keys() - types.keys())]
    plain = {name: _plain(record[name], types.get(name, "")) for name in ordered if record[name] is not None}
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which JSON can hold as an escape, is no character of a table.
    return text.encode("utf-8", "backslashreplace").decode()


def _row(table: Table, rule: str, record: Mapping[str, Any], source: str) -> dict[str, str]:
    value = canonical(table, record)
    return {
        "reject_id": stable_hash("\0".join([table.name, rule, value, source])),
        "table": table.name,
        "rule": rule,
        "value": value[:MAX_VALUE_CHARACTERS],
        "source": source,
    }


def _plain(value: Any, kind: str) -> Any:
    """A value as JSON has it. `kind`: type of its column, "" where no contract names it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if kind.startswith("map<") and isinstance(value, list):  # of pairs, as Arrow has it
        value = dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key], "") for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_plain(one, kind.removeprefix("list<").removesuffix(">")) for one in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes, hash {stable_hash(bytes(value))}"
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, kind)
    return value if value is None or isinstance(value, bool | str) else str(value)


def _number(value: float, kind: str) -> float | str:
    """A number, or its name where JSON has none for it."""
    if isinstance(value, int) and (not kind.startswith("float") or abs(value) > 2**1000):
        return value
    with np.errstate(over="ignore"):
        exact = float(str(np.float32(value))) if kind == "float32" else float(value)
    if math.isfinite(exact):
        return exact
    return "NaN" if math.isnan(exact) else "Infinity" if exact > 0 else "-Infinity"


def _time(value: datetime) -> str:
    whole = value if value.tzinfo else value.replace(tzinfo=UTC)
    return whole.astimezone(UTC).isoformat(timespec="microseconds")


def _values(column: pa.Array) -> list[Any]:
    """The values of a column as Python has them; a time that it cannot have, such as of the year 20000, in words."""
    if pa.types.is_map(column.type):
        return [None if value is None else dict(value) for value in column.to_pylist()]
    if not pa.types.is_timestamp(column.type):
        return list(column.to_pylist())
    ticks = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_pylist()
    return [None if tick is None else _moment(tick) for tick in ticks]


def _moment(microseconds: int) -> datetime | str:
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} microseconds after 1970"
