"""Job: small files of every table become larger ones, and files go that no version needs that somebody names.

Kept are the versions of the last days, those that training sets and released snapshots name, those that feature sources
pin, and the change feed from the version on that each view was last served from.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyspark.sql import SparkSession

from moonlake.lake.lake import Lake
from moonlake.lake.vacuum import KEPT_FOR, RETENTIONS, Vacuumed, keeps_history, vacuum
from moonlake.logs import running
from moonlake.maintenance.feature_store import versions_served
from moonlake.maintenance.kept_versions import live_manifests
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.spark.session import session

RETENTION_DAYS = 7


@dataclass(frozen=True, slots=True)
class Maintained:
    """The report of one table's maintenance.

    Attributes:
        compacted: files that were written into larger ones.
        kept: versions that are named, beside the latest and those of the last days.
    """

    table: str
    compacted: int
    kept: tuple[int, ...]
    vacuumed: Vacuumed

    def __str__(self) -> str:
        named = f", kept versions {', '.join(map(str, self.kept))}" if self.kept else ""
        removed = f"removed {self.vacuumed.files:,} files of {self.vacuumed.bytes:,} bytes"
        return f"{self.table}: compacted {self.compacted:,} files, {removed}{named}"


def run(
    spark: SparkSession | None,
    settings: Settings,
    *,
    now: datetime,
    retention: timedelta = timedelta(days=RETENTION_DAYS),
) -> list[Maintained]:
    """Compact and vacuum every table that has been written; without a session say what a vacuum would remove."""
    lake = Lake(settings)
    named: defaultdict[str, set[int]] = defaultdict(set)
    for live in live_manifests(settings):
        for table, version in live.versions.items():
            named[table].add(version)
    served = versions_served(settings)
    for table, version in served.pinned:
        named[table].add(version)
    done = []
    for table in TABLES:
        if not lake.exists(table):
            continue
        path, keep = lake.path(table), sorted(named[table])
        compacted = 0
        if spark is not None:
            if keep and not keeps_history(path):
                _keep_history(spark, path)
            compacted = _compact(spark, path)
        feed_from = min(served.feeds.get(table, ()), default=None)
        vacuumed = vacuum(path, keep=keep, feed_from=feed_from, before=now - retention, dry_run=spark is None)
        done.append(Maintained(table, compacted, tuple(keep), vacuumed))
    return done


def _keep_history(spark: SparkSession, path: str) -> None:
    """Let nobody else's vacuum and no clean-up of the log take what a manifest names; ours looks at the manifests."""
    properties = ", ".join(f"'delta.{name}' = 'interval {KEPT_FOR.days} days'" for name in RETENTIONS)
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ({properties})")


def _compact(spark: SparkSession, path: str) -> int:
    (row,) = spark.sql(f"OPTIMIZE delta.`{path}`").collect()
    return int(row["metrics"]["numFilesRemoved"])


def main(argv: Sequence[str] | None = None) -> None:
    """Maintain every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--retention-days", type=float, default=RETENTION_DAYS)
    days = parser.parse_args(argv).retention_days
    settings = Settings.from_environment()
    with running("maintain_lake", settings.log_level) as job, session(settings, "maintain_lake") as spark:
        done = run(spark, settings, now=datetime.now(UTC), retention=timedelta(days=days))
        print(job.report(maintained=done))


if __name__ == "__main__":
    main()
