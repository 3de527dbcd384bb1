"""Dirty cells become values of the contract's types, or are named as unreadable; never guessed at."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from moonlake.schema.contract import ColumnType
from sources.own_files.values import convert, is_readable_as

NOON = datetime(2026, 2, 13, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("to", "cell", "value"),
    [
        ("string", "  red shoe ", "red shoe"),
        ("string", 1163.0, "1163"),
        ("string", 7, "7"),
        ("string", "   ", None),
        ("string", float("nan"), None),
        ("string", "007", "007"),
        ("int64", "1999.0", 1999),
        ("int64", 1999.0, 1999),
        ("int64", "-3", -3),
        ("int32", "", None),
        ("float64", "0.25", 0.25),
        ("float64", 1, 1.0),
        ("bool", "YES", True),
        ("bool", "0", False),
        ("bool", 1.0, True),
        ("bool", False, False),
        ("timestamp", "2026-02-13T12:00:00Z", NOON),
        ("timestamp", "2026-02-13 13:00:00+01:00", NOON),
        ("timestamp", "2026-02-13 12:00:00 UTC", NOON),
        ("timestamp", "2026-02-13 12:00", NOON),
        ("timestamp", "2026-02-13", NOON - timedelta(hours=12)),
        ("timestamp", date(2026, 2, 13), NOON - timedelta(hours=12)),
        ("timestamp", 1770984000, NOON),
        ("timestamp", "1770984000000", NOON),
        ("timestamp", 1770984000000000, NOON),
        ("timestamp", 1770984000.0, NOON),
        ("timestamp", datetime(2026, 2, 13, 7, tzinfo=timezone(timedelta(hours=-5))), NOON),
        ("list<string>", "a.jpg| b.jpg|", ["a.jpg", "b.jpg"]),
        ("list<string>", '["a.jpg", "b|c.jpg"]', ["a.jpg", "b|c.jpg"]),
        ("list<string>", ["a.jpg", None], ["a.jpg"]),
        ("map<string,string>", '{"colour": "red", "size": 4, "none": null}', [("colour", "red"), ("size", "4")]),
        ("map<string,string>", {"colour": "red"}, [("colour", "red")]),
    ],
)
def test_cells_are_read(to: ColumnType, cell: Any, value: Any) -> None:
    values, unreadable = convert([cell], to)
    assert (values.to_pylist(), unreadable) == ([value], [])


@pytest.mark.parametrize(
    ("to", "cell"),
    [
        ("string", "nul\0byte"),
        ("string", "not utf-8 \udce9"),
        ("string", "half a character \ud83d"),
        ("string", {"a": 1}),
        ("int32", "3000000000"),
        ("int64", "19.99"),
        ("int64", 1.5),
        ("int64", "many"),
        ("int64", 2**63),
        ("float64", "inf"),
        ("float64", "cheap"),
        ("bool", "perhaps"),
        ("bool", 2),
        ("timestamp", "13/02/2026"),
        ("timestamp", "2026-02-30"),
        ("timestamp", "yesterday"),
        ("timestamp", 10**18),
        ("list<string>", "[broken"),
        ("list<string>", "[" * 100_000),
        ("list<string>", ["a", "nul\0byte"]),
        ("map<string,string>", '{"a":' * 100_000),
        ("map<string,string>", '{"a": "nul\\u0000byte"}'),
        ("map<string,string>", "[1]"),
        ("map<string,string>", "colour=red"),
        ("binary", "text"),
    ],
)
def test_unreadable_cells_are_named_by_row(to: ColumnType, cell: Any) -> None:
    values, unreadable = convert(["", cell], to)
    assert (values.to_pylist(), unreadable) == ([None, None], [1])


@pytest.mark.parametrize(
    ("to", "cells"),
    [
        ("string", pa.array([" a", "", None, "b"])),
        ("string", pa.array(["a", "b", "a"]).dictionary_encode()),
        ("string", pa.array(["bad\0", "b"])),
        ("int32", pa.array([1, None, 2**40], pa.int64())),
        ("int32", pa.array([1, 2], pa.int64())),
        ("int64", pa.array([1.0, float("nan"), None])),
        ("int64", pa.array([1.0, 2.5])),
        ("float64", pa.array([0.5, float("nan"), float("inf")])),
        ("float64", pa.array([0.5, None], pa.float32())),
        ("bool", pa.array([True, None])),
        ("timestamp", pa.array([NOON.replace(tzinfo=None, microsecond=5)], pa.timestamp("ns"))),
        ("timestamp", pa.array([NOON], pa.timestamp("ms", "Europe/Paris"))),
        ("list<string>", pa.array([["a"], None])),
    ],
)
def test_typed_columns_read_as_their_cells_do(to: ColumnType, cells: Any) -> None:
    fast, slow = convert(cells, to), convert(cells.to_pylist(), to)
    assert (fast[0].to_pylist(), fast[1]) == (slow[0].to_pylist(), slow[1])
    assert fast[0].type == slow[0].type


def not_utf8() -> pa.Array:
    """Texts of which the second is not UTF-8, which Arrow takes from a file unseen."""
    return pa.array([b"fine", b"latin \xe9"]).view(pa.string())


@pytest.mark.parametrize(
    ("to", "cells"),
    [
        ("string", not_utf8()),
        ("string", not_utf8().dictionary_encode()),
        ("timestamp", not_utf8()),
        ("list<string>", pa.ListArray.from_arrays([0, 1, 2], not_utf8())),
        ("map<string,string>", pa.MapArray.from_arrays([0, 1, 2], pa.array(["a", "b"]), not_utf8())),
    ],
)
def test_a_text_of_a_typed_column_that_is_not_utf_8_is_named_by_row(to: ColumnType, cells: Any) -> None:
    assert 1 in convert(cells, to)[1]


@pytest.mark.parametrize(
    "text",
    [
        "\u0643\u0631\u0633\u064a \u062e\u0634\u0628\u064a",
        "\u05db\u05d9\u05e1\u05d0 \u05e2\u05e5 90",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u202egnp.exe\u202c chair",
        "caf\u00e9",
        "cafe\u0301",
        "\U0001f469\u200d\U0001f680 shirt",
        "men\u0092s shoe",
        "two\tcells\nand a line",
    ],
    ids=["arabic", "hebrew", "persian", "override", "composed", "decomposed", "joined emoji", "C1", "tab and newline"],
)
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    assert convert([text], "string")[0].to_pylist() == convert(pa.array([text]), "string")[0].to_pylist() == [text]


@pytest.mark.parametrize(
    ("found", "to", "readable"),
    [
        (pa.struct([("a", pa.string())]), "string", False),
        (pa.string(), "binary", False),
        (pa.large_binary(), "binary", True),
        (pa.struct([("a", pa.string())]), "map<string,string>", True),
        (pa.int64(), "list<string>", False),
        (pa.null(), "timestamp", True),
        (pa.string(), "timestamp", True),
    ],
)
def test_a_column_of_a_wrong_type_is_seen_before_its_cells(found: Any, to: ColumnType, readable: bool) -> None:
    assert is_readable_as(found, to) == readable
