from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

HEADER = "product_id,title,image_names,listed_at\n"
GOOD = "p1,red chair,,2026-01-01T00:00:00Z\n"


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
    lines = [line for line in found.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert not (home / "lake").exists()


def test_a_source_that_needs_a_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    found = CliRunner().invoke(app, ["ingest", "--source", "myntra"])
    assert found.exit_code == 1
    assert "--source myntra needs --data" in found.stderr
