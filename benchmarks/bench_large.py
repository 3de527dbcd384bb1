"""20 million label rows, 3 views of 5 million rows and sequences of 200 as pointers, within a memory budget.

    python -m benchmarks.bench_large                  # 20 million label rows within 8 GB
    python -m benchmarks.bench_large --labels 100000  # a check

The label rows are a Delta table; the result is written as Parquet, block by block, with the log beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from benchmarks.bench_point_in_time import SPAN_US, START_US, VIEW_COLUMNS, key_column, time_column
from benchmarks.processes import measure, run

VIEWS = {"user_stats": "user", "user_profile": "user", "item_stats": "item"}
"""Views by the entity that they are keyed by."""

ROWS_PER_COMMIT = 2_000_000
PER_KEY = 100


def main() -> None:
    """Measure the pull in a process of its own, or be that process."""
    parser = argparse.ArgumentParser(description="Point-in-time joins of many label rows in little memory.")
    parser.add_argument("--labels", type=int, default=20_000_000, help="label rows")
    parser.add_argument("--length", type=int, default=200, help="actions of a sequence")
    parser.add_argument("--budget-mb", type=int, default=3_000, help="memory_budget_mb of the store")
    parser.add_argument("--data", type=Path, help="folder to keep the data in for another run")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    stated = parser.parse_args()
    if stated.one:
        measure(pull(stated.data, stated.length, stated.budget_mb), lambda rows: ("", rows))
        return
    with TemporaryDirectory(prefix="moonlake-bench-") as temporary:
        data = stated.data or Path(temporary)
        write_data(data, stated.labels)
        print(f"data: {_megabytes(data):,.0f} MB on disk", flush=True)
        arguments = ["--one", "--data", str(data), "--length", str(stated.length), "--budget-mb", str(stated.budget_mb)]
        found = run("benchmarks.bench_large", arguments)
        print(
            found.stopped
            or f"{found.rows:,} label rows in {found.seconds:.0f} s, peak {found.peak / 1e9:.2f} GB"
            f" ({found.above / 1e9:.2f} GB above imports); result {_megabytes(data / 'result'):,.0f} MB,"
            f" of which {_megabytes(data / 'result' / 'logs'):,.0f} MB are the log",
            flush=True,
        )


def write_data(folder: Path, labels: int) -> None:
    """Label rows, three views of a quarter as many rows, and a behaviour log of as many actions as labels."""
    if (folder / "labels").exists():
        return
    rng = np.random.default_rng(11)
    rows = labels // 4
    entities = rows // PER_KEY
    for view, entity in VIEWS.items():
        _append(folder / view, rows, {entity: entities}, rng, VIEW_COLUMNS)
    _append(folder / "log", labels, {"user": entities}, rng, ("item_id",))
    _append(folder / "labels", labels, {"user": entities, "item": entities}, rng, ())


def _append(
    path: Path, rows: int, entities: dict[str, int], rng: np.random.Generator, columns: tuple[str, ...]
) -> None:
    """Rows in order of time, a commit for each of so many."""
    moments = START_US + np.sort(rng.integers(0, SPAN_US, rows))
    for first in range(0, rows, ROWS_PER_COMMIT):
        when = moments[first : first + ROWS_PER_COMMIT]
        table: dict[str, Any] = {
            name: key_column(rng.integers(0, count, len(when))) for name, count in entities.items()
        }
        table |= {"event_timestamp": time_column(when), "created_at": time_column(when)}
        table |= {name: rng.integers(0, 1 << 40, len(when)) for name in columns}
        if not columns:
            del table["created_at"]
            table["label"] = np.arange(first, first + len(when))
        write_deltalake(str(path), pa.table(table), mode="append")


def pull(folder: Path, length: int, budget_mb: int) -> Callable[[], int]:
    """The measured call: a pull, written to `<folder>/result`; it gives the number of rows."""
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
    from feast.types import Int64, String

    from moonlake.feast_delta.joins.arrow_retrieval import DeltaRetrievalJob
    from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource

    result = folder / "result"
    (result / "rows").mkdir(parents=True, exist_ok=True)
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(result / "registry.db"),
            online_store={"type": "sqlite", "path": str(result / "online.db")},
            offline_store={
                "type": "moonlake.feast_delta.offline_store.DeltaOfflineStore",
                "memory_budget_mb": budget_mb,
                "sequences": "pointers",
                "sequence_logs": str(result / "logs"),
                "sequence_length": length,
            },
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    entities = {name: Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("user", "item")}
    views, refs = [], []
    for view, entity in VIEWS.items():
        names = {column: f"{view}_{column}" for column in VIEW_COLUMNS}
        source = DeltaSource(name=f"{view}_source", path=str(folder / view), field_mapping=names)
        fields = [Field(name=entity, dtype=String), *(Field(name=name, dtype=Int64) for name in names.values())]
        views.append(
            FeatureView(name=view, entities=[entities[entity]], source=source, schema=fields, ttl=timedelta(0))
        )
        refs += [f"{view}:{name}" for name in names.values()]
    log = BehaviorSequenceSource(name="log_source", path=str(folder / "log"), packed=False)
    schema = [Field(name="user", dtype=String), Field(name="item_id", dtype=Int64)]
    views.append(FeatureView(name="behavior", entities=[entities["user"]], source=log, schema=schema))
    store.apply([*entities.values(), *views])

    def call() -> int:
        labels: Any = DeltaTable(str(folder / "labels"))
        job = store.get_historical_features(labels, [*refs, "behavior:item_id"])
        assert isinstance(job, DeltaRetrievalJob)
        written = 0
        for number, block in enumerate(job.to_batches()):
            file = result / "rows" / f"part-{number:05d}.parquet"
            pq.write_table(block, file, compression="zstd", compression_level=1)
            written += len(block)
        return written

    return call


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
