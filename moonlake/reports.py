"""Reports as JSON: of dataclasses, moments, paths and arrays, plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any


def plain(value: Any) -> Any:
    """A value as dicts, lists, strings, numbers, booleans and None.

    An object that has `as_dict` is what that says. Moments are in ISO format, spans in seconds; a number that JSON
    cannot say (NaN, infinity) is None.

    >>> plain({"at": datetime(2026, 1, 1), "share": float("nan"), "ids": ("a", "b")})
    {'at': '2026-01-01T00:00:00', 'share': None, 'ids': ['a', 'b']}
    """
    if value is None or (isinstance(value, bool | str | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Set):
        return sorted(plain(one) for one in value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
    return str(value)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """A report as one JSON text; one line unless it is indented."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
