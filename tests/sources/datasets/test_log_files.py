"""Files of behaviour logs as text cells: one line, one record, whatever stands in it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from moonlake.errors import InputError, SchemaMismatch
from sources.datasets.log_files import FIELD_COUNT_WRONG, find_file, read_csv, records


def read(path: Path, columns: str, **options: Any) -> tuple[list[Any], list[object]]:
    batches = list(read_csv(path, tuple(columns), **options))
    rows = [row for batch in batches for row in records(batch.cells)]
    return rows, [line for batch in batches for line in batch.refused[FIELD_COUNT_WRONG]]


def test_lines_with_too_few_or_too_many_cells_are_handed_over_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b'\xef\xbb\xbf1, x\r\n2\n\n3,y,z\n4,"w\n5,v')
    rows, refused = read(tmp_path / "log.csv", "ab", header=False)
    assert rows == [{"a": "1", "b": "x"}, {"a": "4", "b": '"w'}, {"a": "5", "b": "v"}]
    assert refused == ["2", "3,y,z"]


def test_a_byte_that_is_not_utf8_costs_its_own_row_only(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"1,\xff\n2,b\n")
    rows, _ = read(tmp_path / "log.csv", "ab", header=False)
    assert rows == [{"a": "1", "b": "\udcff"}, {"a": "2", "b": "b"}]


def test_columns_are_found_by_their_header_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("c,b,a\n1,2,3\n")
    assert read(tmp_path / "log.csv", "ab", header=True)[0] == [{"a": "3", "b": "2"}]
    with pytest.raises(SchemaMismatch, match=r"log\.csv.*'d'.*expected a, d"):
        read(tmp_path / "log.csv", "ad", header=True)


def test_a_gzip_is_read_and_a_torn_one_is_one_clear_line(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b"%d,x\n" % number for number in range(1_000)))
    (tmp_path / "log.csv.gz").write_bytes(packed)
    assert len(read(tmp_path / "log.csv.gz", "ab", header=False)[0]) == 1_000
    (tmp_path / "log.csv.gz").write_bytes(packed[:-30])
    with pytest.raises(InputError, match=r"log\.csv\.gz: cannot be read as CSV"):
        read(tmp_path / "log.csv.gz", "ab", header=False)


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    lines = [f"{number},{'x' * (number % 50)}" for number in range(3_000)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    rows, refused = read(tmp_path / "log.csv", "ab", header=False, block_bytes=1_000)
    assert [f"{row['a']},{row['b']}" for row in rows] == lines
    assert not refused


def test_an_empty_file_and_an_ambiguous_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(InputError, match=r"log\.csv: cannot be read as CSV: Empty"):
        read(tmp_path / "log.csv", "ab", header=False)
    assert find_file(tmp_path, ["log.csv", "other.csv"]) == tmp_path / "log.csv"
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(InputError, match=r"found log\.csv, other\.csv"):
        find_file(tmp_path, ["log.csv", "other.csv"])
    with pytest.raises(InputError, match="found none of them"):
        find_file(tmp_path, ["third.csv"])
    with pytest.raises(InputError, match="is not a folder"):
        find_file(tmp_path / "nowhere", ["log.csv"])
