"""A vacuum keeps what is named, what is young and what the change feed needs; a dropped history leaves the latest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from moonlake.lake.lake import Lake
from moonlake.lake.vacuum import Vacuumed, drop_history, vacuum
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
LATER = datetime.now(UTC) + timedelta(days=400)


@pytest.fixture
def path(settings: Settings, lake: Lake, write_rows: Write) -> str:
    """A table of five versions: version n holds user n alone."""
    write_rows(settings, "users", [{"user_id": "u0"}])
    for number in range(1, 5):
        rows = lake.read("users").set_column(0, "user_id", [[f"u{number}"]]).cast(lake.read("users").schema)
        write_deltalake(lake.path("users"), rows, mode="overwrite")
    return lake.path("users")


def readable(path: str) -> dict[int, bool]:
    """The versions that have all their files."""
    versions = range(DeltaTable(path).version() + 1)
    return {each: all(Path(uri).exists() for uri in DeltaTable(path, version=each).file_uris()) for each in versions}


def test_versions_that_are_named_and_the_latest_stay(path: str) -> None:
    asked = {"keep": [1], "feed_from": None, "before": LATER}
    planned = vacuum(path, **asked, dry_run=True)  # type: ignore[arg-type]
    assert (planned.files, all(readable(path).values())) == (3, True)
    assert vacuum(path, **asked, dry_run=False) == planned  # type: ignore[arg-type]
    assert readable(path) == {0: False, 1: True, 2: False, 3: False, 4: True}
    assert vacuum(path, **asked, dry_run=False) == Vacuumed(0, 0)  # type: ignore[arg-type]


def test_what_changed_since_a_version_was_served_stays(path: str) -> None:
    assert vacuum(path, keep=[], feed_from=2, before=LATER, dry_run=False).files == 2
    assert readable(path) == {0: False, 1: False, 2: True, 3: True, 4: True}


def test_young_versions_and_a_file_that_is_being_written_stay(path: str) -> None:
    Path(path, "part-unfinished.parquet").write_bytes(b"x")
    assert vacuum(path, keep=[], feed_from=None, before=datetime.now(UTC) - timedelta(days=1), dry_run=False).files == 0
    assert all(readable(path).values())
    assert vacuum(path, keep=[0, 1, 2, 3], feed_from=None, before=LATER, dry_run=False).files == 1


def test_the_end_of_a_history_leaves_the_latest_version_alone(path: str, lake: Lake) -> None:
    latest = lake.read("users")
    assert drop_history(path) == 4 + 4
    assert lake.read("users").equals(latest)
    assert sorted(file.name for file in Path(path).glob("*.parquet")) == sorted(
        Path(uri).name for uri in DeltaTable(path).file_uris()
    )
    with pytest.raises(DeltaError):
        DeltaTable(path, version=3)
    write_deltalake(path, latest, mode="append")
    assert (len(lake.read("users")), lake.version("users")) == (2, 5)
    assert drop_history(path) > 0
    assert len(lake.read("users")) == 2
