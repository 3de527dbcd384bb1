"""After maintenance what is named can be made again, what is not is gone, and the online store goes on as before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from cli.app import app
from moonlake.feast_delta import materialize
from moonlake.feast_delta.store import apply
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.training_sets import build
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.verify import reproducible
from spark_jobs import maintain_lake

pytestmark = pytest.mark.spark

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
DAY = datetime(2026, 1, 5, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
LATER = datetime.now(UTC) + timedelta(days=400)
STATS = (
    "user_id string, impressions_7d long, clicks_7d long, purchases_7d long, ctr_7d double, event_timestamp timestamp"
)


def test_what_is_named_stays_and_changes_are_still_served(
    spark: SparkSession, settings: Settings, lake: Lake, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(user: str, clicks: int) -> None:
        row = (user, 10, clicks, 0, clicks / 10, DAY)
        writes.append(
            SparkLake(spark, settings), "user_stats", spark.createDataFrame([row], STATS), source="s", written_at=DAY
        )

    def materialise() -> tuple[str, int]:
        (served,) = materialize.run(settings, END, ["user_stats_v1"])
        return served.why, served.keys

    def files() -> tuple[int, int]:
        """Files of the latest version, and files in the table's folder."""
        return len(lake.open("user_stats").file_uris()), len(list(Path(lake.path("user_stats")).glob("*.parquet")))

    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    shown = {"impression_id": "i", "user_id": "u1", "product_id": "p", "event_timestamp": DAY, "label_time": DAY}
    write_rows(settings, "impressions", [shown])
    add("u1", 1)
    apply(settings)
    spec = TrainingSetSpec("january", DAY - timedelta(days=1), END)
    january = build.run(settings, spec, written_at=DAY).training_set
    named = january.manifest.table_versions["user_stats"]
    assert materialise() == ("first run", 1)
    add("u2", 2)
    add("u3", 3)
    (first,) = (done for done in maintain_lake.run(spark, settings, now=LATER) if done.table == "user_stats")
    assert (first.compacted, first.kept) == (3, (named,))
    assert files() == (1, 4)  # the rows that were added are still to be served
    assert materialise() == ("changed keys", 2)
    again = build.replay(settings, january.manifest, settings.training_sets / "again", written_at=None)
    assert again.training_set.manifest == january.manifest
    assert reproducible(settings, january.manifest.table_versions) == "as long as it exists"
    (second,) = (done for done in maintain_lake.run(spark, settings, now=LATER) if done.table == "user_stats")
    assert (second.compacted, second.vacuumed.files, files()) == (0, 2, (1, 2))
    assert (
        build.replay(
            settings, january.manifest, settings.training_sets / "again", written_at=None
        ).training_set.manifest
        == january.manifest
    )
    add("u4", 4)
    assert materialise() == ("changed keys", 1)
    told = CliRunner().invoke(app, ["lake", "kept"]).stdout
    assert "training set january: reproducible as long as it exists\n" in told
    planned = CliRunner().invoke(app, ["lake", "maintain", "--dry-run"]).stdout
    assert f"user_stats: compacted 0 files, removed 0 files of 0 bytes, kept versions {named}\n" in planned
    assert "january: 1 rows" in CliRunner().invoke(app, ["training-set", "list"]).stdout
