"""Judgments in the lake: counts add up, each carries the content of its query, a second run changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from moonlake.contents import content_of
from moonlake.lake import Lake
from moonlake.settings import Settings
from moonlake.tables import TABLES
from sources.own_files import stage_own_files
from spark_jobs import ingest_behaviors

pytestmark = pytest.mark.spark


def test_judgments_are_written_or_rejected_by_a_named_rule_and_again_without_a_commit(
    spark: SparkSession,
    settings: Settings,
    tmp_path: Path,
    written_at: datetime,
    write_rows: Callable[[Settings, str, Sequence[Mapping[str, Any]]], None],
) -> None:
    known = content_of("chair", []).content_id
    write_rows(settings, "queries", [{"query_id": "q1", "modality": "text", "text": "chair", "content_id": known}])
    (tmp_path / "products.csv").write_text("product_id,title\np1,red chair\n")
    rows = ["q1,p1,3", "q1,p1,3", "q1,p2,0", "q1,p2,1", "q9,p1,2", "q1,,2", "q1,p3,-1"]
    (tmp_path / "judgments.csv").write_text("\n".join(["query_id,product_id,grade", *rows]) + "\n")
    folder = stage_own_files(tmp_path, settings, name="judged")
    report = {one.table: one for one in ingest_behaviors.run(spark, settings, folder, written_at=written_at)}
    judged, lake = report["judgments"], Lake(settings)
    assert (judged.rows_in, judged.written, judged.rejected, judged.duplicates) == (len(rows), 3, 3, 1)
    assert judged.by_rule == {
        "conflicting_key": 1,
        "product_id_missing": 1,
        "grade_below_minimum": 1,
    }
    assert Counter(row["rule"] for row in lake.read("rejects").to_pylist()) == judged.by_rule
    written = [(row["query_id"], row["query_content_id"]) for row in lake.read("judgments").to_pylist()]
    assert sorted(written, key=str) == [("q1", known), ("q1", known), ("q9", None)]
    versions = {table: lake.version(table) for table in TABLES}

    later = written_at + timedelta(days=1)
    again = {one.table: one for one in ingest_behaviors.run(spark, settings, folder, written_at=later)}
    assert (again["judgments"].written, again["judgments"].unchanged) == (0, 3)
    assert {table: lake.version(table) for table in TABLES} == versions
