"""Impressions become a training set: which rows, in which order, the same bytes again, nothing of the future."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.store import apply
from moonlake.lake import Lake
from moonlake.settings import Settings
from moonlake.training_sets import LABEL_COLUMNS, Declaration, TrainingSet
from spark_jobs import build_training_set
from spark_jobs.build_training_set import label_rows, run

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]

START = datetime(2026, 1, 1, tzinfo=UTC)
WRITTEN = datetime(2026, 3, 1, tzinfo=UTC)
JANUARY = Declaration("january", start=START, end=START + timedelta(days=31))


def impression(number: int, day: float, **stated: Any) -> dict[str, Any]:
    shown = START + timedelta(days=day)
    return {
        "impression_id": f"i{number}",
        "request_id": f"r{number // 2}",
        "user_id": f"u{number % 3}",
        "product_id": f"p{number % 2}",
        "position": 1 + number % 2,
        "clicked": number % 4 == 0,
        "event_timestamp": shown,
        "label_time": shown + timedelta(days=1),
        **stated,
    }


@pytest.fixture
def home(settings: Settings, write_rows: Write) -> Settings:
    """30 impressions in January, not in order, the last of which is settled in February; prices and actions."""
    numbers = [*range(10, 30), *range(10)]
    write_rows(settings, "impressions", [impression(number, day=1 + number) for number in numbers])
    prices = [(0, 0, 100), (0, 15, 150), (1, 5, 200)]
    facts = [
        {"product_id": f"p{product}", "price_cents": price, "event_timestamp": START + timedelta(days=day)}
        for product, day, price in prices
    ]
    write_rows(settings, "products", facts)
    days = range(1, 31)
    sequence = {
        "user_id": "u0",
        "month": "2026-01",
        "times_us": [int((START + timedelta(days=day)).timestamp()) * 1_000_000 for day in days],
        "actions": ["click"] * 30,
        **{name: [f"{name[0]}{day}" for day in days] for name in ("product_ids", "content_ids", "query_content_ids")},
        "event_timestamp": START + timedelta(days=30),
    }
    write_rows(settings, "behavior_sequences", [sequence])
    apply(settings)
    return settings


def built(settings: Settings, declaration: Declaration = JANUARY) -> TrainingSet:
    return run(settings, declaration, written_at=WRITTEN).training_set


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_the_settled_impressions_of_the_window_by_time_then_id(home: Settings, write_rows: Write) -> None:
    write_rows(home, "impressions", [impression(31, day=1), impression(30, day=1), impression(99, day=31)])
    ids = built(home).read(["impression_id"])["impression_id"].to_pylist()
    assert ids == ["i0", "i30", "i31", *(f"i{number}" for number in range(1, 30))]
    early = built(home, replace(JANUARY, settled_by=START + timedelta(days=4)))
    assert early.read(["impression_id"])["impression_id"].to_pylist() == ["i0", "i30", "i31", "i1", "i2"]


def test_a_click_that_is_still_to_come_is_not_taken_for_none(home: Settings, write_rows: Write) -> None:
    late = JANUARY.end - timedelta(hours=1)  # its attribution window reaches into February
    write_rows(home, "impressions", [impression(50, day=0, event_timestamp=late, label_time=late + timedelta(days=1))])
    assert "i50" not in built(home).read(["impression_id"])["impression_id"].to_pylist()


def test_columns_are_labels_then_features_and_position_is_not_among_them(home: Settings) -> None:
    columns = built(home).schema.names
    assert columns[: len(LABEL_COLUMNS)] == list(LABEL_COLUMNS)
    assert not {"position", "propensity", "label_time", "created_at"} & set(columns)
    assert {"price_cents", "product_ctr_7d", "user_clicks_7d", "segment", "behavior_times_us"} <= set(columns)


def test_features_are_those_of_the_moment_of_the_impression(home: Settings) -> None:
    for row in built(home).read().to_pylist():
        day = (row["event_timestamp"] - START).days
        first, then, changed = (100, 150, 15) if row["product_id"] == "p0" else (None, 200, 5)
        assert row["price_cents"] == (then if day >= changed else first)
        acted = list(range(1, day)) if row["user_id"] == "u0" else []
        assert row["behavior_product_ids"] == [f"p{earlier}" for earlier in acted]


def test_the_length_of_sequences_is_chosen_when_the_set_is_built(home: Settings) -> None:
    short = built(home, replace(JANUARY, name="short", sequence_length=3)).read(["user_id", "behavior_content_ids"])
    lists = [row["behavior_content_ids"] for row in short.to_pylist() if row["user_id"] == "u0"]
    assert lists[-1] == ["c25", "c26", "c27"]
    assert max(len(found) for found in lists) == 3


def test_a_second_build_does_no_work_and_keeps_every_byte(home: Settings) -> None:
    first = run(home, JANUARY, written_at=WRITTEN)
    written = {path: path.stat().st_mtime_ns for path in first.training_set.folder.rglob("*")}
    second = run(home, JANUARY, written_at=WRITTEN + timedelta(days=1))
    assert (first.built, second.built) == (True, False)
    assert {path: path.stat().st_mtime_ns for path in first.training_set.folder.rglob("*")} == written
    assert len(Lake(home).read("training_sets")) == 1


def test_the_same_tables_give_the_same_bytes_in_any_folder_and_by_any_slices(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(home).folder
    first = file_bytes(folder)
    folder.rename(folder.with_name("kept"))
    assert file_bytes(built(home).folder) == first
    whole = built(home).read()
    monkeypatch.setattr(build_training_set, "ROWS_PER_PULL", 7)
    in_slices = built(home, replace(JANUARY, name="sliced"))
    assert len(in_slices.manifest.files or {}) == 5
    assert in_slices.read() == whole
    assert in_slices.manifest.label_hash == TrainingSet.open(folder).manifest.label_hash


def test_a_change_of_a_table_builds_anew_and_registers_a_second_set(home: Settings, write_rows: Write) -> None:
    before = built(home).manifest
    write_rows(home, "users", [{"user_id": "u0", "segment": "loyal", "event_timestamp": START}])
    report = run(home, JANUARY, written_at=WRITTEN)
    after = report.training_set.manifest
    assert report.built
    assert (before.table_versions["users"], after.table_versions["users"]) == (-1, 0)
    assert before.label_hash == after.label_hash
    registered = Lake(home).read("training_sets").to_pylist()
    assert {row["training_set_id"] for row in registered} == {before.training_set_id, after.training_set_id}
    assert {row["rows"] for row in registered} == {30}


def test_the_manifest_says_what_was_read(home: Settings) -> None:
    manifest = built(home).manifest
    tables = {"impressions", "products", "product_stats", "users", "user_stats", "behavior_sequences"}
    assert set(manifest.table_versions) == tables
    assert manifest.definitions[0]["view"] == "product_profile_v1"
    assert manifest.declaration == replace(JANUARY, settled_by=JANUARY.end)


def test_of_a_restated_impression_the_row_written_last_counts() -> None:
    columns = [*LABEL_COLUMNS, "created_at"]
    stated = [("b", 0, 1, False), ("a", 3, 1, False), ("b", 0, 2, True), ("a", 3, 0, True)]
    rows = [
        dict.fromkeys(columns, "x")
        | {"impression_id": ident, "event_timestamp": event, "created_at": created, "clicked": clicked}
        for ident, event, created, clicked in stated
    ]
    kept = label_rows(pa.Table.from_pylist(rows)).to_pylist()
    assert [(row["impression_id"], row["clicked"]) for row in kept] == [("b", True), ("a", False)]
    assert label_rows(pa.Table.from_pylist(rows[:1])).num_rows == 1


def test_a_window_without_settled_impressions_and_an_unknown_service_are_named(home: Settings) -> None:
    february = replace(JANUARY, start=JANUARY.end, end=JANUARY.end + timedelta(days=1), name="february")
    with pytest.raises(InputError, match="table impressions holds no impression in"):
        built(home, february)
    with pytest.raises(NotFound, match="no feature service ctr_v9"):
        built(home, replace(JANUARY, feature_service="ctr_v9"))
    assert not (home.training_sets / "february").exists()


def test_the_command_builds_and_then_finds_it_built(
    home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(home.home))
    window = ["--start", "2026-01-01T00:00:00Z", "--end", "2026-02-01T00:00:00Z"]
    for _ in range(2):
        build_training_set.main(["--name", "january", *window])
    folder = home.training_sets / "january"
    assert capsys.readouterr().out.splitlines() == [f"{folder}: 30 rows, built", f"{folder}: 30 rows, unchanged"]
