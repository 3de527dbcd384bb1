"""Progress of a training run for people: a bar or plain lines, and TensorBoard's event files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from models.training.checkpoints import Resumed

SECONDS_BETWEEN_LINES = 20.0
STEPS_BETWEEN_EVENTS = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a training run stands after a step."""

    step: int
    loss: float
    learning_rate: float
    samples_per_second: float


class Watched(Protocol):
    """The part of a run's configuration that the watch reads."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class EventFiles:
    """TensorBoard's event files of one run; a run that goes on writes over what lay behind its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self._writer: Any = None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of a step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # loads for a second

            writer: Any = SummaryWriter
            self._writer = writer(str(self.folder), purge_step=self.step + 1)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        if self._writer is not None:
            self._writer.close()


class Watch:
    """The clock of a run, and where its figures go."""

    def __init__(
        self,
        resumed: Resumed,
        config: Watched,
        report: Callable[[StepReport], None] | None,
        events: EventFiles | None,
    ) -> None:
        self._before, self._started = resumed.seconds, time.monotonic()
        self._resumed_at, self._config = resumed.step, config
        self._report, self._events = report, events

    def __enter__(self) -> Watch:
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    @property
    def seconds(self) -> float:
        """Time that training took, in all processes that worked at it one after the other."""
        return self._before + time.monotonic() - self._started

    def step(self, step: int, loss: float, rate: float, figures: Mapping[str, float]) -> None:
        """Take note of a step."""
        elapsed = time.monotonic() - self._started
        speed = (step - self._resumed_at) * self._config.batch_size / max(elapsed, 1e-9)
        if self._report is not None:
            self._report(StepReport(step, loss, rate, speed))
        if self._events is not None and (step % STEPS_BETWEEN_EVENTS == 0 or step in (1, self._config.steps)):
            self._events.write(step, {"loss": loss, "learning_rate": rate, "samples_per_second": speed, **figures})


@contextmanager
def shown(
    title: str, steps: int, unit: str, *, console: Console | None = None
) -> Iterator[Callable[[StepReport], None]]:
    """A function that shows where a run stands: a bar on a terminal, elsewhere a plain line every 20 seconds.

    Args: unit: what a sample is called, such as "pairs".
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        state, left = TextColumn("{task.fields[state]}"), TimeRemainingColumn()
        with Progress(*columns, state, left, console=console) as bar:
            task = bar.add_task(title, total=steps, state="")
            yield lambda at: bar.update(task, completed=at.step, state=_state(at, unit))
        return
    lines = _Lines(title, steps, unit, console)
    yield lines.report


class _Lines:
    def __init__(self, title: str, steps: int, unit: str, console: Console) -> None:
        self.title, self.steps, self.unit, self.console = title, steps, unit, console
        self.first: tuple[int, float] | None = None
        self.last = time.monotonic()

    def report(self, at: StepReport) -> None:
        """Write a line, if the last one was long ago or the run is at its end."""
        now = time.monotonic()
        first_step, since = self.first = self.first or (at.step - 1, self.last)
        if now - self.last < SECONDS_BETWEEN_LINES and at.step != self.steps:
            return
        self.last = now
        left = (self.steps - at.step) * (now - since) / (at.step - first_step)
        text = f"{self.title}: step {at.step}/{self.steps}  {_state(at, self.unit)}  {left:.0f} s left"
        self.console.print(text, soft_wrap=True, highlight=False)
        sys.stderr.flush()


def _state(at: StepReport, unit: str) -> str:
    return f"loss {at.loss:.3f}  lr {at.learning_rate:.1e}  {at.samples_per_second:.0f} {unit}/s"
