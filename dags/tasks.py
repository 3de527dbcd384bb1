"""Building blocks of the DAGs: a Spark job, a command, a table as an asset, a window of time.

Airflow runs the DAG files to build the DAGs: the settings are read when a step is built, not when this is imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, Param

from moonlake import names
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULTS: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(minutes=1)}
"""Jobs write nothing twice, so a retry is safe."""

RUN = "(data_interval_end | default(dag_run.run_after, true))"
"""The moment that a run stands for, inside a template; a run that an asset started has no data interval."""

MOMENT = "{{ " + RUN + ".isoformat() }}"

END = f"(macros.datetime.fromisoformat(params.end) if params.end else {RUN})"
"""The day that closes a window: of the run, unless a parameter names it. A run has the same window when repeated."""

NAME = names.PATTERN
DAY = r"^\d{4}-\d{2}-\d{2}$"
"""What a parameter may look like: it becomes a word of a command."""


def midnight(days_before_end: str = "0") -> str:
    """A template for the midnight (UTC) so many days before the window's end."""
    # Double quotes: the shell wraps the template in single ones.
    return f'{{{{ ({END} - macros.timedelta(days={days_before_end})).strftime("%Y-%m-%dT00:00:00Z") }}}}'


def window(days: int) -> dict[str, Param]:
    """The parameters that a window of whole days is made of."""
    return {
        "days": Param(days, type="integer", minimum=1, description="length of the window"),
        "end": Param(
            None, type=["null", "string"], pattern=DAY, description="day after the window; none: that of the run"
        ),
    }


def table(name: str) -> Asset:
    """The Delta table of that name as an asset. Raises KeyError for a name that no contract has."""
    return Asset(
        f"moonlake_{name}", uri=f"moonlake://lake/{name}", group="moonlake", extra={"grain": TABLES[name].grain}
    )


def spark_step(job: str, *arguments: str, writes: Iterable[str] = ()) -> SparkSubmitOperator:
    """A job of `spark_jobs` by spark-submit; where it runs is the connection `moonlake_spark`.

    Args:
        writes: tables that the job writes.
    """
    settings = Settings.from_environment()
    return SparkSubmitOperator(
        task_id=job,
        application=str(settings.checkout / "spark_jobs" / f"{job}.py"),
        application_args=list(arguments),
        conn_id="moonlake_spark",
        name=job,
        packages="{{ var.value.get('moonlake_spark_packages', '') }}",
        driver_memory=settings.spark_driver_memory,
        conf={"spark.driver.extraJavaOptions": "-Duser.timezone=UTC", "spark.log.level": "WARN"},
        outlets=[table(name) for name in writes],
    )


def command_step(task_id: str, *command: str, writes: Iterable[str] = ()) -> BashOperator:
    """A `moonlake` command, run in this environment; it fails when the command does, and so blocks what follows.

    Args:
        command: its words; templates in them are filled in before the shell sees them, each word quoted.
        writes: tables that the command writes.
    """
    return BashOperator(
        task_id=task_id,
        bash_command=shlex.join(["moonlake", *command]),
        append_env=True,
        outlets=[table(name) for name in writes],
    )
