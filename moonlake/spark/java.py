"""The Java that Spark will start: found the way Spark's launcher finds it, and checked before it does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from moonlake.errors import MissingDependency

SUPPORTED_JAVA = (17, 21)
HOW_TO_GET_JAVA = (
    "install a JDK or JRE 17 (Debian, Ubuntu: apt-get install openjdk-17-jre-headless) or set JAVA_HOME to one"
)


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its executable and its major version."""

    executable: str
    major: int


def find_java() -> Java:
    """The Java of JAVA_HOME, else the one on the PATH.

    Raises: MissingDependency: there is none, or it is of a version that Spark 4.2 does not run on.
    """
    home = os.environ.get("JAVA_HOME")  # Spark's own variable, read by its launcher: not a setting of ours
    executable = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if executable is None or not os.access(executable, os.X_OK):
        where = f"JAVA_HOME is {home}, but it holds no bin/java" if home else "no Java on the PATH"
        raise MissingDependency(f"{where}: {HOW_TO_GET_JAVA}")
    banner = subprocess.run([executable, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(?:1\.)?(\d+)', banner)
    major = int(match.group(1)) if match else 0
    if major not in SUPPORTED_JAVA:
        raise MissingDependency(
            f"{executable} is Java {major or 'of an unknown version'}, wanted 17: {HOW_TO_GET_JAVA}"
        )
    return Java(executable, major)
