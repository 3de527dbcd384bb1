"""One run of the demo: what all of its steps share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import Progress
from moonlake.settings import Settings
from workflows.resumable_steps import Steps

if TYPE_CHECKING:
    from moonlake.spark.lake import SparkLake
    from sources.own_files.staging import SourceInfo


@dataclass
class DemoRun:
    """One run of the demo on a staged source.

    Attributes:
        say: takes a line for people.
        may_waive: whether it releases a space that fails a gate, and says so. The preset `demo` passes them all.
    """

    settings: Settings
    folder: Path
    steps: Steps
    say: Callable[[str], None]
    progress: Progress
    encoder_steps: int | None = None
    may_waive: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _opened: ExitStack = field(default_factory=ExitStack)
    _spark_lake: SparkLake | None = None

    @cached_property
    def lake(self) -> Lake:
        """The lake of the settings."""
        return Lake(self.settings)

    @cached_property
    def info(self) -> SourceInfo:
        """Facts about the staged source."""
        from sources.own_files.staging import SourceInfo

        return SourceInfo.read(self.folder)

    @cached_property
    def window(self) -> tuple[datetime, datetime, datetime, datetime]:
        """Start, T1, T2 and end: encoder data < T1 <= CTR training < T2 <= test."""
        if self.info.window is None or self.info.t1 is None or self.info.t2 is None:
            raise InputError(f"source {self.info.name} has no behaviour: the demo needs impressions to learn from")
        return self.info.window[0], self.info.t1, self.info.t2, self.info.window[1]

    def spark_lake(self) -> SparkLake:
        """The lake in a Spark session, which starts when the first step needs it."""
        if self._spark_lake is None:
            from moonlake.spark.lake import SparkLake
            from moonlake.spark.session import session

            self._spark_lake = SparkLake(self._opened.enter_context(session(self.settings, "demo")), self.settings)
        return self._spark_lake

    def stop_spark(self) -> None:
        """End the Spark session, if one was started."""
        self._opened.close()
        self._spark_lake = None

    def versions(self, *tables: str) -> dict[str, int]:
        """The latest version of each table: what a step that reads them depends on."""
        return {name: self.lake.version(name) for name in tables}
