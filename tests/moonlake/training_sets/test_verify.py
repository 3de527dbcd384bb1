"""Faults of a training set are found and named; two training sets are told apart."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from moonlake.embeddings.spaces import SpaceDefinition, register
from moonlake.errors import NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.training_sets import files
from moonlake.training_sets.diff import diff
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet
from moonlake.training_sets.verify import verify

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")


def rows(count: int, **columns: Any) -> pa.Table:
    numbers = range(count)
    stated = {
        "impression_id": [f"i{number}" for number in numbers],
        "event_timestamp": pa.array([START + timedelta(minutes=number // 2) for number in numbers], MOMENT),
        "price": pa.array(list(numbers), pa.int64()),
        "products": pa.array([["p"] * (number % 3) for number in numbers], pa.list_(pa.string())),
    }
    return pa.table({**stated, **columns})


def training_set(
    folder: Path, table: pa.Table, versions: Mapping[str, int] | None = None, **fields: Any
) -> TrainingSet:
    spec = TrainingSetSpec(**{"name": "january", "start": START, "end": END, **fields})
    inputs = Manifest(spec, dict(versions or {}), [{"view": "v", "ttl": 1}], "d", "1")
    return write_training_set(folder, inputs, table, [table])


@pytest.fixture
def found(settings: Settings) -> TrainingSet:
    return training_set(settings.training_sets / "january", rows(10), {"users": -1})


def test_a_training_set_that_is_as_it_was_written_has_no_problem(settings: Settings, found: TrainingSet) -> None:
    assert verify(settings, found.folder).problems == ()


def test_changed_missing_and_added_files_are_named(settings: Settings, found: TrainingSet) -> None:
    path = found.folder / "rows" / "part-00000.parquet"
    shutil.copy(path, path.with_name("part-00007.parquet"))
    assert verify(settings, found.folder).problems == (
        "rows holds files that the manifest does not name: part-00007.parquet",
    )
    path.with_name("part-00007.parquet").unlink()
    training_set(found.folder.with_name("other"), rows(9))
    shutil.copy(found.folder.with_name("other") / "rows" / path.name, path)
    changed, counted = verify(settings, found.folder).problems
    assert changed.startswith("rows/part-00000.parquet was changed: its hash is ")
    assert counted == "there are 9 rows, expected 10"
    path.write_bytes(b"no Parquet")
    assert any(line.startswith("rows cannot be read") for line in verify(settings, found.folder).problems)
    path.unlink()
    assert "files ['part-00000.parquet'] of its manifest are missing" in verify(settings, found.folder).problems[0]
    assert "there is no training set" in verify(settings, settings.training_sets / "none").problems[0]


def test_an_edited_manifest_no_longer_has_its_id(settings: Settings, found: TrainingSet) -> None:
    manifest = found.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sequence_length": 50', '"sequence_length": 51'))
    (problem,) = verify(settings, found.folder).problems
    assert problem.startswith(f"manifest.json was changed: its id is {found.manifest.training_set_id}")


def test_versions_that_can_no_longer_be_read_are_named(settings: Settings, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    for value in (1, 2):
        write_deltalake(path, pa.table({"a": [value]}), mode="overwrite")
    found = training_set(settings.training_sets / "january", rows(3), {path: 0})
    assert verify(settings, found.folder).problems == ()
    DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert verify(settings, found.folder).problems == (f"table {path} version 0: 1 of 1 files were vacuumed",)
    shutil.rmtree(path)
    assert "has no version 0 any more" in verify(settings, found.folder).problems[0]


def test_how_long_versions_are_kept_follows_from_the_table(settings: Settings, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    kept = {"delta.deletedFileRetentionDuration": "interval 2 days", "delta.logRetentionDuration": "interval 3 weeks"}
    write_deltalake(path, pa.table({"a": [1]}), configuration=kept)
    found = training_set(settings.training_sets / "january", rows(3), {path: 0, "users": -1})
    assert verify(settings, found.folder).reproducible_until is None  # the latest version
    write_deltalake(path, pa.table({"a": [2]}), mode="append")  # removes nothing: only the commits age
    times = [datetime.fromtimestamp(each["timestamp"] / 1000, UTC) for each in DeltaTable(path).history()[::-1]]
    assert verify(settings, found.folder).reproducible_until == times[0] + timedelta(weeks=3)
    write_deltalake(path, pa.table({"a": [3]}), mode="overwrite")
    assert verify(settings, found.folder).reproducible_until == times[1] + timedelta(days=2)


def test_the_space_has_to_be_there_and_to_have_learnt_before_the_labels(settings: Settings, lake: Lake) -> None:
    problems: list[str] = []
    for weights, until in [("early", START), ("late", START + timedelta(days=1))]:
        definition = SpaceDefinition(weights, "t", "p", "q", ("title",), "last", "l2", "float16", 8)
        folder = training_set(settings.training_sets / weights, rows(3), space_id=definition.space_id).folder
        problems += verify(settings, folder).problems
        stated: dict[str, Any] = {"artifact": "a", "metrics": {}, "status": "building", "coverage": 0.0}
        register(lake, definition, name=weights, trained_until=until, written_at=START, **stated)
        problems += verify(settings, folder).problems
    assert [line.startswith("embedding space: ") for line in problems] == [True, True, False]
    assert "learnt from events until 2026-01-02T00:00:00+00:00, behind the start of the labels" in problems[2]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 100)


@pytest.mark.usefixtures("small_groups")
def test_rows_are_compared_by_key_and_changes_counted_by_column(tmp_path: Path) -> None:
    a = training_set(tmp_path / "a", rows(1_000))
    table = rows(1_100)
    prices = table["price"].to_pylist()
    prices[5], prices[777] = -1, None
    lists = table["products"].to_pylist()
    lists[900] = ["q"]
    changed = table.set_column(2, "price", pa.array(prices, pa.int64())).set_column(3, "products", pa.array(lists))
    keep = pa.array([number % 250 != 1 for number in range(1_100)])  # drops 1, 251, 501, 751, 1001
    b = training_set(tmp_path / "b", changed.filter(keep))
    found = diff(a, b)
    assert (found.only_in_a, found.only_in_b, found.in_both) == (4, 99, 996)
    assert found.changed == {"price": 2, "products": 1}
    assert found.columns == found.inputs == []
    assert not found.same_rows
    back = diff(b, a)
    assert (back.only_in_a, back.only_in_b, back.changed) == (99, 4, found.changed)
    again = training_set(tmp_path / "again", rows(1_000), name="again", format="delta")
    assert diff(a, again).same_rows
    assert diff(a, again).in_both == diff(a, a).in_both == 1_000


def test_columns_and_inputs_that_differ_are_named(tmp_path: Path) -> None:
    a = training_set(tmp_path / "a", rows(4), {"users": 1, "gone": 2})
    table = rows(4).drop_columns("products").append_column("new", pa.array([1.0] * 4))
    table = table.set_column(2, "price", table["price"].cast(pa.float64()))
    b = training_set(tmp_path / "b", table, {"users": 2}, name="february", sequence_length=9)
    manifest = replace(b.manifest, definitions=[{"view": "v", "ttl": 2}, {"view": "w"}], code_version="2")
    found = diff(a, replace(b, manifest=manifest))
    assert found.columns == ["- products list<element: string>", "+ new double", "price int64 -> double"]
    assert found.inputs == [
        "specification: name january -> february",
        "specification: sequence_length 50 -> 9",
        "version of gone 2 -> None",
        "version of users 1 -> 2",
        "view w is new",
        "view v: ttl 1 -> 2",
        "built by moonlake 1 -> 2",
    ]
    assert (found.in_both, found.changed) == (4, {})


def test_rows_of_different_keys_cannot_be_compared(tmp_path: Path) -> None:
    a = training_set(tmp_path / "a", rows(4))
    other = replace(a, manifest=replace(a.manifest, label_key=("behavior_id",)))
    with pytest.raises(NotFound, match="named by impression_id, those of a by behavior_id"):
        diff(a, other)
