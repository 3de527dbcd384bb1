"""Declaration, manifest, files and reader of a training set, without Feast."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moonlake.errors import InputError, NotFound
from moonlake.training_sets import (
    LABEL_COLUMNS,
    Declaration,
    Manifest,
    TrainingSet,
    describe,
    hash_of_rows,
    manifest_of,
    write_training_set,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")


def manifest(**declared: Any) -> Manifest:
    declaration = Declaration(**{"name": "january", "start": START, "end": END, **declared})
    versions = {"impressions": 4, "users": -1}
    return Manifest(declaration, versions, [{"view": "v"}], definitions_hash="d", code_version="1")


def rows(count: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table(
        {
            "impression_id": [f"i{number}" for number in numbers],
            "event_timestamp": pa.array([START + timedelta(hours=number) for number in numbers], MOMENT),
            "clicked": [number % 3 == 0 for number in numbers],
            "behavior_product_ids": pa.array([["p"] * number for number in numbers], pa.list_(pa.string())),
        }
    )


@pytest.fixture
def written(tmp_path: Path) -> TrainingSet:
    parts = [rows(3), rows(4, first=3)]
    labels = pa.concat_tables(parts).drop_columns("behavior_product_ids")
    return write_training_set(tmp_path / "january", manifest(), labels, parts)


def test_rows_are_read_back_in_order(written: TrainingSet) -> None:
    assert TrainingSet.open(written.folder).read() == rows(7)
    assert len(written) == 7


def test_a_part_of_columns_and_of_time_is_read(written: TrainingSet) -> None:
    found = written.read(["clicked", "impression_id"], start=START + timedelta(hours=2), end=START + timedelta(hours=5))
    assert found.column_names == ["clicked", "impression_id"]
    assert found["impression_id"].to_pylist() == ["i2", "i3", "i4"]


def test_bounds_may_be_given_in_any_time_zone(written: TrainingSet) -> None:
    tokyo = timezone(timedelta(hours=9))
    start = (START + timedelta(hours=5)).astimezone(tokyo)
    assert written.read(["impression_id"], start=start)["impression_id"].to_pylist() == ["i5", "i6"]


def test_a_manifest_comes_back_from_its_file_as_it_was(written: TrainingSet) -> None:
    found = TrainingSet.open(written.folder).manifest
    assert found.as_json() == written.manifest.as_json()
    assert found.training_set_id == written.manifest.training_set_id
    assert (found.start, found.end, found.space_id, found.rows) == (START, END, None, 7)
    assert found.columns == {field.name: str(field.type) for field in rows(1).schema}


def test_the_id_changes_with_everything_that_the_manifest_says(written: TrainingSet) -> None:
    original = written.manifest
    others = [
        replace(original, table_versions={"impressions": 5, "users": -1}),
        replace(original, definitions_hash="e"),
        replace(original, code_version="2"),
        replace(original, label_hash="l"),
        replace(original, declaration=replace(original.declaration, sequence_length=51)),
    ]
    assert len({other.training_set_id for other in [original, *others]}) == 6


def test_inputs_are_the_same_whatever_came_of_them_and_however_they_are_written(written: TrainingSet) -> None:
    tokyo = timezone(timedelta(hours=9))
    assert written.manifest.same_inputs(manifest(settled_by=END))
    assert written.manifest.same_inputs(manifest(start=START.astimezone(tokyo)))
    assert not written.manifest.same_inputs(manifest(settled_by=END + timedelta(days=1)))
    assert not written.manifest.same_inputs(manifest(space_id="s"))


def test_writing_again_replaces_the_whole_folder(written: TrainingSet) -> None:
    again = write_training_set(written.folder, manifest(), rows(2).drop_columns("behavior_product_ids"), [rows(2)])
    assert len(again) == again.read().num_rows == 2
    assert [path.name for path in written.folder.parent.iterdir()] == ["january"]


def test_a_build_that_fails_leaves_what_was_there(written: TrainingSet) -> None:
    def breaking() -> Any:
        yield rows(1)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_training_set(written.folder, manifest(), rows(1), breaking())
    assert TrainingSet.open(written.folder).read() == rows(7)


def test_what_is_missing_is_named(written: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no training set at .*february"):
        TrainingSet.open(tmp_path / "february")
    assert manifest_of(tmp_path / "february") is None
    with pytest.raises(NotFound, match=r"no columns \['position'\]; it has impression_id"):
        written.read(["position"])
    (written.folder / "rows" / "part-00001.parquet").unlink()
    with pytest.raises(NotFound, match=r"files \['part-00001.parquet'\] of its manifest are missing"):
        TrainingSet.open(written.folder)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"start": END, "end": START}, "is not before end"),
        ({"start": START.replace(tzinfo=None)}, "start 2026-01-01 00:00:00 has no time zone"),
        ({"name": "../elsewhere"}, "expected a plain folder name"),
        ({"name": ""}, "expected a plain folder name"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        manifest(**declared)


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


def test_no_label_column_knows_its_future() -> None:
    assert not {"position", "label_time", "propensity"} & set(LABEL_COLUMNS)


def test_a_description_names_the_window_and_what_was_read(written: TrainingSet) -> None:
    facts = describe(written.manifest)
    assert facts["rows"] == 7
    assert facts["window"] == "[2026-01-01T00:00:00+00:00, 2026-02-01T00:00:00+00:00)"
    assert facts["table versions"] == {"impressions": 4, "users": -1}
