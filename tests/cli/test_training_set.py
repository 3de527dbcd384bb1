"""`moonlake training-set` on a small lake, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.feast_delta.store import apply
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
SHOWN = datetime(2026, 1, 5, tzinfo=UTC)
WINDOW = ("--start", "2026-01-01T00:00:00Z", "--end", "2026-02-01T00:00:00Z")


@pytest.fixture
def moonlake(settings: Settings, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs a command on a lake with one product, one user and one settled impression."""
    write_rows(settings, "products", [{"product_id": "p", "price_cents": 900, "event_timestamp": SHOWN}])
    write_rows(settings, "users", [{"user_id": "u", "segment": "loyal", "event_timestamp": SHOWN}])
    shown = {"impression_id": "i", "user_id": "u", "product_id": "p", "event_timestamp": SHOWN}
    write_rows(settings, "impressions", [{**shown, "clicked": True, "label_time": SHOWN + timedelta(hours=1)}])
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    apply(settings)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["training-set", *arguments])

    return run


def test_a_training_set_is_built_once_and_shown(moonlake: Callable[..., Result], settings: Settings) -> None:
    first, second = (moonlake("build", "january", *WINDOW) for _ in range(2))
    folder = settings.training_sets / "january"
    assert first.stdout.startswith(f"{folder} (built)\n")
    assert second.stdout.startswith(f"{folder} (unchanged)\n")
    assert "rows: 1\n" in moonlake("show", "january").stdout
    manifest = json.loads(moonlake("show", "january", "--manifest").stdout)
    assert manifest["table_versions"]["impressions"] == 0


def test_everything_that_is_declared_reaches_the_manifest(moonlake: Callable[..., Result]) -> None:
    view = "user_behavior_sequence_v1"
    lengths = ["--sequence-length", "9", "--sequence-length", f"{view}=3"]
    columns = [part for name in ("clicked", "user_id", "product_id") for part in ("--label-column", name)]
    result = moonlake("build", "all", *WINDOW, *lengths, *columns, "--format", "delta", "--version", "users=0")
    assert result.exit_code == 0, result.stderr
    declared = json.loads(moonlake("show", "all", "--manifest").stdout)["declaration"]
    assert (declared["sequence_length"], declared["sequence_lengths"]) == (9, {view: 3})
    assert (declared["format"], declared["versions"]) == ("delta", {"users": 0})
    assert declared["label_columns"] == ["clicked", "user_id", "product_id"]
    similar = ["--service", "similar_products_v1", "--space-id", "5" * 32, "--known-by", "written"]
    assert "known by: written\n" in moonlake("build", "similar", *WINDOW, *similar).stdout


def test_a_set_is_built_again_verified_and_compared(
    moonlake: Callable[..., Result], settings: Settings, write_rows: Write
) -> None:
    moonlake("build", "january", *WINDOW)
    write_rows(settings, "products", [{"product_id": "p", "price_cents": 7, "event_timestamp": SHOWN}])
    again = moonlake("build", "again", "--from-manifest", "january")
    folder = settings.training_sets / "again"
    assert again.stdout == f"{folder}: 1 rows, every byte as in the manifest\n"
    by_file = moonlake("build", "third", "--from-manifest", str(folder / "manifest.json"))
    assert by_file.exit_code == 0, by_file.stderr
    assert moonlake("diff", "january", "again").stdout.splitlines() == [
        "rows in both 1, only in january 0, only in again 0",
        "the rows are the same",
    ]
    verified = moonlake("verify", "again", "--rebuild")
    assert verified.exit_code == 0
    first, second = verified.stdout.splitlines()
    assert first == "built again: every byte is the same"
    assert second.startswith(f"{folder}: as its manifest says; reproducible until 20")
    moonlake("build", "later", *WINDOW)
    assert moonlake("diff", "january", "later").stdout.splitlines() == [
        "declaration: name january -> later",
        "version of products 0 -> 1",
        "rows in both 1, only in january 0, only in later 0",
        "changed in price_cents: 1 rows",
    ]
    assert not [path for path in settings.training_sets.iterdir() if path.name.startswith(".")]


def test_what_verify_finds_is_a_line_each_and_exit_code_1(moonlake: Callable[..., Result], settings: Settings) -> None:
    moonlake("build", "january", *WINDOW, "--space-id", "5" * 32)
    path: Path = settings.training_sets / "january" / "rows" / "part-00000.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    result = moonlake("verify", "january")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("rows/part-00000.parquet was changed")
    assert lines[-1].startswith("embedding space: ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "march"], "there is no training set at"),
        (["build", "a", "--start", "2026-01-01", "--end", "2026-01-02Z"], "has no time zone"),
        (["build", "a", "--start", "2026-01-01Z"], "state the window with --start and --end, or a manifest"),
        (["build", "a", "--from-manifest", "b", "--end", "2026-01-02Z"], "--from-manifest states the window"),
        (["build", "a", "--from-manifest", "b"], "there is no training set at"),
        (["build", "a", *WINDOW, "--known-by", "guess"], "known_by is one of event, written, found 'guess'"),
        (["build", "a", *WINDOW, "--version", "users"], "'users': expected NAME=NUMBER"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    moonlake: Callable[..., Result], command: list[str], message: str
) -> None:
    result = moonlake(*command)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
