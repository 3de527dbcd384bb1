from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from moonlake import logs
from moonlake.lake.lake import WriteReport
from moonlake.settings import Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    names = ["", *logs.ROOMS, *logs.NOISE]
    before = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def lines_of(monkeypatch: pytest.MonkeyPatch, level: logs.Level, stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(level)
    return stream


def test_a_pipe_gets_json_lines_with_the_fields_of_context_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info")
    log = logging.getLogger("spark_jobs.a")
    with logs.context(job="a", run="r"), logs.context(space="s"):
        log.info("wrote %d rows\nof two", 3, extra={"versions": {"products": 4}})
    log.info("after")
    first, second = map(json.loads, said.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info", "logger": "spark_jobs.a", "message": "wrote 3 rows\nof two", "job": "a", "run": "r",
        "space": "s", "versions": {"products": 4},
    }  # fmt: skip
    assert set(second) == {"time", "level", "logger", "message"}


def test_a_terminal_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info", Terminal())
    with logs.context(job="a", run="r", space="s"):
        logging.getLogger("moonlake.x").warning("slow", extra={"versions": {"products": 4}})
    (line,) = said.getvalue().splitlines()
    assert line[2] == line[5] == ":"
    assert line[8:] == ' WARNING slow  space=s  versions={"products": 4}'


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_holds_for_our_own_loggers(monkeypatch: pytest.MonkeyPatch, level: logs.Level, heard: int) -> None:
    said = lines_of(monkeypatch, level)
    log = logging.getLogger("workflows.x")
    for method in (log.debug, log.info, log.warning, log.error):
        method("line")
    assert len(said.getvalue().splitlines()) == heard


def test_others_are_heard_from_a_warning_on_and_noise_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "debug")
    logging.getLogger("urllib3").info("no")
    logging.getLogger("urllib3").warning("yes")
    logging.getLogger("py4j.clientserver").warning("no")
    logging.getLogger("feast.infra").warning("no")
    assert [json.loads(line)["message"] for line in said.getvalue().splitlines()] == ["yes"]


def test_configuring_twice_says_a_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines_of(monkeypatch, "info")
    said = lines_of(monkeypatch, "info")
    logging.getLogger("moonlake.x").info("once")
    assert len(said.getvalue().splitlines()) == 1


def test_an_exception_is_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info")
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("moonlake.x").exception("lost")
    (line,) = map(json.loads, said.getvalue().splitlines())
    assert line["message"] == "lost"
    assert line["error"].endswith("KeyError: 'k'")


def test_a_run_is_named_in_all_its_lines_and_so_is_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info")
    with pytest.raises(ValueError, match="no rows"), logs.running("compute_stats", "error") as run:  # noqa: PT012
        logging.getLogger("moonlake.x").info("within")
        raise ValueError("no rows")
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [(line["level"], line["job"], line["run"]) for line in lines] == [
        ("info", "compute_stats", run.run), ("info", "compute_stats", run.run), ("error", "compute_stats", run.run)
    ]  # fmt: skip
    assert lines[-1]["message"].endswith("s: no rows")


def test_the_end_of_a_run_tells_the_versions_that_its_report_does(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info")
    with logs.running("ingest", "info") as run:
        text = run.report(tables=[WriteReport("products", 2, 1, 0, 0, 1, 7), WriteReport("queries", 0, 0, 0, 0, 0, 3)])
    report, end = json.loads(text), json.loads(said.getvalue().splitlines()[-1])
    assert (report["job"], report["run"], end["run"]) == ("ingest", run.run, run.run)
    assert [(one["table"], one["written"], one["version"]) for one in report["tables"]] == [
        ("products", 1, 7), ("queries", 0, 3)
    ]  # fmt: skip
    assert end["versions"] == {"products": 7, "queries": 3}


def test_a_run_configures_logs_where_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(monkeypatch, "info")
    logging.getLogger().handlers.clear()
    with logs.running("compute_stats", "error"):
        logging.getLogger("moonlake.x").error("heard")
    assert [json.loads(line)["message"] for line in said.getvalue().splitlines()] == ["heard"]


def test_the_level_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment().log_level == "info"
    monkeypatch.setenv("MOONLAKE_LOG_LEVEL", "DEBUG")
    assert Settings.from_environment().log_level == "debug"
