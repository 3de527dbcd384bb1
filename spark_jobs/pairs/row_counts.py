"""Counts of the rows that each step of a job let through, and its seconds."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRows:
    """One step: how many rows were left behind it, how many it dropped, and how long it took."""

    step: str
    rows: int
    dropped: int
    seconds: float


class RowCounts:
    """Counts the rows behind each step of a job, and computes each step once.

    Attributes:
        steps: those taken so far.
    """

    def __init__(self) -> None:
        self.steps: list[StepRows] = []

    def keep(self, frame: DataFrame) -> DataFrame:
        """The frame, computed now, and without its plan: behind ten steps a plan takes longer than the work."""
        return frame.localCheckpoint(eager=True)

    def step(self, name: str, frame: DataFrame) -> DataFrame:
        """The frame, kept and counted as what a step left of the one before."""
        began = time.perf_counter()
        kept = self.keep(frame)
        rows = kept.count()
        self.note(name, rows, time.perf_counter() - began)
        return kept

    def note(self, name: str, rows: int, seconds: float = 0.0) -> None:
        """Enter a step that was counted elsewhere."""
        before = self.steps[-1].rows if self.steps else rows
        self.steps.append(StepRows(name, rows, before - rows, round(seconds, 1)))
        logger.info("%s: %d rows, %d dropped, %.1f s", name, rows, before - rows, seconds)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The steps in order."""
        return [asdict(step) for step in self.steps]
