"""Small files of the lake's tables become larger ones, and files go that no version needs that somebody names."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from dags.tasks import DEFAULTS, FIRST_DAY, command_step

with DAG(
    dag_id="lake_maintenance",
    description=__doc__,
    schedule="0 5 * * 0",
    start_date=FIRST_DAY,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"retention_days": Param(7, type="integer", minimum=1, description="keep all versions of so many days")},
    tags=["lake"],
) as dag:
    command_step("compact_and_vacuum", "lake", "maintain", "--retention-days", "{{ params.retention_days }}")
