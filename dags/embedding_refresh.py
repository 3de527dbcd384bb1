"""New and changed products get a vector in the live embedding space, and Feast serves it online."""

from __future__ import annotations

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, TriggerRule

from dags.tasks import DEFAULTS, FIRST_DAY, MOMENT, NAME, command_step, spark_step, table
from moonlake.settings import Settings

SKIP = 99
STAGED = f"{Settings.from_environment().staging}/{{{{ params.source }}}}"

with DAG(
    dag_id="embedding_refresh",
    description=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 * * * *", timezone="UTC"), assets=[table("product_events")]
    ),
    start_date=FIRST_DAY,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={
        "source": Param("incoming", type="string", pattern=NAME, description="folder of <home>/staging to take in"),
        "space": Param("live", type="string", pattern=NAME, description="embedding space, by name or id"),
    },
    tags=["embeddings"],
) as dag:
    look = BashOperator(
        task_id="look_for_products",
        bash_command=f"test -f '{STAGED}/source.json' || {{ echo 'nothing staged in {STAGED}'; exit {SKIP}; }}",
        skip_on_exit_code=SKIP,
    )
    ingest = spark_step("ingest_catalogue", "--folder", STAGED, writes=["products", "product_images", "queries"])
    # What was submitted one by one, where no stream is at work.
    intake = spark_step(
        "stream_products", "--once", writes=["products", "product_images", "embeddings", "product_arrivals"]
    )
    intake.trigger_rule = TriggerRule.NONE_FAILED
    embed = spark_step("embed_contents", "--space", "{{ params.space }}", writes=["embeddings"])
    gates = command_step("gates", "check", "space", "{{ params.space }}", writes=["gate_results"])
    serve = command_step(
        "serve_online", "feature", "materialize", "product_profile_v1", "content_embedding_v1", "--end", MOMENT
    )

    look >> ingest >> intake >> embed >> gates >> serve
