from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.ingest import report_lines
from moonlake.lake.lake import WriteReport
from sources.own_files.staging import SourceInfo

HEADER = "product_id,title,image_names,listed_at\n"
GOOD = "p1,red chair,,2026-01-01T00:00:00Z\n"


def errors(found: Result) -> list[str]:
    """The lines on stderr but for those of the log."""
    return [line for line in found.stderr.splitlines() if not line.startswith("{")]


def nothing(folder: Path) -> Path:
    return folder / "nowhere"


def empty(folder: Path) -> Path:
    (folder / "products.csv").write_text(HEADER)
    return folder


def without_ids(folder: Path) -> Path:
    (folder / "products.csv").write_text("name,title\np1,red chair\n")
    return folder


def not_a_table(folder: Path) -> Path:
    (folder / "products.parquet").write_text(HEADER + GOOD)
    return folder


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (nothing, "nowhere"),
        (empty, "products.csv"),
        (without_ids, "product_id"),
        (not_a_table, "products.parquet"),
    ],
)
def test_input_that_cannot_be_read_is_one_clear_line_and_leaves_no_lake(
    make: Callable[[Path], Path], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("MOONLAKE_HOME", str(home))
    found = CliRunner().invoke(app, ["ingest", "--source", "files", "--data", str(make(tmp_path / "data"))])
    assert found.exit_code == 1
    lines = errors(found)
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert not (home / "lake").exists()


def test_a_source_that_needs_a_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    found = CliRunner().invoke(app, ["ingest", "--source", "myntra"])
    assert found.exit_code == 1
    assert "--source myntra needs --data" in found.stderr


@pytest.mark.parametrize("source", ["taobao", "rees46", "otto", "esci", "open_bandit"])
def test_a_folder_without_the_files_is_one_clear_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path / "home"))
    found = CliRunner().invoke(app, ["ingest", "--source", source, "--data", str(tmp_path)])
    assert found.exit_code == 1
    (line,) = errors(found)
    assert line.startswith(f"error: {tmp_path}")


def test_only_logs_without_impressions_take_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    found = CliRunner().invoke(app, ["ingest", "--source", "myntra", "--data", str(tmp_path), "--negatives", "2"])
    assert found.exit_code == 1
    assert "--negatives 2: only a log without impressions takes it, not myntra" in found.stderr


@pytest.mark.parametrize("source", ["otto", "esci", "open_bandit"])
def test_a_source_without_pictures_is_none_of_the_demo(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    found = CliRunner().invoke(app, ["demo", "--source", source])
    assert found.exit_code == 1
    assert f"--source {source} has no pictures to learn from" in found.stderr


def test_what_became_of_the_rows_is_shown_by_rule() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    info = SourceInfo("taobao", False, "real behaviour log", (moment, moment), moment, moment, "", "")
    by_rule = {"user_id_missing": 2, "event_type_unknown": 1}
    reports = [WriteReport("behaviors", 1_000, 990, 3, 5, 2, 4, by_rule), WriteReport("users", 0, 0, 0, 0, 0, -1)]

    def shown(info: SourceInfo) -> list[list[str]]:
        return [line.split() for line in report_lines(reports, info)]

    lines = shown(info)
    assert ["behaviors", "1,000", "990", "3", "5", "2", "4"] in lines
    assert ["rejected", "behaviors", "user_id_missing", "2"] in lines
    assert ["rejected", "behaviors", "event_type_unknown", "1"] in lines
    assert not any("simulated:" in line for line in lines)
    sampled = replace(info, simulated=True, kind="sampled negatives", repaired={"price_zero": 9})
    assert ["taken", "for", "null", "price_zero", "9"] in shown(sampled)
    assert shown(sampled)[-1] == ["simulated:", "sampled", "negatives"]
