"""Every DAG loads, is quick to parse, starts commands that exist, and only those."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from workflows.airflow import airflow_environment

pytestmark = pytest.mark.airflow

DAG_IDS = ["ctr_retraining", "cube_features", "embedding_refresh", "lake_maintenance", "product_backfill"]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs that Airflow finds in the folder, in a process of its own: Airflow sets itself up at import."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    environment = airflow_environment(settings, os.environ)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("look_at_dags.py"))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_all_dags_load_without_an_error(bag: dict[str, Any]) -> None:
    assert bag["errors"] == {}
    assert sorted(bag["dags"]) == DAG_IDS
    assert all(dag["serialized"] for dag in bag["dags"].values())


def test_the_id_of_a_dag_is_the_name_of_its_file(bag: dict[str, Any]) -> None:
    assert {dag_id: Path(dag["file"]).stem for dag_id, dag in bag["dags"].items()} == {name: name for name in DAG_IDS}


def test_all_dag_files_parse_within_a_second_each(bag: dict[str, Any]) -> None:
    assert bag["seconds"] < len(DAG_IDS)


def test_spark_jobs_go_through_the_one_connection(bag: dict[str, Any]) -> None:
    jobs = [task for dag in bag["dags"].values() for task in dag["tasks"].values() if task["application"]]
    assert len(jobs) >= 4
    for job in jobs:
        assert job["connection"] == "moonlake_spark"
        assert Path(job["application"]).exists(), job["application"]


def test_commands_are_commands_of_moonlake(bag: dict[str, Any]) -> None:
    commands = [task["command"] for dag in bag["dags"].values() for task in dag["tasks"].values() if task["command"]]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("moonlake ")]
    assert ours
    for words in ours:
        answer = CliRunner().invoke(app, [*words[:2], "--help"])
        assert answer.exit_code == 0, words
        options = {word for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[a-z-]+", answer.stdout)), words


def test_assets_are_tables_of_the_contracts(bag: dict[str, Any]) -> None:
    tables = {f"moonlake://lake/{name}" for name in TABLES}
    for dag in bag["dags"].values():
        assert set(dag["inputs"]) <= tables
        assert {uri for task in dag["tasks"].values() for uri in task["outlets"]} <= tables


def test_no_dag_starts_itself(bag: dict[str, Any]) -> None:
    for dag_id, dag in bag["dags"].items():
        written = {uri for task in dag["tasks"].values() for uri in task["outlets"]}
        assert not written & set(dag["inputs"]), dag_id


def test_new_embeddings_start_the_cube_features(bag: dict[str, Any]) -> None:
    for dag_id in ("embedding_refresh", "product_backfill"):
        written = {uri for task in bag["dags"][dag_id]["tasks"].values() for uri in task["outlets"]}
        assert written & set(bag["dags"]["cube_features"]["inputs"])


def test_a_window_is_the_last_whole_days_of_the_run_or_what_the_run_names(bag: dict[str, Any]) -> None:
    def command(start: str, end: str) -> list[str]:
        return ["--start", f"{start}T00:00:00Z", "--end", f"{end}T00:00:00Z", "--space", "live"]

    assert bag["windows"] == {
        "by interval": command("2026-02-22", "2026-03-01"),
        "by asset": command("2026-03-03", "2026-03-10"),
        "by name": command("2026-02-11", "2026-02-13"),
    }


def test_nothing_is_released_that_did_not_pass_the_gate(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["ctr_retraining"]["tasks"]
    assert {name: task["after"] for name, task in tasks.items()} == {
        "pull": [],
        "train_ids_only": ["pull"],
        "train_with_content": ["pull"],
        "evaluate_and_gate": ["train_ids_only", "train_with_content"],
        "release": ["evaluate_and_gate"],
    }
    assert "--minimum-gain" in tasks["evaluate_and_gate"]["command"]


def test_steps_of_embedding_refresh_run_in_order(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["embedding_refresh"]["tasks"]
    assert {name: task["after"] for name, task in tasks.items()} == {
        "look_for_products": [],
        "ingest_catalogue": ["look_for_products"],
        "stream_products": ["ingest_catalogue"],
        "embed_contents": ["stream_products"],
        "gates": ["embed_contents"],
        "serve_online": ["gates"],
    }


def test_every_file_of_the_folder_is_a_dag_or_ignored() -> None:
    dags = Settings().checkout / "dags"
    ignored = (dags / ".airflowignore").read_text().split()
    assert sorted(path.stem for path in dags.glob("*.py") if path.name not in ignored) == DAG_IDS
