from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app


def test_every_line_says_ok_warn_or_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    answer = CliRunner().invoke(app, ["doctor"])
    assert {line.split()[0] for line in answer.stdout.splitlines()} <= {"ok", "warn", "fail"}
    assert answer.exit_code == ("\nfail" in "\n" + answer.stdout)


def test_a_machine_without_java_fails_and_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 1
    (line,) = [line for line in answer.stdout.splitlines() if "  Java  " in line]
    assert line.startswith("fail")
    assert "openjdk-17-jre-headless" in line


def test_a_wrong_setting_fails_but_the_rest_is_still_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_WORKERS", "many")
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 1
    assert "MOONLAKE_WORKERS" in answer.stdout
    assert "Delta's jars" in answer.stdout


def test_json_says_the_same_as_the_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    lines, found = (CliRunner().invoke(app, ["doctor", *words]) for words in ([], ["--json"]))
    said = [(line[:4].strip(), line[6:26].strip()) for line in lines.stdout.splitlines()]
    assert [(one["status"], one["subject"]) for one in json.loads(found.stdout)] == said
    assert found.exit_code == lines.exit_code
