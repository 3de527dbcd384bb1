from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest
from typer.testing import CliRunner

import spark_jobs
from cli.app import app
from cli.jobs import job_names


def test_the_jobs_are_the_files_of_spark_jobs() -> None:
    assert job_names() == [module.name for module in pkgutil.iter_modules(spark_jobs.__path__)]
    assert "." not in "".join(job_names())


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
