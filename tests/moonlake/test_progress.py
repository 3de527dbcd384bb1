"""Progress as lines of the log, and as calls of a function."""

from __future__ import annotations

import logging

import pytest

from models.training.progress import StepReport
from moonlake.progress import UNWATCHED, EachNote, LoggedProgress


@pytest.mark.parametrize(("pause", "lines"), [(1e9, 1), (0.0, 4)])
def test_a_log_has_a_line_now_and_then_and_one_at_the_end(
    caplog: pytest.LogCaptureFixture, pause: float, lines: int
) -> None:
    with caplog.at_level(logging.INFO, "moonlake.progress"), LoggedProgress(pause).step("stage 1", 4) as step:
        for number in range(1, 5):
            step.update(number, note=StepReport(number, 0.25, 1e-3, 400.0))
    begun, *said = caplog.messages
    assert begun == "stage 1"
    assert len(said) == lines
    assert said[-1] == "stage 1: 4/4  loss 0.250  lr 1.0e-03  400 samples/s  0 s left"


def test_a_total_may_come_later_or_never(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "moonlake.progress"):
        with LoggedProgress(0.0).step("Staging files") as step:
            step.update(20_000, note="behaviors")
        with LoggedProgress(1e9).step("Staging files") as step:
            step.update(5, 9)
            step.update(9)
    assert [line for line in caplog.messages if ":" in line] == [
        "Staging files: 20,000  behaviors",
        "Staging files: 9/9  0 s left",
    ]


def test_a_function_has_every_note_and_nobody_may_watch() -> None:
    notes: list[object] = []
    for step in (EachNote(notes.append), UNWATCHED):
        step.update(1, 2, "half")
    with UNWATCHED.step("title") as inner:
        inner.update(2)
    assert notes == ["half"]
