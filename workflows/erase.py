"""Products or users erased from everything in one Spark session, planned, and looked for afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from moonlake.maintenance.erasure import subject_of
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session
from spark_jobs import erase_subjects
from spark_jobs.erase_subjects import Erasure


def erase(settings: Settings, subject: str, ids: Sequence[str], *, written_at: datetime) -> Erasure:
    """The erasure of products or users, with the search that follows it.

    Raises: InputError: `subject` is neither "product" nor "user".
    """
    kind = subject_of(subject)
    with session(settings, "erase_subjects") as spark:
        return erase_subjects.run(SparkLake(spark, settings), kind, ids, written_at=written_at)


def plan(settings: Settings, subject: str, ids: Sequence[str]) -> Erasure:
    """The rows that an erasure would remove, and where products or users are named now. Nothing is changed."""
    return erase_subjects.plan(settings, subject_of(subject), ids)


def check(settings: Settings, subject: str, ids: Sequence[str]) -> Erasure:
    """The stores that still name products or users."""
    return erase_subjects.check(settings, subject_of(subject), ids)
