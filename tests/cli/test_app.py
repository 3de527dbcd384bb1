from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from cli.app import COMMANDS, app
from moonlake.errors import NotFound


def test_help_lists_every_command_with_its_line() -> None:
    answer = CliRunner().invoke(app, ["--help"])
    assert answer.exit_code == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in answer.stdout
        assert " ".join(entry.line.split()[:3]) in answer.stdout


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if not entry.hands_on])
def test_every_command_is_where_the_list_says(name: str) -> None:
    answer = CliRunner().invoke(app, [name, "--help"])
    assert answer.exit_code == 0, answer.output
    assert f" {name} [OPTIONS]" in answer.output


def test_an_unknown_command_is_refused() -> None:
    answer = CliRunner().invoke(app, ["dmeo"])
    assert answer.exit_code == 2
    assert "No such command 'dmeo'" in answer.stderr


def test_an_error_raised_on_purpose_is_one_line_and_exit_code_1() -> None:
    answer = CliRunner().invoke(app, ["job", "no_such_job"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: no job no_such_job; the jobs are ")
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stdout == ""


def test_debug_shows_where_an_error_came_from() -> None:
    answer = CliRunner().invoke(app, ["--debug", "job", "no_such_job"])
    assert isinstance(answer.exception, NotFound)


def test_an_unknown_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_HOEM", "/elsewhere")
    answer = CliRunner().invoke(app, ["airflow", "version"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: unknown variables MOONLAKE_HOEM")


def test_the_command_answers_at_once() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cli.app", "--help"], check=False)
    assert done.returncode == 0
    # Half a second on an idle machine; torch, pyspark or feast would add three to twelve.
    assert time.perf_counter() - started < 3
