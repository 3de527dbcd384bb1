"""Progress on a terminal: a bar for each step; elsewhere lines of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from moonlake.progress import LoggedProgress, Progress, Step


def progress_on(console: Console | None = None) -> Progress:
    """Bars on the console, by default that of stderr, if it is a terminal; lines of the log otherwise."""
    console = console or Console(stderr=True)
    return BarProgress(console) if console.is_terminal else LoggedProgress()


class BarProgress:
    """Progress as bars that vanish with their steps."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), _Count())
        self._bars = Bars(*columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console)
        self._bars.live.transient = True
        self._open = 0

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Step]:
        """A block with a bar."""
        if self._open == 0:
            self._bars.start()
        self._open += 1
        task = self._bars.add_task(title, total=total, note="")
        try:
            yield _Bar(self._bars, task)
        finally:
            self._bars.refresh()  # the last figures of a short step are seen too
            self._bars.remove_task(task)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def update(self, done: int, total: int | None = None, note: object = "") -> None:
        self._bars.update(self._task, completed=done, total=total, note=str(note))


class _Count(ProgressColumn):
    """Units done and in all; nothing for a step that counts none."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{int(task.completed):,}" if task.completed else "")
        return Text(f"{int(task.completed):,}/{int(task.total):,}")
