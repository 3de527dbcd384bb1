from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

import spark_jobs
from cli.app import app
from cli.job import job_names


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
