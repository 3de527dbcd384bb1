from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import spark_jobs
from cli.app import app
from cli.job import job_names
from moonlake.settings import Settings


def test_the_jobs_are_the_files_of_spark_jobs() -> None:
    files = Path(next(iter(spark_jobs.__path__))).glob("*.py")
    assert job_names() == sorted(file.stem for file in files if file.stem != "__init__")


def test_without_a_job_the_jobs_are_listed() -> None:
    answer = CliRunner().invoke(app, ["job", "list"])
    assert answer.exit_code == 0
    assert ", ".join(job_names()) in answer.stdout


@pytest.mark.spark
@pytest.mark.parametrize("name", job_names())
def test_every_job_is_a_program_with_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = import_module(f"spark_jobs.{name}")
    with pytest.raises(SystemExit) as stop:
        job.main(["--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.spark(session=False)
def test_a_job_prints_one_report_and_logs_lines_of_json_that_name_its_run(settings: Settings, write_rows: Any) -> None:
    write_rows(settings, "users", [{"user_id": "u"}])
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", "job", "maintain_lake"],
        env={**os.environ, **settings.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["job"] == "maintain_lake"
    assert [(one["table"], one["compacted"]) for one in report["maintained"]] == [("users", 0)]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"].split()[1] for line in lines] == ["begins", "ended"]
    assert {(line["job"], line["run"], line["command"]) for line in lines} == {("maintain_lake", report["run"], "job")}
