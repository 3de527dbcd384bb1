"""Specification, manifest, files and reader of a training set, without Feast."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moonlake.errors import InputError, NotFound
from moonlake.schema.tables import IMPRESSIONS
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.labels import LABEL_COLUMNS, NEVER_ENTER
from moonlake.training_sets.manifest import Manifest, describe
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet, manifest_of
from moonlake.words import numbers_by_name

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")


def manifest(**fields: Any) -> Manifest:
    spec = TrainingSetSpec(**{"name": "january", "start": START, "end": END, **fields})
    versions = {"impressions": 4, "users": -1}
    return Manifest(spec, versions, [{"view": "v"}], definitions_hash="d", code_version="1")


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
        replace(original, spec=replace(original.spec, sequence_length=51)),
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
    assert [path.name for path in written.folder.parent.iterdir()] == ["january"]
    assert TrainingSet.open(written.folder).read() == rows(7)


def test_what_is_missing_is_named(written: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no training set at .*february"):
        TrainingSet.open(tmp_path / "february")
    assert manifest_of(tmp_path / "february") is None
    with pytest.raises(NotFound, match=r"no columns \['position'\]; it has impression_id"):
        written.read(["position"])
    (written.folder / "rows" / "part-00000.parquet").unlink()
    with pytest.raises(NotFound, match=r"files \['part-00000.parquet'\] of its manifest are missing"):
        TrainingSet.open(written.folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": END, "end": START}, "is not before end"),
        ({"start": START.replace(tzinfo=None)}, "start 2026-01-01 00:00:00 has no time zone"),
        ({"name": "../elsewhere"}, "expected letters, digits"),
        ({"name": ""}, "expected letters, digits"),
        ({"known_by": "guess"}, "known_by is one of event, written, found 'guess'"),
        ({"sequences": "none"}, "sequences is one of inline, pointers, found 'none'"),
        ({"format": "csv"}, "format is one of parquet, delta, found 'csv'"),
        ({"sequence_lengths": {"v": 0}}, r"sequences of \{'v': 0\} actions; a length is 1 or more"),
    ],
)
def test_a_specification_that_cannot_be_met_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        manifest(**fields)


def test_no_label_column_knows_its_future() -> None:
    assert not {"position", "label_time", "propensity"} & set(LABEL_COLUMNS)
    assert sorted([*LABEL_COLUMNS, *NEVER_ENTER]) == sorted(IMPRESSIONS.names)


def test_lengths_are_stated_for_all_and_by_view() -> None:
    spec = manifest(sequence_length=9, sequence_lengths={"v": 3}).spec
    assert spec.with_lengths({"w": 4}).lengths == {"": 9, "v": 3, "w": 4}
    assert spec.with_lengths({"": 5, "v": 6}).lengths == {"": 5, "v": 6}
    with pytest.raises(InputError, match="'v=long': expected NAME=NUMBER"):
        numbers_by_name(["v=long"])


def test_a_specification_with_everything_stated_comes_back_from_json() -> None:
    stated = manifest(
        label_table="/data/clicks",
        label_key=("basket", "line"),
        label_event_time="at",
        label_columns=("paid",),
        versions={"users": 3},
        sequence_lengths={"v": 3},
        known_by="written",
        format="delta",
        sequences="pointers",
        settled_by=END,
    )
    assert Manifest.from_json(stated.as_json()) == stated


def test_a_description_names_the_window_and_what_was_read(written: TrainingSet) -> None:
    facts = describe(written.manifest)
    assert facts["rows"] == 7
    assert facts["window"] == "[2026-01-01T00:00:00+00:00, 2026-02-01T00:00:00+00:00)"
    assert facts["table versions"] == {"impressions": 4, "users": -1}
