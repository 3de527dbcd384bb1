"""Delta's jars in Spark's own cache: are they there, and if not, fetch them.

`make setup` runs this file, so that no later session needs the network or shows Spark's resolver at work.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

from moonlake.errors import MissingDependency
from moonlake.spark.java import find_java

SCALA_VERSION = "2.13"


def coordinates() -> str:
    """The Maven coordinates of Delta for the installed Spark, as delta-spark's own session builder states them.

    Raises: PackageNotFoundError: pyspark or delta-spark is not installed.
    """
    spark = ".".join(version("pyspark").split(".")[:2])
    return f"io.delta:delta-spark_{spark}_{SCALA_VERSION}:{version('delta-spark')}"


def cached_jar() -> Path:
    """The place where Spark's resolver keeps Delta's main jar, which it lays down last, after all that Delta needs."""
    group, artifact, release = coordinates().split(":")
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # Java's user.home, which does not follow $HOME
    return home / ".ivy2.5.2" / "jars" / f"{group}_{artifact}-{release}.jar"


def spark_home() -> Path:
    """The folder of the installed Spark; its scripts do not find it from outside the environment.

    Raises: PackageNotFoundError: pyspark is not installed.
    """
    return Path(str(distribution("pyspark").locate_file("pyspark")))


def fetch() -> None:
    """Let Spark resolve Delta's jars into its cache, unless they are there: 4 s, and 87 MB the first time.

    Raises: MissingDependency: no Java, or the jars cannot be had; what Spark said went to stderr.
    """
    if cached_jar().exists():
        return
    find_java()
    environment = {"SPARK_HOME": str(spark_home()), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    with tempfile.NamedTemporaryFile(suffix=".py") as empty_program:
        command = [str(spark_home() / "bin" / "spark-submit"), "--master", "local[1]", "--packages", coordinates()]
        done = subprocess.run([*command, empty_program.name], env=os.environ | environment, check=False)
    if done.returncode or not cached_jar().exists():
        raise MissingDependency(
            f"Spark could not fetch {coordinates()} and what it needs from Maven Central: check the network and proxy, "
            "or name a mirror with spark.jars.ivySettings in spark-defaults.conf"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when the jars are there; with --present they are only looked for."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--present" in arguments:
        return 0 if cached_jar().exists() else 1
    try:
        fetch()
    except MissingDependency as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
