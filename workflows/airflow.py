"""The environment of Airflow on this machine, set up for the DAGs of this repository."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from moonlake.settings import Settings
from moonlake.spark import jars

API_PORT = 8080
LOG_PORTS = (8793, 8794)


def airflow_environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of an Airflow process on this machine: what was inherited wins, our defaults fill it up.

    Only the settings, the path of spark-submit and `moonlake`, and where Spark lies are ours in any case: jobs that
    Airflow starts must run on the lake and in the environment of whoever started Airflow.
    """
    port = inherited.get("AIRFLOW__API__PORT", str(API_PORT))
    defaults = {
        "AIRFLOW_HOME": str(settings.airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(settings.checkout / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": str(settings.workers),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": port,
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        # A cluster is another connection: {"conn_type": "spark", "host": "spark://master:7077"}.
        "AIRFLOW_CONN_MOONLAKE_SPARK": json.dumps({"conn_type": "spark", "host": settings.spark_master}),
        **({"SPARK_LOCAL_IP": "127.0.0.1"} if settings.spark_master.startswith("local") else {}),
        # What spark-submit brings along; empty for a cluster that has Delta itself.
        "AIRFLOW_VAR_MOONLAKE_SPARK_PACKAGES": jars.coordinates(),
    }
    ours = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "SPARK_HOME": str(jars.spark_home()),
        "PYSPARK_PYTHON": sys.executable,
        **settings.environment(),
    }
    return defaults | dict(inherited) | ours
