"""Chunks: contents that are embedded together, each kept as a file until the lake has all of them.

So a run that is killed loses what its workers were at and no more, several runs share the work, and vectors do not hang
on how often it was interrupted: a content is always embedded with the same others.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from moonlake.files import atomic_write, exclusive

PLAN_FILE = "plan.json"
ROWS_PER_CHUNK = 512
"""About as many contents; an embedder looks among them for pictures that it has seen."""
MOST_BITS = 24
RATE_SECONDS = 120.0
"""How fast it goes is told of so much of the past, so that a pause does not count."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The contents that a backfill embeds in a space, in chunks by the first bits of the content ids.

    Attributes:
        plan_id: another one for every plan.
        bits: there are 2 ** bits chunks.
        contents: how many are to be embedded.
        began: seconds since the epoch.
    """

    plan_id: str
    bits: int
    contents: int
    began: float

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return 1 << self.bits

    @property
    def chunk_sql(self) -> str:
        """The chunk of a row, from 0, as Spark SQL."""
        return f"shiftright(cast(conv(substring(content_id, 1, 8), 16, 10) AS bigint), {32 - self.bits})"


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """The progress of a plan.

    Attributes:
        done: chunks that are embedded.
        last: when the last of them was, in seconds since the epoch.
        recent: how many of them were within RATE_SECONDS before that one.
        first: when the first of these was.
    """

    plan: Plan
    done: int
    last: float
    recent: int
    first: float

    @property
    def rate(self) -> float:
        """Contents a second of late, over all runs that are at work; 0 before the second chunk."""
        seconds = self.last - self.first
        return (self.recent - 1) / self.plan.chunks * self.plan.contents / seconds if seconds > 0 else 0.0

    @property
    def contents(self) -> int:
        """About how many contents are embedded."""
        return round(self.done / self.plan.chunks * self.plan.contents)

    def __str__(self) -> str:
        said = f"about {self.contents:,} of {self.plan.contents:,} contents embedded"
        if not self.rate:
            return said
        return f"{said}, {self.rate:,.0f}/s, {(self.plan.contents - self.contents) / self.rate:,.0f} s left"


class Backfill:
    """The chunks of one space that were embedded and are not in the lake yet: a folder that all workers share."""

    def __init__(self, backfills: Path, space_id: str) -> None:
        self.folder = backfills / space_id

    def plan(self, contents: int) -> Plan:
        """The plan that is being worked on, or a new one for so many contents."""
        if (found := self.current()) is not None:
            return found
        bits = min(MOST_BITS, max(0, math.ceil(math.log2(max(1, contents) / ROWS_PER_CHUNK))))
        made = Plan(uuid4().hex[:8], bits, contents, time.time())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Not `publish_folder`: of several workers the first one's plan stands, and is never replaced.
        fresh = Path(tempfile.mkdtemp(prefix=".", dir=self.folder.parent))
        (fresh / PLAN_FILE).write_text(json.dumps(asdict(made)))
        fresh.chmod(0o755)
        try:
            fresh.rename(self.folder)
        except OSError:  # another worker was first
            shutil.rmtree(fresh)
            return self.plan(contents)
        return made

    def current(self) -> Plan | None:
        """The plan that is being worked on, if there is one."""
        try:
            return Plan(**json.loads((self.folder / PLAN_FILE).read_text()))
        except FileNotFoundError:
            return None

    def is_done(self, plan: Plan, chunk: int) -> bool:
        """Whether a chunk is embedded, or all of the plan is in the lake."""
        return self._file(plan, chunk).exists() or self.current() != plan

    def keep(self, plan: Plan, chunk: int, rows: pa.Table) -> None:
        """Keep the rows of a chunk; the file is whole or not there."""
        try:
            with atomic_write(self._file(plan, chunk)) as file:
                pq.write_table(rows, file)
        except FileNotFoundError:  # another worker has brought all of the plan into the lake
            if self.current() == plan:
                raise

    def kept(self, plan: Plan) -> list[Path]:
        """The files of chunks that are embedded."""
        return sorted(self.folder.glob(f"{plan.plan_id}-*.parquet"))

    def done(self, plan: Plan) -> list[int]:
        """The chunks that are embedded."""
        return [int(file.stem.rpartition("-")[2], 16) for file in self.kept(plan)]

    def rows(self) -> int:
        """Contents in the chunks that are embedded, of the plan that is being worked on."""
        plan = self.current()
        return sum(pq.read_metadata(file).num_rows for file in self.kept(plan)) if plan else 0

    def progress(self, plan: Plan) -> BackfillProgress:
        """The progress of a plan, from the files of its finished chunks."""
        times = []
        for file in self.kept(plan):
            with suppress(FileNotFoundError):  # another run has just brought it into the lake
                times.append(file.stat().st_mtime)
        last = max(times, default=plan.began)
        recent = [at for at in times if at >= last - RATE_SECONDS]
        return BackfillProgress(plan, len(times), last, len(recent), min(recent, default=plan.began))

    def finish(self) -> None:
        """Forget the plan: the lake has what was kept."""
        gone = self.folder.with_name(f".{uuid4().hex}")
        self.folder.rename(gone)
        shutil.rmtree(gone)

    def exclusive(self) -> AbstractContextManager[bool]:
        """A block that one worker of this folder at a time is in."""
        return exclusive(self.folder.with_suffix(".lock"))

    def _file(self, plan: Plan, chunk: int) -> Path:
        return self.folder / f"{plan.plan_id}-{chunk:06x}.parquet"
