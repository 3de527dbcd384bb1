"""The one way to start a Spark session and to stop it; contracts as Spark schemas."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from delta import configure_spark_with_delta_pip
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException, PySparkRuntimeError
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as f
from pyspark.sql import types as t

from moonlake.errors import MissingDependency
from moonlake.schema.contract import ColumnType, Table
from moonlake.settings import Settings
from moonlake.spark.java import find_java

SPARK_TYPES: dict[ColumnType, t.DataType] = {
    "string": t.StringType(),
    "bool": t.BooleanType(),
    "int32": t.IntegerType(),
    "int64": t.LongType(),
    "float32": t.FloatType(),
    "float64": t.DoubleType(),
    "timestamp": t.TimestampType(),
    "binary": t.BinaryType(),
    "list<string>": t.ArrayType(t.StringType()),
    "list<int64>": t.ArrayType(t.LongType()),
    "list<float32>": t.ArrayType(t.FloatType()),
    "map<string,string>": t.MapType(t.StringType(), t.StringType()),
}

LOOPBACK = "127.0.0.1"


def spark_schema(table: Table, columns: Sequence[str] | None = None) -> t.StructType:
    """The Spark schema of a contract, or of some of its columns in the order asked for."""
    chosen = table.columns if columns is None else [table[name] for name in columns]
    return t.StructType([t.StructField(column.name, SPARK_TYPES[column.type], column.nullable) for column in chosen])


@contextmanager
def session(settings: Settings, app_name: str) -> Iterator[SparkSession]:
    """A block with a Spark session that has Delta (a start takes 7 to 20 s on two cores); it stops with the block.

    A process has one session: a block inside another one gets the same session, and leaves it to whoever started it.
    Under spark-submit the master and the packages of the submission win. The output of Spark and of its resolver goes
    to `<home>/logs/spark.log`, not to the user's screen.

    Raises: MissingDependency: Java or Delta's jars cannot be had; the message says how to get them.
    """
    ours = running_session() is None
    spark = _started(settings, app_name)
    try:
        yield spark
    finally:
        if ours:
            with warnings.catch_warnings(), suppress(Py4JError, OSError):
                # A signal to the whole process group ends the JVM before us: there is nothing left to stop.
                warnings.filterwarnings("ignore", "Unable to cleanly shutdown Spark JVM", RuntimeWarning)
                spark.stop()


def running_session() -> SparkSession | None:
    """The session of this process; None where none was started."""
    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def session_until_exit(settings: Settings, app_name: str) -> SparkSession:
    """The session of this process, for callers that nobody closes, such as a Feast store; it stops with the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(session(settings, app_name))


def _started(settings: Settings, app_name: str) -> SparkSession:
    find_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
    builder = SparkSession.builder.appName(app_name)
    if "SPARK_ENV_LOADED" not in os.environ:  # set by spark-submit, which knows the master better than we do
        builder = builder.master(settings.spark_master)
    for name, value in _configuration(settings).items():
        builder = builder.config(name, value)
    log = settings.logs / "spark.log"
    try:
        with _stderr_to(log):
            spark = configure_spark_with_delta_pip(builder).getOrCreate()
    except (PySparkException, RuntimeError) as error:
        raise MissingDependency(
            f"Spark did not start ({error}): its log {log} says why; `make setup` fetches Delta's jars"
        ) from error
    spark.sparkContext.setLogLevel("ERROR")
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)  # it prints what the exception says already
    return spark


def _configuration(settings: Settings) -> dict[str, str]:
    java_options = "-Duser.timezone=UTC"
    adaptive = "true"
    if settings.spark_master.startswith("local"):
        # Jobs on one machine are short: the optimising compiler and plans made anew after every shuffle cost them
        # more than they give (3 writes of 3 rows: 76 s of processor time with both, 40 s without).
        java_options += " -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
        adaptive = "false"
    return {
        "spark.sql.adaptive.enabled": adaptive,
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        # The default, INT96, has no statistics: a reader could leave no row group of other times unread.
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.driver.extraJavaOptions": java_options,
        "spark.driver.memory": settings.spark_driver_memory,
        "spark.driver.host": LOOPBACK,
        "spark.driver.bindAddress": LOOPBACK,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(settings.warehouse),
        "spark.sql.shuffle.partitions": str(settings.spark_shuffle_partitions),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
        # The default of 50 makes the log of every small table a job of 50 tasks.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.databricks.delta.properties.defaults.enableChangeDataFeed": "true",
        "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",
    }


def current_rows(frame: DataFrame, table: Table) -> DataFrame:
    """The rows as they are believed now: of a fact that was restated, the statement written last."""
    newest_first = Window.partitionBy(*table.identity).orderBy(f.desc("created_at"))
    ranked = frame.withColumn("_place", f.row_number().over(newest_first))
    return ranked.where(f.col("_place") == 1).drop("_place")


@contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Point file descriptor 2 at a file: a JVM started meanwhile inherits it, and keeps it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
