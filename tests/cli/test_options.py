from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.options import Json, Output, give
from moonlake.errors import InputError

app = typer.Typer()


@app.command()
def tell(as_json: Json = False, output: Output = None) -> None:
    give({"rows": 3}, ["3 rows", "of one table"], as_json=as_json, output=output)


def test_lines_for_people_unless_json_is_asked_for() -> None:
    assert CliRunner().invoke(app, []).stdout == "3 rows\nof one table\n"
    assert json.loads(CliRunner().invoke(app, ["--json"]).stdout) == {"rows": 3}


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_file_gets_the_json_beside_what_is_printed(words: list[str], tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, words).stdout
    answer = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "report.json")])
    assert (answer.exit_code, answer.stdout) == (0, printed)
    assert json.loads((tmp_path / "report.json").read_text()) == {"rows": 3}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["--output", str(tmp_path)]).exit_code == 2
    with pytest.raises(InputError, match=r"--output .*/none/report.json: No such file or directory"):
        give({}, [], as_json=False, output=tmp_path / "none" / "report.json")


def test_lines_are_not_made_for_json() -> None:
    class Lines:
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("asked for lines")

    give({}, Lines(), as_json=True, output=None)
