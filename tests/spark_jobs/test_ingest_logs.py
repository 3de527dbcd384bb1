"""Real behaviour logs in the lake: counts add up, a second run changes nothing, sequences are as long as asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from moonlake.feast_delta.store import apply, feature_store
from moonlake.lake.lake import Lake, WriteReport
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from sources.datasets.otto import stage_otto
from sources.datasets.rees46 import stage_rees46
from sources.datasets.taobao import stage_taobao
from spark_jobs import ingest_behaviors, ingest_catalogue, pack_behavior_sequences

pytestmark = pytest.mark.spark

Stage = Callable[..., Path]
LOGS = [
    (stage_taobao, "taobao_user_behavior", 10_000, {"event_timestamp_outside_window": 4}, 0, 7_620, {}),
    (stage_rees46, "rees46", 8_717, {}, 5, 3_707, {"has_content": 5}),
    (stage_otto, "otto_sessions", 862, {}, 0, 0, {}),
]
"""How to stage an extract, its folder, its records, those rejected and doubled; product states, those rejected."""
SEQUENCES = [f"user_behavior_sequence_v1:behavior_{name}" for name in ("product_ids", "actions", "times_us")]


def ingest(spark: SparkSession, settings: Settings, folder: Path, written_at: datetime) -> dict[str, WriteReport]:
    reports = [
        *ingest_catalogue.run(SparkLake(spark, settings), folder, written_at=written_at),
        *ingest_behaviors.run(SparkLake(spark, settings), folder, written_at=written_at),
        pack_behavior_sequences.run(SparkLake(spark, settings), written_at=written_at),
    ]
    return {report.table: report for report in reports}


@pytest.mark.parametrize(("stage", "name", "records", "rejected", "duplicates", "states", "unknown"), LOGS)
def test_a_real_log_is_ingested_whole_and_again_without_a_commit_and_sequences_have_any_length(
    stage: Stage,
    name: str,
    records: int,
    rejected: dict[str, int],
    duplicates: int,
    states: int,
    unknown: dict[str, int],
    spark: SparkSession,
    settings: Settings,
    shared_data: Path,
    written_at: datetime,
) -> None:
    lake = Lake(settings)
    folder = stage(shared_data / name, settings)
    reports = ingest(spark, settings, folder, written_at)
    behaviors = reports["behaviors"]
    kept = records - sum(rejected.values()) - duplicates
    assert (behaviors.rows_in, behaviors.written, behaviors.duplicates) == (records, kept, duplicates)
    assert behaviors.by_rule == rejected
    assert (reports["products"].written, reports["products"].by_rule) == (states, unknown)
    in_rejects = Counter(row["rule"] for row in lake.read("rejects").to_pylist() if row["table"] == "behaviors")
    assert in_rejects == rejected
    versions = {table: lake.version(table) for table in TABLES}

    again = ingest(spark, settings, folder, written_at + timedelta(days=1))
    assert {table: report.written for table, report in again.items() if report.written} == {}
    assert (again["behaviors"].rows_in, again["behaviors"].unchanged) == (records, kept)
    assert {table: lake.version(table) for table in TABLES} == versions

    apply(settings)
    log = by_user(folder)
    labels = label_rows(log)
    for length in (10, 100, 1_000):
        store = feature_store(settings, sequence_length=length)
        pulled = store.get_historical_features(labels, SEQUENCES).to_arrow().to_pylist()
        assert [row["label"] for row in pulled] == list(range(len(labels)))
        assert max(len(row["behavior_actions"]) for row in pulled) == min(length, max(map(len, log.values())) - 1)
        for row in pulled:
            before = [each for each in log[row["user_id"]] if each[0] < row["event_timestamp"]][-length:]
            found = zip(row["behavior_times_us"], row["behavior_product_ids"], row["behavior_actions"], strict=True)
            assert list(found) == [(micros(moment), product, action) for moment, _, product, action in before]
    assert {table: lake.version(table) for table in TABLES} == versions


def by_user(folder: Path) -> dict[str, list[tuple[datetime, str, str, str]]]:
    """The staged actions of each user once, in order of time and id."""
    log: dict[str, dict[str, tuple[datetime, str, str, str]]] = {}
    for row in pq.read_table(folder / "behaviors").to_pylist():
        action = (row["event_timestamp"], row["behavior_id"], row["product_id"], row["action"])
        log.setdefault(row["user_id"], {})[row["behavior_id"]] = action
    return {user: sorted(actions.values()) for user, actions in log.items()}


def label_rows(log: dict[str, list[tuple[datetime, str, str, str]]]) -> pa.Table:
    """Every tenth action of the log as a label row, and the last one of each of the longest histories."""
    actions = [(user, action[0]) for user, history in log.items() for action in history][::10]
    longest = sorted(log, key=lambda user: len(log[user]))[-20:]
    rows = [*actions, *((user, log[user][-1][0]) for user in longest)]
    columns: dict[str, Any] = {
        "label": range(len(rows)),
        "user_id": [user for user, _ in rows],
        "event_timestamp": pa.array([moment for _, moment in rows], pa.timestamp("us", tz="UTC")),
    }
    return pa.table(columns)


def micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
