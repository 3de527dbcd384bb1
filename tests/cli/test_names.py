"""Names that a user types: none leads out of its folder, and none that is refused leaves anything behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

T1, T2 = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
WINDOW = ["--start", T1, "--end", T2]
NAME = "NAME"
"""Stands for the name that is tried."""

COMMANDS = {
    "demo preset": ["demo", "--preset", NAME],
    "ingest preset": ["ingest", "--preset", NAME],
    "ingest source": ["ingest", "--source", "files", "--data", "data", "--name", NAME],
    "source preset": ["source", "marketplace", NAME],
    "source files": ["source", "files", "data", "--name", NAME],
    "source arrivals": ["source", "arrivals", NAME],
    "encoder": ["train", "encoder", NAME, "--before", T1],
    "parent": ["train", "encoder", "good", "--before", T1, "--from", NAME],
    "ctr rows": ["train", "ctr", NAME, "--name", "good", "--end", T2],
    "ctr model": ["train", "ctr", "rows", "--name", NAME, "--end", T2],
    "ctr space": ["train", "ctr", "rows", "--name", "good", "--end", T2, "--space", NAME],
    "ctr ceiling": ["train", "ctr", "rows", "--name", "good", "--end", T2, "--ceiling", NAME],
    "evaluated space": ["evaluate", "encoder", NAME, *WINDOW],
    "evaluated ceiling": ["evaluate", "encoder", "good", *WINDOW, "--ceiling", NAME],
    "evaluated model": ["evaluate", "ctr", NAME, "--on", "rows"],
    "evaluated rows": ["evaluate", "ctr", "good", "--on", NAME],
    "exchanged space": ["evaluate", "exchange-rate", NAME, "good", "--on", "rows", *WINDOW],
    "exchanged rows": ["evaluate", "exchange-rate", "good", "better", "--on", NAME, *WINDOW],
    "training set": ["training-set", "build", NAME, *WINDOW],
    "rebuilt from": ["training-set", "build", "good", "--from-manifest", NAME],
    "rebuilt as": ["training-set", "build", NAME, "--from-manifest", "good"],
    "shown": ["training-set", "show", NAME],
    "verified": ["training-set", "verify", NAME],
    "rebuilt": ["training-set", "verify", NAME, "--rebuild"],
    "diff a": ["training-set", "diff", NAME, "good"],
    "diff b": ["training-set", "diff", "good", NAME],
    "space": ["space", "show", NAME],
    "space diff": ["space", "diff", "good", NAME],
    "retired": ["space", "retire", NAME],
    "planned": ["backfill", "plan", NAME],
    "filled": ["backfill", "run", NAME],
    "followed": ["backfill", "status", NAME],
    "checked space": ["check", "space", NAME],
    "checked table": ["check", "tables", NAME],
    "released": ["release", "promote", NAME],
    "released space": ["release", "promote", NAME, "--use", "similar_products"],
    "rolled back": ["release", "rollback", "--use", NAME],
    "product source": ["product", "add", "data", "--source", NAME],
    "deleted by": ["product", "delete", "p", "--source", NAME],
    "job": ["job", NAME],
}
FOLDERS = {
    "ingest source", "source files", "encoder", "ctr rows", "ctr model", "ctr ceiling", "evaluated rows",
    "exchanged rows", "training set", "rebuilt as", "shown", "diff a", "product source", "deleted by",
}  # fmt: skip
"""Commands that make a folder's name or a table's label of it before they look anything up."""
BAD = ["../x", "a/b", "", ".hidden", "a" * 300]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that is not there yet, beside a folder of own files."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "data" / "products.csv").write_text("product_id,title\np,mug\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path / "work" / "home"))
    return tmp_path / "work" / "home"


@pytest.mark.parametrize("name", BAD, ids=["up", "path", "empty", "hidden", "long"])
@pytest.mark.parametrize("tried", COMMANDS)
def test_a_bad_name_is_one_clear_line_and_writes_nothing(tried: str, name: str, home: Path) -> None:
    command = COMMANDS[tried]
    before = files_below(home.parents[1])
    answer = CliRunner().invoke(app, ["-q", *(name if word == NAME else word for word in command)])
    assert answer.exit_code in (1, 2), answer.output
    assert isinstance(answer.exception, SystemExit)
    last = (answer.stderr or answer.stdout).splitlines()[-1]
    if command[:2] != ["training-set", "verify"]:  # prints what is wrong as its report
        assert last.startswith(("error: ", "Error: ")), answer.stderr
    assert ("name" in last and "expected letters, digits" in last) >= (tried in FOLDERS), last
    assert files_below(home.parents[1]) == before


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
