"""Whoever starts the Spark session of a process stops it, also after an error and after the end of the JVM."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pyspark.sql import SparkSession

from moonlake.settings import Settings
from moonlake.spark.session import running_session, session

ENDS = """
from moonlake.settings import Settings
from moonlake.spark.session import running_session, session

settings = Settings.from_environment()
assert running_session() is None
try:
    with session(settings, "first") as first:
        assert running_session() is first
        raise KeyError("of the block")
except KeyError:
    assert running_session() is None
with session(settings, "second") as second:
    assert second.range(3).count() == 3
    second.sparkContext._gateway.proc.kill()
print("left quietly")
"""


@pytest.mark.spark
def test_a_block_inside_another_one_leaves_its_session_running(spark: SparkSession, settings: Settings) -> None:
    with session(settings, "inner") as inner:
        assert inner is running_session()
    assert inner.sparkContext is spark.sparkContext
    assert spark.range(2).count() == 2


@pytest.mark.spark
def test_a_session_stops_after_an_error_and_a_dead_jvm_is_left_quietly(settings: Settings) -> None:
    environment = {**settings.environment(), "PYTHONWARNINGS": "error::RuntimeWarning"}
    done = subprocess.run([sys.executable, "-c", ENDS], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "left quietly\n"), done.stderr
