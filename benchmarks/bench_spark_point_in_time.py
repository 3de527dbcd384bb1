"""The point-in-time join within Spark beside Feast's own Spark store: seconds and ratio, results checked to be equal.

    python -m benchmarks.bench_spark_point_in_time            # the whole table
    python -m benchmarks.bench_spark_point_in_time --small    # little data: does everything still run?

Both stores run on one session, read the files of one Delta table, take the label rows as a frame of Spark and have
Spark write the result as Parquet; the call of Feast and the writing are measured together. Each is warmed up on little
data. Times of a key are distinct, because Feast's store gives a label several rows where they tie.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

from benchmarks.bench_point_in_time import SMALL, Case, digest, write_data
from moonlake.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import SparkSession

CASES = [
    Case("100k x 500k, 100 per key", 100_000, 500_000, 100),
    Case("100k x 500k, 1000 per key", 100_000, 500_000, 1000),
]
TIME_LIMIT_SECONDS = 900.0
REFS = ["view0:score", "view0:vector"]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one pull, and what came of it; `stopped` says why there is no result."""

    seconds: float
    digest: str = ""
    rows: int = 0
    stopped: str = ""


def main() -> None:
    """Measure both stores on every case, in one session."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="little data: a check, not a measurement")
    parser.add_argument("--memory", default="6g", help="memory of the Spark driver")
    arguments = parser.parse_args()
    from moonlake.spark.session import session

    with TemporaryDirectory(prefix="moonlake-bench-spark-") as temporary:
        folder = Path(temporary)
        settings = Settings(home=folder / "home", spark_driver_memory=arguments.memory)
        with session(settings, "bench") as spark:
            spark.conf.set("spark.sql.adaptive.enabled", "true")  # as by default; small jobs do without
            for pull in STORES.values():
                pull(spark, SMALL[0], _data(SMALL[0], folder))
            for case in SMALL[:1] if arguments.small else CASES:
                print(f"\n{case.name}\n{'':24} {'seconds':>8} {'to ours':>8}  result", flush=True)
                mine: Timed | None = None
                for name, pull in STORES.items():
                    found = pull(spark, case, _data(case, folder))
                    mine = mine or found
                    same = "equal" if found.digest == mine.digest else f"DIFFERS ({found.rows:,} rows)"
                    ratio = f"{found.seconds / mine.seconds:8.2f}"
                    print(f"{name:24} {found.seconds:8.2f} {ratio}  {found.stopped or same}", flush=True)


def ours(spark: SparkSession, case: Case, folder: Path) -> Timed:
    """moonlake's Delta store with `engine: spark`."""
    from moonlake.feast_delta.sources import DeltaSource

    offline = {"type": "moonlake.feast_delta.offline_store.DeltaOfflineStore", "engine": "spark"}
    with TemporaryDirectory(prefix="moonlake-bench-feast-") as state:
        store = _store(Path(state), offline, DeltaSource(name="view0_source", path=str(folder / "view0")))

        def pull(labels: Any, path: str) -> None:
            job: Any = store.get_historical_features(labels, REFS)
            job.to_parquet(path)

        return _timed(spark, case, folder, Path(state), pull)


def feast_spark(spark: SparkSession, case: Case, folder: Path) -> Timed:
    """Feast's own Spark store."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    source = SparkSource(
        name="view0_source",
        path=str(folder / "view0"),
        file_format="parquet",  # of the same files: it knows no Delta
        timestamp_field="event_timestamp",
        created_timestamp_column="created_at",
    )
    with TemporaryDirectory(prefix="moonlake-bench-feast-") as state:
        store = _store(Path(state), {"type": "spark"}, source)

        def pull(labels: Any, path: str) -> None:
            job: Any = store.get_historical_features(labels, REFS)
            job.to_spark_df().write.parquet(path)

        return _timed(spark, case, folder, Path(state), pull)


STORES: dict[str, Callable[[Any, Case, Path], Timed]] = {"ours": ours, "feast spark": feast_spark}


def _store(state: Path, offline: dict[str, Any], source: Any) -> FeatureStore:
    from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
    from feast.types import Array, Float32, Float64, String

    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(state / "registry.db"),
            online_store={"type": "sqlite", "path": str(state / "online.db")},
            offline_store=offline,
            entity_key_serialization_version=3,
            repo_path=state,
        )
    )
    user = Entity(name="user", join_keys=["key"], value_type=ValueType.STRING)
    fields = [
        Field(name="key", dtype=String),
        Field(name="score", dtype=Float64),
        Field(name="vector", dtype=Array(Float32)),
    ]
    store.apply([user, FeatureView(name="view0", entities=[user], source=source, schema=fields, ttl=timedelta(0))])
    return store


def _timed(spark: SparkSession, case: Case, folder: Path, state: Path, pull: Callable[[Any, str], None]) -> Timed:
    labels = spark.read.parquet(str(folder / "labels.parquet"))
    out = str(state / "result")
    late = threading.Event()

    def stop() -> None:
        late.set()
        spark.sparkContext.cancelAllJobs()

    timer = threading.Timer(TIME_LIMIT_SECONDS, stop)
    timer.start()
    started = time.perf_counter()
    try:
        pull(labels, out)
    except Exception as error:  # noqa: BLE001  whatever a peer dies of is its result
        reason = f"over {TIME_LIMIT_SECONDS / 60:.0f} min" if late.is_set() else f"failed: {str(error)[:100]}"
        return Timed(time.perf_counter() - started, stopped=reason)
    finally:
        timer.cancel()
    seconds = time.perf_counter() - started
    found, rows = digest(ds.dataset(out).to_table(), case)
    return Timed(seconds, found, rows)


def _data(case: Case, folder: Path) -> Path:
    place = folder / f"{case.labels}-{case.rows}-{case.per_key}"
    write_data(case, place)
    return place


if __name__ == "__main__":
    main()
