"""A backfill of an embedding space: planned, run, and followed from the files of its workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from moonlake.embeddings import releases
from moonlake.embeddings.backfill import Backfill, BackfillProgress
from moonlake.embeddings.spaces import Space
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED, Progress
from moonlake.reports import plain
from moonlake.settings import Settings

if TYPE_CHECKING:
    from spark_jobs.embed_contents import EmbeddingReport, Survey

STALLED_SECONDS = 300
"""A backfill to which no chunk was added for so long has no worker any more."""


@dataclass(frozen=True, slots=True)
class BackfillStatus:
    """The state of a backfill.

    Attributes:
        progress: None where no backfill is under way.
        idle_seconds: since its last chunk.
    """

    space: Space
    progress: BackfillProgress | None
    idle_seconds: float = 0.0

    @property
    def stalled(self) -> bool:
        """True where nobody seems to be at work."""
        return self.idle_seconds > STALLED_SECONDS

    def as_dict(self) -> dict[str, Any]:
        """The state as plain values, with figures that are derived from it."""
        found = {"space": plain(self.space), "under_way": self.progress is not None, "stalled": self.stalled}
        if (at := self.progress) is None:
            return found
        counts = {"contents": at.plan.contents, "embedded": at.contents, "contents_per_second": at.rate}
        chunks = {"chunks": at.plan.chunks, "chunks_done": at.done}
        return found | counts | chunks | {"idle_seconds": self.idle_seconds}


def plan(settings: Settings, space: str) -> Survey:
    """The work that a backfill would have to do, measured on some of it. Nothing is written."""
    from moonlake.spark.lake import SparkLake
    from moonlake.spark.session import session
    from spark_jobs.embed_contents import survey

    space_id = releases.find(Lake(settings), space).space_id  # before Spark starts
    with session(settings, "backfill_plan") as spark:
        return survey(SparkLake(spark, settings), space_id)


def run(settings: Settings, space: str, *, written_at: datetime, progress: Progress = UNWATCHED) -> EmbeddingReport:
    """The report of embedding what is missing; a run after a kill, or beside another one, shares the work."""
    from moonlake.spark.lake import SparkLake
    from moonlake.spark.session import session
    from spark_jobs import embed_contents

    space_id = releases.find(Lake(settings), space).space_id  # before Spark starts
    with session(settings, "backfill") as spark:
        return embed_contents.run(SparkLake(spark, settings), space_id, written_at=written_at, progress=progress)


def status(settings: Settings, space: str, *, now: datetime) -> BackfillStatus:
    """The state of a space's backfill, read without Spark."""
    found = releases.find(Lake(settings), space)
    backfill = Backfill(settings.backfills, found.space_id)
    under_way = backfill.current()
    if under_way is None:
        return BackfillStatus(found, None)
    progress = backfill.progress(under_way)
    return BackfillStatus(found, progress, now.timestamp() - progress.last)
