"""Reads of an engine: one version, files in the order of their commits."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, write_deltalake

from moonlake.errors import NotFound
from moonlake.lake.versions import NEVER_WRITTEN, open_path


@pytest.fixture
def path(tmp_path: Path) -> str:
    folder = str(tmp_path / "numbers")
    for number in range(6):
        write_deltalake(folder, pa.table({"number": [number, number]}), mode="append")
    return folder


def test_rows_come_in_the_order_of_their_commits(path: str) -> None:
    assert open_path(path).dataset.to_table()["number"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_rows_keep_that_order_under_a_filter(path: str) -> None:
    kept = open_path(path).dataset.to_table(filter=ds.field("number").isin([4, 1]))
    assert kept["number"].to_pylist() == [1, 1, 4, 4]


def test_a_pinned_version_reads_what_it_held(path: str) -> None:
    snapshot = open_path(path, 1)
    assert (snapshot.version, snapshot.dataset.count_rows()) == (1, 4)


def test_a_table_without_rows_reads_as_empty(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    DeltaTable.create(str(tmp_path / "empty"), schema=schema)
    assert open_path(str(tmp_path / "empty")).dataset.to_table().num_rows == 0


def test_a_table_that_was_never_written_reads_as_empty_where_its_schema_is_known(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    for version in (None, NEVER_WRITTEN):
        snapshot = open_path(str(tmp_path / "nothing"), version, empty=schema)
        assert (snapshot.version, snapshot.dataset.schema) == (NEVER_WRITTEN, schema)


def test_a_missing_table_and_a_missing_version_are_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no Delta table at .*nowhere"):
        open_path(str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="no version 99"):
        open_path(path, 99)
