"""Prints what Airflow finds in the DAG folder, as one line of JSON; a program of its own, run by test_dags.py."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import airflow.providers.apache.spark.operators.spark_submit
import airflow.providers.standard.operators.bash  # noqa: F401 what any DAG imports is not its own time to parse
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.execution_time import macros
from airflow.serialization.serialized_objects import DagSerialization


def uris(condition: Any) -> list[str]:
    """The assets of a schedule."""
    return [condition.uri] if hasattr(condition, "uri") else [uri for part in condition.objects for uri in uris(part)]


def filled_in(dag: DAG, words: list[str], params: dict[str, Any], **run: Any) -> list[str]:
    """The words of a command as a run of the DAG fills them in; it started on 10 March 2026."""
    started = SimpleNamespace(run_after=datetime(2026, 3, 10, 14, 30, tzinfo=UTC))
    context = {"params": dag.params.dump() | params, "macros": macros, "dag_run": started, **run}
    return [dag.get_template_env().from_string(word).render(context) for word in words]


def described(dag: DAG) -> dict[str, Any]:
    """File, inputs and tasks of a DAG."""
    tasks = {
        task.task_id: {
            "command": getattr(task, "bash_command", None),
            "application": getattr(task, "application", None),
            "arguments": getattr(task, "application_args", None),
            "connection": getattr(task, "_conn_id", None),
            "outlets": [asset.uri for asset in task.outlets],
            "after": sorted(task.upstream_task_ids),
        }
        for task in dag.tasks
    }
    condition = getattr(dag.timetable, "asset_condition", None)
    return {
        "file": dag.fileloc,
        "inputs": uris(condition) if condition else [],
        "tasks": tasks,
        "serialized": bool(DagSerialization.serialize_dag(dag)),
    }


def main() -> None:
    started = time.perf_counter()
    bag = DagBag(bundle_name="test", bundle_path=None)
    seconds = time.perf_counter() - started
    cube: Any = bag.dags.get("cube_features")
    words = cube.get_task("build_cube_features").application_args if cube else []
    day = datetime(2026, 3, 1, tzinfo=UTC)
    windows = cube and {
        "by interval": filled_in(cube, words, {}, data_interval_end=day),
        "by asset": filled_in(cube, words, {}),
        "by name": filled_in(cube, words, {"end": "2026-02-13", "days": 2}, data_interval_end=day),
    }
    found = {
        "seconds": seconds,
        "errors": bag.import_errors,
        "windows": windows,
        "dags": {dag_id: described(dag) for dag_id, dag in bag.dags.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
