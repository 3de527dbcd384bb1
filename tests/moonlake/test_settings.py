from __future__ import annotations

import re
from pathlib import Path

import pytest

from moonlake.errors import InputError, MissingDependency, SettingsError
from moonlake.settings import Settings
from moonlake.spark.java import find_java
from moonlake.timestamps import parse_moment


def test_settings_come_from_the_environment_and_go_back_into_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    monkeypatch.setenv("MOONLAKE_WORKERS", "3")
    settings = Settings.from_environment(spark_driver_memory="1g")
    assert (settings.home, settings.workers, settings.spark_driver_memory) == (tmp_path, 3, "1g")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MOONLAKE_HOEM", "x", "unknown variables MOONLAKE_HOEM; known are .*MOONLAKE_HOME"),
        ("MOONLAKE_WORKERS", "many", "MOONLAKE_WORKERS: .*found 'many'"),
        ("MOONLAKE_WORKERS", "0", "MOONLAKE_WORKERS: .*greater than or equal to 1"),
    ],
)
def test_a_variable_that_is_unknown_or_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        Settings.from_environment()


def test_a_moment_without_a_time_zone_is_refused_not_guessed() -> None:
    with pytest.raises(InputError, match="has no time zone: write 2026-01-01Z"):
        parse_moment("2026-01-01")
    with pytest.raises(InputError, match="'soon' is not a time in ISO 8601"):
        parse_moment("soon")


def test_java_that_is_missing_or_too_old_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingDependency, match="holds no bin/java: install a JDK or JRE 17"):
        find_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="no Java on the PATH: install"):
        find_java()
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    old.chmod(0o755)
    with pytest.raises(MissingDependency, match="is Java 8, wanted 17"):
        find_java()


def test_the_folders_of_a_home_are_named_by_the_settings_alone() -> None:
    rooms = ("benchmarks", "cli", "models", "moonlake", "serving", "sources", "spark_jobs", "studies", "workflows")
    root = Path(__file__).parents[2]
    named = re.compile(r"settings(\(\))?\.home\s*/\s*f?[\"']")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for room in rooms
        for path in (root / room).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if named.search(line) and "demo-{name}" not in line  # a home of its own
    ]
    assert not found


def test_no_two_folders_of_a_home_are_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    members = (name for name, member in vars(Settings).items() if isinstance(member, property))
    folders = {name: Path(getattr(settings, name)) for name in members}
    assert len(folders) > 15
    assert len(set(folders.values())) == len(folders)
    assert {folder.parent for folder in folders.values()} == {tmp_path}
