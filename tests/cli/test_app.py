from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from cli.app import app
from moonlake.errors import NotFound


def test_help_lists_the_commands() -> None:
    answer = CliRunner().invoke(app, ["--help"])
    assert answer.exit_code == 0
    assert {"doctor", "job", "airflow"} <= {line.split()[0] for line in answer.stdout.splitlines() if line.strip()}


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
