"""Progress of long work: the protocol that libraries report to, and its forms for logs and for functions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 20.0


class Step(Protocol):
    """One piece of work that is under way."""

    def update(self, done: int, total: int | None = None, note: object = "") -> None:
        """Take note of how far the work is.

        Args:
            done, total: units that are done, and all of them; None where the total is not known, or stays as it was.
            note: is shown as text beside them.
        """


class Progress(Protocol):
    """The place where people see how far work is."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Step]:
        """A block of work that reports to the step; a step may stand inside another one."""


class Unwatched:
    """Progress that nobody watches, and a step of it."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Step]:  # noqa: ARG002
        """A block whose reports go nowhere."""
        return nullcontext(self)

    def update(self, done: int, total: int | None = None, note: object = "") -> None:
        """Do nothing."""


UNWATCHED = Unwatched()


class EachNote:
    """A step that hands every note to a function, such as the `StepReport` of a training run."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take

    def update(self, done: int, total: int | None = None, note: object = "") -> None:  # noqa: ARG002
        """Hand the note over."""
        self._take(note)


class LoggedProgress:
    """Progress as lines of the log: one when a step begins, one every 20 seconds, and one at its last unit."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._pause = seconds_between_lines
        self._logger = logging.getLogger(__name__)

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Step]:
        """A block whose reports become lines."""
        self._logger.info("%s", title)
        yield _LoggedStep(title, total, self._pause, self._logger)


class _LoggedStep:
    def __init__(self, title: str, total: int | None, pause: float, logger: logging.Logger) -> None:
        self._title, self._total, self._pause, self._logger = title, total, pause, logger
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None  # units and time at the first report

    def update(self, done: int, total: int | None = None, note: object = "") -> None:
        now = time.monotonic()
        self._total = self._total if total is None else total
        self._first = self._first or (done, now)
        if now - self._last < self._pause and done != self._total:
            return
        self._last = now
        parts = [f"{done:,}/{self._total:,}" if self._total else f"{done:,}", str(note)]
        since = done - self._first[0]
        if self._total and since > 0:
            parts.append(f"{(self._total - done) * (now - self._first[1]) / since:.0f} s left")
        self._logger.info("%s: %s", self._title, "  ".join(part for part in parts if part))
