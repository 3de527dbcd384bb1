"""`setup.sh` on machines that lack something: one plain line at once, and exit code 1."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "setup.sh"
ORDINARY = ("bash", "cat", "cksum", "dirname", "env", "grep", "head", "rm", "sed", "tail")

JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"
NOT_ROOT = "echo 1000"
ROOT = "echo 0"


class Machine:
    """A made-up machine: a folder of programs that is the whole PATH, and a checkout with nothing but setup.sh."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.checkout = folder / "checkout"
        self.programs.mkdir()
        self.checkout.mkdir()
        shutil.copy(SETUP, self.checkout)
        for name in ORDINARY:
            (self.programs / name).symlink_to(str(shutil.which(name)))
        self.add("id", NOT_ROOT)

    def add(self, name: str, script: str, folder: Path | None = None) -> None:
        """A program of that name; an old one of the same name is replaced."""
        path = (folder or self.programs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / "bash"), "setup.sh"]
        variables = {"PATH": str(self.programs), "HOME": str(self.checkout), **environment}
        return subprocess.run(command, cwd=self.checkout, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a run that failed."""
    assert done.returncode == 1, done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_no_java_is_one_line_that_says_how_to_get_it(machine: Machine) -> None:
    error = the_error(machine.set_up())
    assert error.startswith("error: no Java found")
    assert "openjdk-17-jre-headless" in error


def test_an_old_java_is_named_with_its_version(machine: Machine) -> None:
    machine.add("java", "echo 'java version \"1.8.0_402\"' >&2")
    error = the_error(machine.set_up())
    assert f"{machine.programs}/java is Java 8" in error


def test_java_home_comes_before_the_path(machine: Machine, tmp_path: Path) -> None:
    machine.add("java", JAVA_17)
    machine.add("java", "echo 'openjdk version \"11.0.2\"' >&2", folder=tmp_path / "jdk" / "bin")
    assert "Java 11" in the_error(machine.set_up(JAVA_HOME=str(tmp_path / "jdk")))


def test_a_java_home_without_java_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.add("java", JAVA_17)
    assert f"JAVA_HOME is {tmp_path / 'gone'}" in the_error(machine.set_up(JAVA_HOME=str(tmp_path / "gone")))


def test_the_java_stub_of_macos_is_no_java(machine: Machine) -> None:
    machine.add("java", "echo 'The operation could not be completed. Unable to locate a Java Runtime.' >&2; exit 1")
    assert "is no Java that Spark can start" in the_error(machine.set_up())


def test_root_on_debian_gets_java_installed(machine: Machine) -> None:
    machine.add("id", ROOT)
    machine.add("java-17", JAVA_17)
    machine.add("apt-get", f"{shutil.which('ln')} -sf {machine.programs}/java-17 {machine.programs}/java")
    done = machine.set_up()
    assert "installing openjdk-17-jre-headless with apt-get" in done.stdout
    assert the_error(done).startswith("error: no Python 3.11 found")


def test_root_on_debian_without_a_registry_gets_the_line(machine: Machine) -> None:
    machine.add("id", ROOT)
    machine.add("apt-get", "exit 100")
    assert the_error(machine.set_up()).startswith("error: no Java found")


def test_another_python_is_not_taken_for_3_11(machine: Machine) -> None:
    machine.add("java", JAVA_17)
    machine.add("python3", "exit 1")
    assert "python3.11-venv" in the_error(machine.set_up())


@pytest.mark.slow
def test_no_package_registry_is_one_line_with_the_reason(machine: Machine) -> None:
    machine.add("java", JAVA_17)
    (machine.programs / "python3.11").symlink_to(Path(sys.executable).resolve())
    for name in ("requirements.lock", "pyproject.toml"):
        (machine.checkout / name).touch()
    error = the_error(machine.set_up(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE="/dev/null"))
    assert "installing uv" in error
    assert "No matching distribution" in error or "Could not find a version" in error
    assert "PIP_INDEX_URL" in error
