"""A source staged and brought into the lake in one Spark session."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.progress import UNWATCHED, Progress
from moonlake.settings import Settings
from sources.registry import BEHAVIOR_LOGS, SourceName, stage

if TYPE_CHECKING:
    from moonlake.lake.lake import WriteReport
    from sources.own_files.staging import SourceInfo


@dataclass(frozen=True, slots=True)
class Ingested:
    """The result of an ingestion: the staged source, and the report of each table that was written."""

    folder: Path
    source: SourceInfo
    tables: tuple[WriteReport, ...]


def ingest(
    settings: Settings,
    source: SourceName,
    options: Mapping[str, Any],
    *,
    written_at: datetime,
    progress: Progress = UNWATCHED,
) -> Ingested:
    """Stage a source and bring it into the lake; what is bad stands in `rejects` with the rule that it broke.

    Args: options: those of `sources.registry.stage`.
    """
    folder = stage(settings, source, **options, progress=progress)
    reports: list[WriteReport] = []
    with ExitStack() as opened:
        with progress.step("Starting Spark"):
            from moonlake.spark.lake import SparkLake
            from moonlake.spark.session import session
            from sources.own_files.staging import SourceInfo
            from spark_jobs import ingest_behaviors, ingest_catalogue, pack_behavior_sequences

            lake = SparkLake(opened.enter_context(session(settings, "ingest")), settings)
        for title, job in (("catalogue", ingest_catalogue), ("behaviour", ingest_behaviors)):
            with progress.step(f"Ingesting the {title}"):
                reports += job.run(lake, folder, written_at=written_at)
        if source in BEHAVIOR_LOGS:
            with progress.step("Packing the sequences"):
                reports.append(pack_behavior_sequences.run(lake, written_at=written_at))
    return Ingested(folder, SourceInfo.read(folder), tuple(reports))
