"""Every product and query gets a vector in a named embedding space: what a new encoder needs before its release."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from dags.tasks import DEFAULTS, FIRST_DAY, NAME, command_step, spark_step

with DAG(
    dag_id="product_backfill",
    description=__doc__,
    schedule=None,
    start_date=FIRST_DAY,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"space": Param(type="string", pattern=NAME, description="embedding space, by name or id")},
    tags=["embeddings"],
) as dag:
    embed = spark_step("embed_contents", "--space", "{{ params.space }}", writes=["embeddings", "embedding_spaces"])
    gates = command_step("gates", "check", "space", "{{ params.space }}", writes=["gate_results"])

    embed >> gates
