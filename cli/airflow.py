"""`moonlake airflow`: Airflow's own command, set up for the DAGs of this repository on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer

from moonlake.settings import Settings
from workflows.airflow import airflow_environment


def airflow(context: typer.Context) -> None:
    """Run Airflow with moonlake's DAGs: moonlake airflow standalone, moonlake airflow dags test DAG_ID [DATE], ...

    What the environment says already (AIRFLOW_HOME, AIRFLOW__API__PORT, AIRFLOW_CONN_MOONLAKE_SPARK) is kept.
    """
    settings = Settings.from_environment()
    environment = airflow_environment(settings, os.environ)
    program = [sys.executable, "-m", "airflow"]
    if not (Path(environment["AIRFLOW_HOME"]) / "airflow.db").exists() and context.args not in ([], ["-h"], ["--help"]):
        typer.echo(f"making Airflow's database in {environment['AIRFLOW_HOME']} ...", err=True)
        subprocess.run([*program, "db", "migrate"], env=environment, stdout=subprocess.DEVNULL, check=True)
    sys.stdout.flush()
    os.execve(sys.executable, [*program, *context.args], environment)
