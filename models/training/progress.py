"""Figures of a training run while it goes on: for whoever watches its progress, and in TensorBoard's event files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from moonlake.progress import Step

if TYPE_CHECKING:
    from models.training.checkpoints import Resumed

STEPS_BETWEEN_EVENTS = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """The progress of a training run after a step."""

    step: int
    loss: float
    learning_rate: float
    samples_per_second: float

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}  lr {self.learning_rate:.1e}  {self.samples_per_second:,.0f} samples/s"


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
        progress: Step,
        events: EventFiles | None,
    ) -> None:
        self._before, self._started = resumed.seconds, time.monotonic()
        self._resumed_at, self._config = resumed.step, config
        self._progress, self._events = progress, events

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
        self._progress.update(step, self._config.steps, StepReport(step, loss, rate, speed))
        if self._events is not None and (step % STEPS_BETWEEN_EVENTS == 0 or step in (1, self._config.steps)):
            self._events.write(step, {"loss": loss, "learning_rate": rate, "samples_per_second": speed, **figures})
