"""Bars on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from cli.progress import BarProgress, progress_on
from moonlake.progress import LoggedProgress


def test_a_terminal_shows_each_open_step_and_is_left_clean() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    progress = progress_on(console)
    assert isinstance(progress, BarProgress)
    with progress.step("Train and test"), progress.step("Training DIN") as step:
        step.update(1_024, 4_096, "loss 0.250")
        console.print("a line above the bars")
    shown = stream.getvalue()
    for text in ("Train and test", "Training DIN", "1,024/4,096", "loss 0.250", "a line above the bars"):
        assert text in shown
    with progress.step("again") as step:
        step.update(7)
    assert "again" in stream.getvalue()
    assert stream.getvalue().count("\x1b[?25h") == stream.getvalue().count("\x1b[?25l") == 2  # the cursor comes back


def test_a_file_gets_log_lines() -> None:
    assert isinstance(progress_on(Console(file=io.StringIO())), LoggedProgress)
