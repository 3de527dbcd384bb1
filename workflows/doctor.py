"""Findings about this machine: is everything there that moonlake needs, and if not, what to do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from moonlake.errors import MissingDependency, SettingsError
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings, checkout_folder
from moonlake.spark import jars
from moonlake.spark.java import find_java
from workflows.airflow import API_PORT, LOG_PORTS

PORTS = {API_PORT: "Airflow", **dict.fromkeys(LOG_PORTS, "Airflow's logs")}

GB = 1_000_000_000
DISK_WANTED, DISK_NEEDED = 10 * GB, 1 * GB
MEMORY_WANTED = 8 * GB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found and, unless it is ok, what to do."""

    status: Literal["ok", "warn", "fail"]
    subject: str
    message: str


def examine() -> Iterator[Finding]:
    """Every finding about this machine and this environment, cheap ones first."""
    yield check_python()
    yield check_java()
    yield check_packages(checkout_folder() / "requirements.lock")
    yield check_jars()
    yield check_memory()
    for port, user in PORTS.items():
        yield check_port(port, user)
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        yield Finding("fail", "settings", str(error))
        return
    yield Finding("ok", "settings", f"home {settings.home}, lake {settings.lake}")
    yield check_writable(settings.home)
    yield check_disk(settings.home)
    try:
        yield from check_lake(settings)
    except ImportError as error:
        yield Finding("fail", "lake", f"{error}: run `make setup`")


def check_python() -> Finding:
    """Is this a Python that the locked packages are known to install on?"""
    found = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", "Python", found)
    return Finding("fail", "Python", f"{found}, wanted 3.11 to 3.13: install 3.11 and run `make setup`")


def check_java() -> Finding:
    """Is there a Java that Spark runs on?"""
    try:
        java = find_java()
    except MissingDependency as error:
        return Finding("fail", "Java", str(error))
    return Finding("ok", "Java", f"{java.major} at {os.path.realpath(java.executable)}")


def check_packages(lock: Path) -> Finding:
    """Is every package installed in the version that the lock names?"""
    if not lock.exists():
        return Finding("warn", "packages", f"no {lock} to compare with: moonlake does not run from its repository")
    wanted = locked_versions(lock)
    wrong = []
    for name, locked in wanted.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found != locked:
            wrong.append(f"{name} {found} (locked {locked})")
    if not wrong:
        return Finding("ok", "packages", f"all {len(wanted)} as locked")
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Finding("fail", "packages", f"{', '.join(wrong[:5])}{more}: run `make setup`")


def locked_versions(lock: Path) -> dict[str, str]:
    """Package name -> version of the lock's lines that hold on this platform."""
    from packaging.requirements import Requirement

    lines = [line for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]
    requirements = [Requirement(line) for line in lines]
    return {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def check_jars() -> Finding:
    """Are Delta's jars in Spark's cache?"""
    try:
        jar = jars.cached_jar()
    except PackageNotFoundError as error:
        return Finding("fail", "Delta's jars", f"{error}: run `make setup`")
    if jar.exists():
        return Finding("ok", "Delta's jars", f"{jars.coordinates()} in {jar.parent}")
    return Finding("fail", "Delta's jars", f"{jar} is missing: run `make setup`")


def check_memory() -> Finding:
    """Is there memory for Spark and a model side by side?"""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total >= MEMORY_WANTED:
        return Finding("ok", "memory", f"{total / GB:.0f} GB")
    advice = "the demo wants 8 GB; lower MOONLAKE_SPARK_DRIVER_MEMORY"
    return Finding("warn", "memory", f"{total / GB:.1f} GB: {advice}")


def check_port(port: int, user: str) -> Finding:
    """Is the port free on the loopback address?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = "stop what listens there" if port in LOG_PORTS else "use `moonlake airflow standalone --port`"
            return Finding("warn", f"port {port}", f"{user}: {error.strerror}; {remedy}")
    return Finding("ok", f"port {port}", f"free for {user}")


def check_writable(home: Path) -> Finding:
    """Can moonlake's home be written, or made where it is not there yet?"""
    folder = nearest_folder(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("fail", "home", f"{folder}: {error.strerror}; set MOONLAKE_HOME to a folder of yours")
    return Finding("ok", "home", f"{folder} can be written")


def check_disk(home: Path) -> Finding:
    """Is there room on the disk of moonlake's home?"""
    free = shutil.disk_usage(nearest_folder(home)).free
    found = f"{free / GB:.1f} GB free"
    if free >= DISK_WANTED:
        return Finding("ok", "disk", found)
    status: Literal["warn", "fail"] = "warn" if free >= DISK_NEEDED else "fail"
    return Finding(status, "disk", f"{found}, wanted {DISK_WANTED // GB}: make room or move MOONLAKE_HOME")


def nearest_folder(path: Path) -> Path:
    """The path itself, or the closest of its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_lake(settings: Settings) -> Iterator[Finding]:
    """Each table that has been written, with its Delta version."""
    from deltalake import DeltaTable  # not moonlake.lake.lake: pyarrow takes a second to import
    from deltalake.exceptions import DeltaError

    written = 0
    for name in TABLES:
        path = f"{settings.lake}/{name}"
        try:
            if not DeltaTable.is_deltatable(path):
                continue
            written += 1
            yield Finding("ok", f"table {name}", f"version {DeltaTable(path).version()}")
        except (DeltaError, OSError) as error:
            yield Finding("fail", f"table {name}", f"{path} cannot be read: {error}")
    if not written:
        yield Finding("ok", "lake", "no table has been written yet: `make demo` fills a lake")
