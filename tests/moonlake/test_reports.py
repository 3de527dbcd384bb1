from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moonlake.reports import as_json, plain


class Kind(StrEnum):
    GOOD = "good"


class Number(Enum):
    ONE = 1


@dataclass(frozen=True, slots=True)
class Part:
    where: Path
    at: datetime | None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Part(Path("/a"), datetime(2026, 1, 2, 3, tzinfo=UTC)), {"where": "/a", "at": "2026-01-02T03:00:00+00:00"}),
        ([Part(Path("b"), None)], [{"where": "b", "at": None}]),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(minutes=2), 120.0),
        ((Kind.GOOD, Number.ONE), ["good", 1]),
        ({Kind.GOOD: {"b", "a"}, 2: True}, {"good": ["a", "b"], "2": True}),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([float("nan"), float("-inf"), np.float64("nan"), 1.5], [None, None, None, 1.5]),
        (None, None),
    ],
)
def test_values_become_plain(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert json.loads(as_json(value)) == expected
    assert "Kind" not in repr(found)


def test_json_is_one_line_unless_indented() -> None:
    assert as_json({"name": "été", "n": [1, 2]}) == '{"name": "été", "n": [1, 2]}'
    assert len(as_json({"n": [1, 2]}, indent=2).splitlines()) == 6
