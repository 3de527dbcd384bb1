"""`moonlake training-set` on a small lake, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.feast_delta.store import apply
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.spec import options as spec_options
from moonlake.training_sets.training_set import TrainingSet
from spark_jobs import build_training_set

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


def test_every_option_reaches_the_manifest(moonlake: Callable[..., Result]) -> None:
    view = "user_behavior_sequence_v1"
    lengths = ["--sequence-length", "9", "--sequence-length", f"{view}=3"]
    columns = [part for name in ("clicked", "user_id", "product_id") for part in ("--label-column", name)]
    result = moonlake("build", "all", *WINDOW, *lengths, *columns, "--format", "delta", "--version", "users=0")
    assert result.exit_code == 0, result.stderr
    spec = json.loads(moonlake("show", "all", "--manifest").stdout)["declaration"]
    assert (spec["sequence_length"], spec["sequence_lengths"]) == (9, {view: 3})
    assert (spec["format"], spec["versions"]) == ("delta", {"users": 0})
    assert spec["label_columns"] == ["clicked", "user_id", "product_id"]
    similar = ["--service", "similar_products_v1", "--space-id", "5" * 32, "--known-by", "written"]
    assert "known by: written\n" in moonlake("build", "similar", *WINDOW, *similar).stdout


def test_the_command_and_the_job_accept_every_field(
    moonlake: Callable[..., Result], settings: Settings, write_rows: Write
) -> None:
    shown = {"impression_id": "j", "user_id": "u", "product_id": "p", "event_timestamp": SHOWN}
    write_rows(settings, "impressions", [{**shown, "clicked": False, "label_time": SHOWN}])
    impressions = Lake(settings).path("impressions")
    options = {
        "start": ["2026-01-02T00:00:00Z"],
        "end": ["2026-01-20T00:00:00Z"],
        "settled_by": ["2026-01-19T00:00:00Z"],
        "feature_service": ["similar_products_v1"],
        "label_table": [impressions],
        "label_key": ["impression_id"],
        "label_event_time": ["event_timestamp"],
        "label_columns": ["clicked", "product_id", "content_id"],
        "versions": [f"{impressions}=1"],
        "sequence_length": ["9"],
        "space_id": ["5" * 32],
        "known_by": ["written"],
        "format": ["delta"],
        "sequences": ["pointers"],
    }
    flags = {option.field: option.flags for option in spec_options()}
    assert flags.keys() == options.keys()
    for spelling in (0, -1):
        words = [part for name, values in options.items() for one in values for part in (flags[name][spelling], one)]
        by_command = moonlake("build", f"command{spelling}", *words)
        assert by_command.exit_code == 0, by_command.stderr
        build_training_set.main(["--name", f"job{spelling}", *words])
        ours, theirs = (
            TrainingSet.open(settings.training_sets / f"{how}{spelling}").manifest.spec for how in ("command", "job")
        )
        assert replace(ours, name=theirs.name) == theirs
        unstated = TrainingSetSpec("default", ours.start + timedelta(1), ours.end + timedelta(1))
        same = [one.name for one in fields(ours) if getattr(ours, one.name) == getattr(unstated, one.name)]
        assert same == ["sequence_lengths"]  # test_every_option_reaches_the_manifest states it


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
        "specification: name january -> later",
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
        (
            ["build", "a", "--from-manifest", "b", "--end", "2026-01-02Z"],
            "states everything: leave --end out",
        ),
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
