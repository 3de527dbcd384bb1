"""Content similarities of target, query and behaviours for each impression of a window, in the live embedding space."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from dags.tasks import DEFAULTS, FIRST_DAY, NAME, midnight, spark_step, table, window

with DAG(
    dag_id="cube_features",
    description=__doc__,
    schedule=(table("embeddings") | table("impressions") | table("behavior_sequences")),
    start_date=FIRST_DAY,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={
        **window(days=7),
        "space": Param("live", type="string", pattern=NAME, description="embedding space, by name or id"),
    },
    tags=["features"],
) as dag:
    arguments = ["--start", midnight("params.days"), "--end", midnight(), "--space", "{{ params.space }}"]
    spark_step("build_cube_features", *arguments, writes=["cube_features"])
