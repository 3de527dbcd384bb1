"""Logs: configured once by a `main`. Text on a terminal, one JSON object a line elsewhere, with what is being run.

A module writes to `logging.getLogger(__name__)`. What holds for all lines of a block (job, run, space) is said once, by
`context`; what belongs to one line (versions) goes into its `extra`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, TextIO
from uuid import uuid4

from moonlake.reports import as_json

Level = Literal["debug", "info", "warning", "error"]

ROOMS = (
    "moonlake",
    "models",
    "sources",
    "spark_jobs",
    "serving",
    "workflows",
    "cli",
    "studies",
    "benchmarks",
    "__main__",
)
"""Loggers that follow the level asked for: ours, and a job that was started as a script."""

NOISE = {"py4j": logging.ERROR, "feast": logging.ERROR, "SQLQueryContextLogger": logging.CRITICAL}
"""Loggers that say in many lines what an exception or a report of ours says in one."""

_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("moonlake_log_context", default=MappingProxyType({}))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

logger = logging.getLogger(__name__)


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """A block in which every line has these fields besides those of the blocks around it."""
    token = _CONTEXT.set({**_CONTEXT.get(), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


@dataclass
class JobRun:
    """One run of a job.

    Attributes:
        versions: Delta version of each table that the run wrote, known when it has reported.
    """

    job: str
    run: str
    versions: dict[str, int] = field(default_factory=dict)

    def report(self, **parts: Any) -> str:
        """The one report of the run as a line of JSON: job, run, and the parts.

        Args: parts: a list of write reports, `tables`, tells the versions too.
        """
        self.versions |= {one.table: one.version for one in parts.get("tables", ())}
        return as_json({"job": self.job, "run": self.run, **parts})


@contextmanager
def running(job: str, level: Level) -> Iterator[JobRun]:
    """A block that is one run of a job: its lines name both, and its start and end are logged.

    Args: level: logs are configured with it where nobody has configured them; the command line does.
    """
    if not any(isinstance(one, _ToStderr) for one in logging.getLogger().handlers):
        configure(level)
    run, started = JobRun(job, uuid4().hex[:12]), time.monotonic()
    with context(job=job, run=run.run):
        logger.info("%s begins", job)
        try:
            yield run
        except Exception as error:
            logger.error("%s failed after %.1f s: %s", job, time.monotonic() - started, error)
            raise
        logger.info("%s ended after %.1f s", job, time.monotonic() - started, extra={"versions": run.versions})


def configure(level: Level) -> None:
    """Send log lines to stderr, those of our own packages from a level on and those of others from a warning on."""
    root = logging.getLogger()
    for one in [one for one in root.handlers if isinstance(one, _ToStderr)]:
        root.removeHandler(one)
    handler = _ToStderr()
    handler.setFormatter(TextLines() if sys.stderr.isatty() else JsonLines())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ROOMS:
        logging.getLogger(name).setLevel(level.upper())
    for name, quiet in NOISE.items():
        logging.getLogger(name).setLevel(quiet)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Lines to the stderr of the moment: a test, or a progress bar, may have put another in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


class JsonLines(logging.Formatter):
    """A line as one JSON object: time, level, logger, message, and the fields of the context and of the line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return as_json(line)


class TextLines(logging.Formatter):
    """A line for people: time, level, message and fields, but for job and run, which they typed."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        known = {name: value for name, value in _fields(record).items() if name not in ("job", "run")}
        fields = "".join(
            f"  {name}={as_json(value) if isinstance(value, dict) else value}" for name, value in known.items()
        )
        text, *more = super().format(record).split("\n", 1)
        return "\n".join([text + fields, *more])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    own = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {**_CONTEXT.get(), **own}
