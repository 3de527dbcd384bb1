"""A click model on the last days' impressions, with content and without: released if content pays on later days."""

from __future__ import annotations

from airflow.sdk import DAG, Param, chain

from dags.tasks import DEFAULTS, END, FIRST_DAY, NAME, command_step, midnight, window

ROWS = f'retraining-{{{{ {END}.strftime("%Y%m%d") }}}}'
IDS_ONLY = f"{ROWS}-ids"
WITH_CONTENT = f"{ROWS}-content"
T1, T2, T3 = midnight("params.days"), midnight("params.test_days"), midnight()

with DAG(
    dag_id="ctr_retraining",
    description=__doc__,
    schedule="0 3 * * *",
    start_date=FIRST_DAY,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={
        **window(days=28),
        "test_days": Param(3, type="integer", minimum=1, description="last days, kept for the test"),
        "minimum_gain": Param(0.0, type="number", description="AUC that content must add for a release"),
        "space": Param("live", type="string", pattern=NAME, description="embedding space, by name or id"),
    },
    tags=["models"],
) as dag:
    pull = command_step("pull", "training-set", "build", ROWS, "--start", T1, "--end", T3, writes=["training_sets"])
    train = [
        command_step("train_ids_only", "train", "ctr", ROWS, "--name", IDS_ONLY, "--end", T2),
        command_step(
            "train_with_content",
            *("train", "ctr", ROWS, "--name", WITH_CONTENT, "--end", T2, "--space", "{{ params.space }}"),
        ),
    ]
    gate = command_step(
        "evaluate_and_gate",
        *("evaluate", "ctr", WITH_CONTENT, "--on", ROWS, "--start", T2, "--end", T3),
        *("--against", IDS_ONLY, "--minimum-gain", "{{ params.minimum_gain }}"),
        writes=["model_versions"],
    )
    release = command_step(
        "release",
        *("release", "promote", WITH_CONTENT, "--minimum-gain", "{{ params.minimum_gain }}"),
        writes=["gate_results", "releases", "embedding_spaces"],
    )

    chain(pull, train, gate, release)
