from __future__ import annotations

import json
import sys
from pathlib import Path

from moonlake.settings import Settings
from workflows.airflow import airflow_environment


def test_jobs_of_airflow_see_the_settings_of_whoever_started_it() -> None:
    environment = airflow_environment(Settings(home=Path("lakeside"), workers=3), {"MOONLAKE_WORKERS": "3"})
    assert environment["MOONLAKE_HOME"] == str(Path("lakeside").absolute())
    assert environment["MOONLAKE_WORKERS"] == "3"
    assert environment["AIRFLOW_HOME"] == str(Path("lakeside/airflow").absolute())


def test_spark_jobs_go_to_the_settings_master_by_a_connection(settings: Settings) -> None:
    connection = json.loads(airflow_environment(settings, {})["AIRFLOW_CONN_MOONLAKE_SPARK"])
    assert connection == {"conn_type": "spark", "host": settings.spark_master}


def test_a_connection_that_is_set_already_is_kept(settings: Settings) -> None:
    cluster = {"AIRFLOW_CONN_MOONLAKE_SPARK": "spark://master:7077", "AIRFLOW_HOME": "/srv/airflow"}
    environment = airflow_environment(settings, cluster)
    assert {name: environment[name] for name in cluster} == cluster


def test_another_port_moves_every_address(settings: Settings) -> None:
    environment = airflow_environment(settings, {"AIRFLOW__API__PORT": "8090"})
    assert environment["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8090"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8090/execution/"


def test_programs_come_from_this_environment(settings: Settings) -> None:
    environment = airflow_environment(settings, {"PATH": "/usr/bin"})
    assert environment["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert (Path(environment["SPARK_HOME"]) / "bin" / "spark-submit").exists()
    assert Path(environment["AIRFLOW__CORE__DAGS_FOLDER"]) == settings.checkout / "dags"
