"""Rows by position against Python lists: whatever lies in the files, in however many pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, write_deltalake

from moonlake.lake.parquet_rows import RowGroups, shards_of, take_any
from moonlake.lake.versions import open_path
from moonlake.point_in_time import NO_ROW, Keys

LISTS: dict[str, list[Any]] = {
    "of one length": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
    "with null elements": [[1.0, None], [None, 4.0], [5.0, 6.0], [7.0, 8.0]],
    "of several lengths": [[1.0], [], [5.0, 6.0], [7.0]],
    "some null": [[1.0, 2.0], None, [5.0, 6.0], [7.0, 8.0]],
    "empty": [[], [], [], []],
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("skipped", [0, 1])
def test_lists_of_every_shape_are_taken(name: str, chunks: int, skipped: int) -> None:
    values = LISTS[name]
    column = pa.array(values, pa.list_(pa.float32())).slice(skipped)
    column = pa.chunked_array([column] if chunks == 1 else [column.slice(0, 2), column.slice(2)])
    which = np.array([2, NO_ROW, 0, 0, 2, 1, NO_ROW])
    found = take_any(pa.table({"v": column, "n": pa.array(range(len(column)))}), which)
    assert found["v"].to_pylist() == [None if row == NO_ROW else values[skipped:][row] for row in which]
    assert found["n"].to_pylist() == [None if row == NO_ROW else row for row in which]
    assert found.schema.field("v").type == pa.list_(pa.float32())
    found.validate(full=True)


def test_nothing_is_taken_from_nothing() -> None:
    empty = pa.schema([("v", pa.list_(pa.float32())), ("n", pa.int64())]).empty_table()
    assert take_any(empty, np.zeros(0, np.int64)) == empty
    assert take_any(empty, np.array([NO_ROW])).to_pylist() == [{"v": None, "n": None}]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Rows 0 to 19 in two commits with a partition each; the second one has a column more."""
    path = str(tmp_path / "table")
    first = {"row": pa.array(range(10)), "day": ["a"] * 10}
    write_deltalake(path, pa.table(first), partition_by=["day"])
    second = {"row": pa.array(range(10, 20)), "day": ["b"] * 10, "late": pa.array([1.5] * 10)}
    write_deltalake(path, pa.table(second), mode="append", schema_mode="merge")
    return path


def test_partitions_and_younger_columns_are_read_as_the_table_has_them(table: str) -> None:
    groups = RowGroups(open_path(table).dataset, ds.scalar(True))
    columns = ["day", "late", "row"]
    taken = groups.take(columns, np.array([0, 3, 9, 10, 19])).to_pylist()
    assert [(row["day"], row["late"], row["row"]) for row in taken] == [
        ("a", None, 0), ("a", None, 3), ("a", None, 9), ("b", 1.5, 10), ("b", 1.5, 19),
    ]  # fmt: skip
    assert groups.take(["day"], np.array([9, 10])).to_pylist() == [{"day": "a"}, {"day": "b"}]


def test_blocks_hold_every_row_at_its_position(table: str) -> None:
    groups = RowGroups(open_path(table).dataset, ds.scalar(True))
    for size in (1, 10, 11, 100):
        blocks = list(groups.blocks(["row"], size))
        rows = [row for _, block in blocks for row in block["row"].to_pylist()]
        assert rows == list(range(20))
        assert [first for first, _ in blocks][: len(rows) // size] == [10 * n for n in range(len(blocks))][: 20 // size]


def test_positions_count_the_row_groups_that_are_left(table: str) -> None:
    groups = RowGroups(open_path(table).dataset, ds.field("day") == "b")
    assert len(groups) == 10
    assert groups.take(["row"], np.array([0, 9]))["row"].to_pylist() == [10, 19]


def test_partitions_may_have_any_name(tmp_path: Path) -> None:
    path, names = str(tmp_path / "table"), ["u v", "a%b", "c=d/e"]
    write_deltalake(path, pa.table({"shop": names, "row": [0, 1, 2]}), partition_by=["shop"])
    groups = RowGroups(open_path(path).dataset, ds.scalar(True))
    found = groups.take(["shop", "row"], np.arange(3)).to_pylist()
    assert {row["shop"]: row["row"] for row in found} == dict(zip(names, range(3), strict=True))


def test_text_that_was_rewritten_by_a_delete_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    write_deltalake(path, pa.table({"key": ["a", "b", "c"], "row": [0, 1, 2]}))
    DeltaTable(path).delete("row = 1")
    groups = RowGroups(open_path(path).dataset, ds.field("key") >= "b")
    assert "c" in groups.take(["key"], np.arange(len(groups)))["key"].to_pylist()


def test_shards_cover_every_code_once() -> None:
    keys, codes = Keys.of(pa.table({"k": [str(n % 7) for n in range(30)]}))
    for needed in (0, 10, 100, 10_000):
        shards = shards_of(keys, needed, 10)
        assert [code for shard in shards for code in shard] == list(range(keys.size))
        assert len(shards) == min(1 + needed // 10, keys.size)
    assert set(codes.tolist()) <= set(range(keys.size))
