from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import COMMANDS, OLD_NAMES, app
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmeo"], "No such command 'dmeo'. Did you mean 'demo'?"),
        (["trainingset"], "No such command 'trainingset'. Did you mean 'training-set'"),
        (["consistncy"], "No such command 'consistncy'. Did you mean 'check consistency'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["space", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["check", "tabels"], "No such command 'tabels'. Did you mean 'tables'?"),
        (["space", "list", "--jsn"], "No such option: --jsn (Possible options: --json)"),
        (["train", "encoder"], "Missing argument 'name'"),
    ],
)
def test_a_mistyped_command_is_a_usage_error_that_names_the_nearest(words: list[str], said: str) -> None:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert answer.stderr.splitlines()[-1].startswith(f"Error: {said}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["stage", "myntra"], ["source", "myntra"]),
        (["features", "materialize"], ["feature", "materialize"]),
        (["products", "add"], ["product", "add"]),
        (["spaces", "diff"], ["space", "diff"]),
        (["quality", "tables"], ["check", "tables"]),
        (["quality", "space"], ["check", "space"]),
        (["consistency"], ["check", "consistency"]),
        (["exchange-rate"], ["evaluate", "exchange-rate"]),
    ],
)
def test_old_names_still_run_and_name_the_new_ones_in_one_line(old: list[str], new: list[str]) -> None:
    answer, now = (CliRunner().invoke(app, [*words, "--help"]) for words in (old, new))
    assert (answer.exit_code, answer.stdout) == (0, now.stdout)
    assert now.stderr == ""
    assert len(answer.stderr.splitlines()) == 1
    renamed = " ".join(new[: len(new) - len(old) + 1])
    assert f"`moonlake {old[0]}` is `moonlake {renamed}` now" in answer.stderr


WITHOUT_REPORT = {
    "product watch": "a stream that does not end",
    "job": "the words belong to the job, which prints its own report as JSON; tests/cli/test_job.py has `job list`",
    "airflow": "the words belong to Airflow",
}
"""Commands without --json and --output, and why."""


def commands_below(group: Any, words: tuple[str, ...], context: Any) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands_below(command, (*words, name), context)
        else:
            yield " ".join((*words, name)), command


def test_every_command_that_reports_gives_json_and_writes_it() -> None:
    root = get_command(app)
    commands = dict(commands_below(root, (), root.make_context("moonlake", ["job", "list"])))
    options = {name: {flag for one in command.params for flag in one.opts} for name, command in commands.items()}
    assert {name for name, flags in options.items() if not {"--json", "--output"} <= flags} == set(WITHOUT_REPORT)
    assert {"check tables", "train encoder", "space list", "doctor"} < set(commands)
    for name in commands.keys() - WITHOUT_REPORT:
        shown = CliRunner().invoke(app, [*name.split(), "-h"]).stdout
        assert "Print the report as JSON" in shown, name


def test_old_names_are_not_listed() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout
    assert not [name for name in OLD_NAMES if f"  {name} " in listed]


def test_help_has_a_short_form_everywhere_and_says_the_exit_codes() -> None:
    for words in ([], ["space"], ["space", "list"], ["job"]):
        short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
        assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Exit codes: 0 done; 1 refused" in CliRunner().invoke(app, ["-h"]).stdout


def test_the_version_is_that_of_the_package() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"moonlake {version('moonlake')}\n")


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


PRINTS_AND_WAITS = """
import sys, time
import cli.app, cli.job

def job() -> None:
    print("a line")
    time.sleep(60)

cli.job.job = job
sys.argv = ["moonlake", "job"]
cli.app.main()
"""


def test_lines_reach_a_pipe_before_the_command_ends() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", PRINTS_AND_WAITS], env=environment, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        try:
            assert command.stdout.readline() == "a line\n"
            assert command.poll() is None
        finally:
            command.kill()


@pytest.mark.parametrize(
    ("words", "heard"), [([], {"info"}), (["-q"], set()), (["--quiet"], set()), (["-v"], {"debug", "info"})]
)
def test_the_root_says_how_much_is_logged(words: list[str], heard: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(context: typer.Context) -> None:
        for level in (logging.DEBUG, logging.INFO):
            logging.getLogger("cli.job").log(level, "line")

    monkeypatch.setattr("cli.job.job", speak)
    answer = CliRunner().invoke(app, [*words, "job"])
    assert answer.exit_code == 0
    lines = [json.loads(line) for line in answer.stderr.splitlines()]
    assert {line["level"] for line in lines} == heard
    assert all(line["command"] == "job" for line in lines)


def test_the_command_answers_at_once() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cli.app", "--help"], check=False)
    assert done.returncode == 0
    # Half a second on an idle machine; torch, pyspark or feast would add three to twelve.
    assert time.perf_counter() - started < 3
