"""Rows become files: the same bytes whatever pieces they come in, hashes of values and of files."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from moonlake.errors import InputError
from moonlake.hashing import hash_of_file
from moonlake.training_sets import files
from moonlake.training_sets.files import DELTA_LOG, hash_of_rows, write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")


def manifest(**fields: Any) -> Manifest:
    return Manifest(TrainingSetSpec("january", START, END, **fields), {}, [], definitions_hash="d", code_version="1")


def rows(count: int) -> pa.Table:
    numbers = range(count)
    return pa.table(
        {
            "impression_id": [f"i{number}" for number in numbers],
            "event_timestamp": pa.array([START + timedelta(minutes=number) for number in numbers], MOMENT),
            "price": pa.array([None if number % 5 == 0 else number for number in numbers], pa.int64()),
            "products": pa.array([[f"p{each}" for each in range(number % 4)] for number in numbers]),
        }
    )


def in_pieces(table: pa.Table, size: int) -> list[pa.Table]:
    return [table.slice(first, size) for first in range(0, len(table), size)]


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1, 7, 60, 250])
def test_the_bytes_do_not_depend_on_the_pieces_in_which_rows_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 60)
    monkeypatch.setattr(files, "ACTIONS_PER_GROUP", 10_000)
    monkeypatch.setattr(files, "ROWS_PER_FILE", 200)
    table = rows(250)
    whole = write_training_set(tmp_path / "whole", manifest(), table, [table])
    parts = write_training_set(tmp_path / "parts", manifest(), table, in_pieces(table, size))
    assert file_bytes(whole.folder) == file_bytes(parts.folder)
    assert parts.read() == table


def test_rows_are_spread_over_files_and_groups_of_long_sequences_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROWS_PER_FILE", 1_000)
    table = rows(2_500)
    for length, per_group in [(50, 1_250), (4_000, 1_000), (40_000, 100)]:
        monkeypatch.setattr(files, "ROWS_PER_GROUP", 1_250)
        found = write_training_set(tmp_path / "set", manifest(sequence_length=length), table, [table])
        written = [pq.ParquetFile(found.folder / "rows" / name) for name in sorted(found.manifest.files or {})]
        groups = [file.metadata.row_group(group).num_rows for file in written for group in range(file.num_row_groups)]
        assert groups[:-1] == [per_group] * (len(groups) - 1)
        assert len(written) == (2 if per_group == 1_250 else 3)
        assert found.read() == table


def test_a_delta_training_set_is_a_delta_table_over_the_same_files(tmp_path: Path) -> None:
    table = rows(9)
    plain = write_training_set(tmp_path / "plain", manifest(), table, [table])
    delta = write_training_set(tmp_path / "delta", manifest(format="delta"), table, [table])
    found = DeltaTable(str(delta.folder / "rows"))
    assert found.to_pyarrow_dataset().to_table() == table == delta.read()
    assert (found.version(), found.to_pyarrow_dataset().count_rows()) == (0, 9)
    assert set(delta.manifest.files or {}) == {*(plain.manifest.files or {}), DELTA_LOG}
    first = (plain.folder / "rows" / "part-00000.parquet").read_bytes()
    assert (delta.folder / "rows" / "part-00000.parquet").read_bytes() == first


def test_no_rows_are_no_training_set(tmp_path: Path) -> None:
    for batches in ([], [rows(0)]):
        with pytest.raises(InputError, match="training set january: there are no rows to write"):
            write_training_set(tmp_path / "set", manifest(), rows(0), batches)


def test_files_that_come_out_otherwise_than_expected_do_not_replace_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    expected = write_training_set(folder, manifest(), rows(3), [rows(3)]).manifest
    before = file_bytes(folder)
    other = rows(3).set_column(2, "price", pa.array([9, 9, 9], pa.int64()))
    for labels, batch, message in [
        (rows(3), other, r"files differ from those of the manifest: \['part-00000.parquet'\]"),
        (rows(2), rows(2), "the label rows are others than those of the manifest: 2 rows"),
        (rows(3), rows(3).drop_columns("price"), r"the columns are others .* \[\('price', 'int64'\)\]"),
    ]:
        with pytest.raises(InputError, match=message):
            write_training_set(folder, manifest(), labels, [batch], expected=expected)
        assert file_bytes(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert hash_of_file(path) == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_the_log_of_a_delta_set_knows_no_clock(tmp_path: Path) -> None:
    found = write_training_set(tmp_path / "set", manifest(format="delta"), rows(3), [rows(3)])
    actions = [json.loads(line) for line in (found.folder / "rows" / DELTA_LOG).read_text().splitlines()]
    settled = int(END.timestamp() * 1000)
    assert actions[0]["commitInfo"]["timestamp"] == actions[3]["add"]["modificationTime"] == settled


def test_the_hash_of_rows_is_of_values_in_order_and_not_of_their_layout() -> None:
    columns = {
        "id": pa.array(["a", None, "", "bc"]),
        "at": pa.array([START, None, END, START], MOMENT),
        "clicked": [True, None, False, True],
        "share": [0.5, None, 0.0, 1.0],
    }
    table = pa.table(columns)
    in_pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 3)])
    assert hash_of_rows(in_pieces) == hash_of_rows(table) == hash_of_rows(table.take(pa.array([0, 1, 2, 3])))
    others = [
        table.take(pa.array([1, 0, 2, 3])),
        table.slice(0, 3),
        table.rename_columns(["other", "at", "clicked", "share"]),
        table.set_column(0, "id", pa.array(["a", "", None, "bc"])),
        table.set_column(0, "id", pa.array(["a", None, "b", "c"])),
        table.set_column(3, "share", pa.array([0.5, 0.0, None, 1.0])),
    ]
    assert len({hash_of_rows(other) for other in [table, *others]}) == 7


def test_the_hash_of_rows_reads_nested_columns() -> None:
    words = pa.array([["a", None], [], None, ["bc"]], pa.list_(pa.string()))
    pairs = pa.array([[("k", "v")], [], None, [("l", None)]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"words": words, "pairs": pairs, "raw": pa.array([b"x", b"", None, b"yz"])})
    assert hash_of_rows(pa.concat_tables([table.slice(0, 3), table.slice(3)])) == hash_of_rows(table)
    others = [
        table.set_column(0, "words", pa.array([["a"], [None], None, ["bc"]], pa.list_(pa.string()))),
        table.set_column(0, "words", pa.array([["a", None], None, [], ["bc"]], pa.list_(pa.string()))),
        table.set_column(1, "pairs", pa.array([[("k", "v")], [], None, [("l", "")]], pairs.type)),
        table.set_column(2, "raw", pa.array([b"x", None, b"", b"yz"])),
    ]
    assert len({hash_of_rows(other) for other in [table, *others]}) == 5
