"""The point-in-time join beside its peers: seconds, peak memory, ratios, in one run; results are checked to be equal.

    python -m benchmarks.bench_point_in_time            # the whole table: about 20 minutes on two cores
    python -m benchmarks.bench_point_in_time --small    # every peer once on little data: does everything still run?

Every peer joins the same label rows to the same Parquet files (ours are a Delta table of them) in a process of its own;
imports, and what a user does once (the registry), are not counted. Hand-written queries come in two forms: wide, as one
would first write them, and narrow: as-of on key, time and row number, then the wide rows by number.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from benchmarks.processes import Measured, measure, run

MOMENT = pa.timestamp("us", tz="UTC")
START_US = 1_700_000_000_000_000
SPAN_US = 30 * 86_400_000_000
DIMENSION = 64
SEQUENCE_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Case:
    """Label rows, views of so many rows with so many of them per key, and whether a behaviour sequence joins them."""

    name: str
    labels: int
    rows: int
    per_key: int
    views: int = 1
    sequence: bool = False
    dimension: int = DIMENSION

    @property
    def keys(self) -> int:
        """Distinct keys; labels have a tenth more, which no feature row has."""
        return self.rows // self.per_key


CASES = [
    Case("100k x 500k, 100 per key", 100_000, 500_000, 100),
    Case("100k x 2M, 100 per key", 100_000, 2_000_000, 100),
    Case("100k x 2M, 1000 per key", 100_000, 2_000_000, 1000),
    Case("1M x 2M, 1000 per key", 1_000_000, 2_000_000, 1000),
    Case("1M x 3 views of 5M + sequence of 100", 1_000_000, 5_000_000, 100, views=3, sequence=True, dimension=0),
]
SMALL = [
    Case("1k x 20k, 100 per key", 1_000, 20_000, 100),
    Case("1k x 3 views of 20k + sequence of 100", 1_000, 20_000, 100, views=3, sequence=True, dimension=0),
]

VIEW_COLUMNS = ("count_7d", "clicks_7d", "rate_7d", "price_cents")


def main() -> None:
    """Measure every peer on every case, or one peer on one case in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="little data: a check, not a measurement")
    parser.add_argument("--case", type=int, help="one case only, by its number")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="some peers only")
    parser.add_argument("--data", type=Path, help="folder to keep the data in for another run")
    parser.add_argument("--one", choices=list(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = SMALL if arguments.small else CASES
    if arguments.one:
        case = cases[arguments.case]
        measure(PEERS[arguments.one](case, arguments.data), lambda result: digest(result, case))
        return
    with TemporaryDirectory(prefix="moonlake-bench-") as temporary:
        root = arguments.data or Path(temporary)
        for number, case in enumerate(cases):
            if arguments.case is None or arguments.case == number:
                folder = root / f"{case.labels}-{case.rows}-{case.per_key}-{case.views}"
                write_data(case, folder)
                small = ["--small"] if arguments.small else []
                _report(case, arguments.peers, folder, ["--case", str(number), "--data", str(folder), *small])
                if arguments.data is None:
                    shutil.rmtree(folder)


def _report(case: Case, peers: list[str], folder: Path, arguments: list[str]) -> None:
    size = sum(Path(file).stat().st_size for file in files_of(folder / "view0"))
    print(f"\n{case.name} ({size / 1e6:,.0f} MB of Parquet a view)", flush=True)
    print(
        f"{'':32} {'seconds':>8} {'cpu':>7} {'peak GB':>8} {'above':>6} {'to ours':>8} {'to scan':>8}  result",
        flush=True,
    )
    found: dict[str, Measured] = {}
    first = [peer for peer in ("bare scan", "ours") if peer in peers]  # the scan also brings the files into memory
    for peer in [*first, *(peer for peer in peers if peer not in first)]:
        if peer == "feast file" and case.rows > 500_000:
            continue  # it loses label rows, and takes minutes, in the smallest case
        one = found[peer] = run("benchmarks.bench_point_in_time", ["--one", peer, *arguments])
        mine, scan = found.get("ours", Measured()), found.get("bare scan", Measured())
        if one.stopped:
            print(f"{peer:32} {one.stopped}", flush=True)
            continue
        same = "equal" if one.digest == mine.digest else f"DIFFERS ({one.rows:,} rows)"
        if same != "equal" and one.digest and one.digest == mine.digest.split()[0]:
            same = "equal, without the sequence"
        to_ours = f"{one.seconds / mine.seconds:8.2f}" if mine.seconds else " " * 8
        to_scan = f"{one.seconds / scan.seconds:8.2f}" if scan.seconds else " " * 8
        took = f"{one.seconds:8.2f} {one.cpu:7.2f} {one.peak / 1e9:8.2f} {one.above / 1e9:6.2f}"
        print(f"{peer:32} {took} {to_ours} {to_scan}  " + ("" if peer == "bare scan" else same), flush=True)


def write_data(case: Case, folder: Path) -> None:
    """The tables of a case: `labels.parquet`, and a Delta table for each view and for the behaviour log."""
    if (folder / "labels.parquet").exists():
        return
    rng = np.random.default_rng(7)
    for view in range(case.views):
        write_table(folder / f"view{view}", lambda rows: _features(case, rows, rng), case, rng)
    if case.sequence:
        write_table(folder / "log", lambda rows: {"item": rng.integers(0, 1 << 40, rows)}, case, rng)
    labels = {
        "label": np.arange(case.labels),
        "key": key_column(rng.integers(0, case.keys + case.keys // 10, case.labels)),
        "event_timestamp": time_column(START_US + rng.integers(0, SPAN_US, case.labels)),
    }
    pq.write_table(pa.table(labels), folder / "labels.parquet")


def write_table(path: Path, features: Callable[[int], dict[str, Any]], case: Case, rng: np.random.Generator) -> None:
    """Rows in order of time, in four commits, as jobs append them; the times of a key are distinct."""
    keys = rng.permutation(np.repeat(np.arange(case.keys), case.per_key))
    times = START_US + np.sort(rng.choice(SPAN_US, case.rows, replace=False, shuffle=False))
    for part in np.array_split(np.arange(case.rows), 4):
        when = time_column(times[part])
        rows = {"key": key_column(keys[part]), "event_timestamp": when, "created_at": when, **features(len(part))}
        write_deltalake(str(path), pa.table(rows), mode="append")


def _features(case: Case, rows: int, rng: np.random.Generator) -> dict[str, Any]:
    if not case.dimension:
        return {name: rng.random(rows) for name in VIEW_COLUMNS}
    flat = pa.array(rng.random(rows * case.dimension, dtype=np.float32))
    vectors = pa.FixedSizeListArray.from_arrays(flat, case.dimension).cast(pa.list_(pa.float32()))
    return {"score": rng.random(rows), "vector": vectors}


def key_column(numbers: np.ndarray) -> pa.Array:
    """Ids as text: "user-00000012"."""
    return pc.binary_join_element_wise("user", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 8, "0"), "-")


def time_column(microseconds: np.ndarray) -> pa.Array:
    """Timestamps in UTC."""
    return pa.array(microseconds).cast(MOMENT)


def digest(result: pa.Table | None, case: Case) -> tuple[str, int]:
    """Hashes "features sequence" of each label's values, in order of the labels, and the number of rows.

    The second is missing where there is no sequence.
    """
    if result is None:
        return "", 0
    found = result.sort_by("label")
    hashes = [_hash(found, [name for view in range(case.views) for name in feature_names(case, view)])]
    if "items" in found.column_names:
        hashes.append(_hash(found, ["items"]))
    return " ".join(hashes), len(found)


def _hash(table: pa.Table, columns: list[str]) -> str:
    total = blake2b(digest_size=8)
    for name in columns:
        column = pa.concat_arrays(table[name].chunks) if table[name].num_chunks else pa.array([], table[name].type)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            total.update(pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64()).to_numpy().tobytes())
            total.update(pc.list_flatten(column).to_numpy(zero_copy_only=False).tobytes())
        else:
            total.update(pc.fill_null(column, -1.0).to_numpy(zero_copy_only=False).tobytes())
    return total.hexdigest()


def feature_names(case: Case, view: int) -> list[str]:
    """The columns of a view in a result."""
    return ["score", "vector"] if case.dimension else [f"{name}_{view}" for name in VIEW_COLUMNS]


def columns_of(case: Case) -> list[str]:
    """The columns of a view in its table."""
    return ["score", "vector"] if case.dimension else list(VIEW_COLUMNS)


def files_of(path: Path) -> list[str]:
    """The Parquet files of a Delta table, in the order in which they were written."""
    return sorted(DeltaTable(str(path)).file_uris(), key=lambda file: Path(file).stat().st_mtime_ns)


def ours(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """moonlake through Feast, `.to_arrow()`."""
    from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource

    def source(view: int) -> DeltaSource:
        return DeltaSource(
            name=f"source{view}", path=str(folder / f"view{view}"), field_mapping=_field_mapping(case, view)
        )

    offline = {"type": "moonlake.feast_delta.offline_store.DeltaOfflineStore", "sequence_length": SEQUENCE_LENGTH}
    log = BehaviorSequenceSource(
        name="log_source", path=str(folder / "log"), packed=False, field_mapping={"item": "items"}
    )
    return _feast(case, folder, offline, source, log if case.sequence else None)


def feast_duckdb(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """Feast's stock DuckDB store over the same Parquet files, without the sequence, which it cannot give."""
    return _feast(case, folder, {"type": "duckdb"}, lambda view: _file_source(case, folder, view), None)


def feast_file(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """Feast's stock file store over the same Parquet files."""
    return _feast(case, folder, {"type": "dask"}, lambda view: _file_source(case, folder, view), None)


def _file_source(case: Case, folder: Path, view: int) -> Any:
    from feast import FileSource

    return FileSource(
        name=f"source{view}",
        path=str(folder / f"view{view}" / "*.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_at",
        field_mapping=_field_mapping(case, view),
    )


def _field_mapping(case: Case, view: int) -> dict[str, str]:
    named = zip(columns_of(case), feature_names(case, view), strict=True)
    return {column: name for column, name in named if column != name}


def _feast(
    case: Case, folder: Path, offline: dict[str, Any], source: Callable[[int], Any], log: Any
) -> Callable[[], pa.Table]:
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
    from feast.types import Array, Float32, Float64, Int64, String

    state = TemporaryDirectory(prefix="moonlake-bench-feast-")
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=f"{state.name}/registry.db",
            online_store={"type": "sqlite", "path": f"{state.name}/online.db"},
            offline_store=offline,
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    user = Entity(name="user", join_keys=["key"], value_type=ValueType.STRING)
    key = Field(name="key", dtype=String)
    views, refs = [], []
    for view in range(case.views):
        fields = [
            Field(name=name, dtype=Array(Float32) if name == "vector" else Float64)
            for name in feature_names(case, view)
        ]
        views.append(
            FeatureView(
                name=f"view{view}", entities=[user], source=source(view), schema=[key, *fields], ttl=timedelta(0)
            )
        )
        refs += [f"view{view}:{field.name}" for field in fields]
    if log is not None:
        items = Field(name="items", dtype=Array(Int64))
        views.append(FeatureView(name="behavior", entities=[user], source=log, schema=[key, items]))
        refs.append("behavior:items")
    store.apply([user, *views])
    labels: Any = pq.read_table(folder / "labels.parquet")
    if "moonlake" not in offline["type"]:
        labels = labels.to_pandas()  # the stock stores take nothing else

    def call() -> pa.Table:
        found = store.get_historical_features(labels, refs).to_arrow()
        state.cleanup()
        return found

    return call


def bare_scan(case: Case, folder: Path) -> Callable[[], None]:
    """Every column that the join reads, once, and nothing made of it."""

    def call() -> None:
        tables = [folder / f"view{view}" for view in range(case.views)] + ([folder / "log"] if case.sequence else [])
        for table in tables:
            for _ in ds.dataset(files_of(table)).to_batches(batch_size=16_384, batch_readahead=4, fragment_readahead=2):
                pass

    return call


def duckdb_wide(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """DuckDB's ASOF join of whole rows."""
    connection = _duckdb()

    def call() -> pa.Table:
        columns, joins = [], []
        for view in range(case.views):
            named = zip(columns_of(case), feature_names(case, view), strict=True)
            columns += [f"v{view}.{column} AS {name}" for column, name in named]
            joins.append(
                f"ASOF LEFT JOIN read_parquet({files_of(folder / f'view{view}')}) v{view}"
                f" ON l.key = v{view}.key AND l.event_timestamp >= v{view}.event_timestamp"
            )
        table = f"read_parquet('{folder}/labels.parquet') l"
        query = f"SELECT l.*, {', '.join(columns)} FROM {table} {' '.join(joins)}"
        if case.sequence:
            query = _duckdb_with_sequence(folder, query)
        return connection.execute(query).to_arrow_table()

    return call


def duckdb_narrow(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """DuckDB's ASOF join of (key, time, row number), then the wide rows by number."""
    connection = _duckdb()

    def call() -> pa.Table:
        columns, joins, gathers = [], [], []
        for view in range(case.views):
            files = files_of(folder / f"view{view}")
            named = zip(columns_of(case), feature_names(case, view), strict=True)
            columns += [f"w{view}.{column} AS {name}" for column, name in named]
            joins.append(
                "ASOF LEFT JOIN (SELECT key, event_timestamp, file_index AS file, file_row_number AS row"
                f" FROM read_parquet({files})) v{view}"
                f" ON l.key = v{view}.key AND l.event_timestamp >= v{view}.event_timestamp"
            )
            wide = ", ".join(columns_of(case))
            gathers.append(
                f"LEFT JOIN (SELECT file_index AS file, file_row_number AS row, {wide} FROM read_parquet({files}))"
                f" w{view} ON p.file{view} = w{view}.file AND p.row{view} = w{view}.row"
            )
        pointers = ", ".join(f"v{view}.file AS file{view}, v{view}.row AS row{view}" for view in range(case.views))
        table = f"read_parquet('{folder}/labels.parquet') l"
        narrow = f"SELECT l.*, {pointers} FROM {table} {' '.join(joins)}"
        query = f"SELECT p.label, p.key, p.event_timestamp, {', '.join(columns)} FROM ({narrow}) p {' '.join(gathers)}"
        if case.sequence:
            query = _duckdb_with_sequence(folder, query)
        return connection.execute(query).to_arrow_table()

    return call


def _duckdb() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
    return connection


def _duckdb_with_sequence(folder: Path, query: str) -> str:
    """The last actions strictly before the label: each key's log as one list, and a slice of it by count."""
    log = f"read_parquet({files_of(folder / 'log')})"
    return f"""
        WITH joined AS ({query}),
        logs AS (SELECT key, list(item ORDER BY event_timestamp) AS items FROM {log} GROUP BY key),
        counted AS (
            SELECT key, event_timestamp, row_number() OVER (PARTITION BY key ORDER BY event_timestamp) AS n FROM {log}
        ),
        stops AS (
            SELECT j.*, coalesce(c.n, 0) AS stop FROM joined j
            ASOF LEFT JOIN counted c ON j.key = c.key AND j.event_timestamp > c.event_timestamp
        )
        SELECT s.* EXCLUDE (stop), list_slice(g.items, greatest(s.stop - {SEQUENCE_LENGTH} + 1, 1), s.stop) AS items
        FROM stops s LEFT JOIN logs g ON s.key = g.key
    """


def polars_wide(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """Polars' join_asof of whole rows."""
    import polars as pl

    def call() -> pa.Table:
        found = pl.scan_parquet(folder / "labels.parquet").sort("event_timestamp")
        for view in range(case.views):
            rows = pl.scan_parquet(files_of(folder / f"view{view}")).drop("created_at").sort("event_timestamp")
            rows = rows.rename(dict(zip(columns_of(case), feature_names(case, view), strict=True)))
            found = found.join_asof(rows, on="event_timestamp", by="key")
        if case.sequence:
            found = _polars_with_sequence(folder, found)
        return found.collect().to_arrow()

    return call


def polars_narrow(case: Case, folder: Path) -> Callable[[], pa.Table]:
    """Polars' join_asof of (key, time, row number), then the wide rows by number."""
    import polars as pl

    def call() -> pa.Table:
        found = pl.scan_parquet(folder / "labels.parquet").sort("event_timestamp").collect()
        for view in range(case.views):
            files = files_of(folder / f"view{view}")
            rows = pl.scan_parquet(files).select("key", "event_timestamp").with_row_index("row").sort("event_timestamp")
            pointers = found.lazy().join_asof(rows, on="event_timestamp", by="key").collect()["row"]
            wide = pl.scan_parquet(files).select(columns_of(case)).collect()
            chosen = wide[pointers.fill_null(0)]
            for column, name in zip(columns_of(case), feature_names(case, view), strict=True):
                known = pl.when(pointers.is_not_null()).then(chosen[column]).alias(name)
                found = found.with_columns(known)
        lazy = _polars_with_sequence(folder, found.lazy()) if case.sequence else found.lazy()
        return lazy.collect().to_arrow()

    return call


def _polars_with_sequence(folder: Path, found: Any) -> Any:
    """The last actions strictly before the label: each key's log as one list, and a slice of it by count."""
    import polars as pl

    log = pl.scan_parquet(files_of(folder / "log")).select("key", "event_timestamp", "item").sort("event_timestamp")
    counted = log.select("key", "event_timestamp", pl.int_range(1, pl.len() + 1).over("key").alias("stop"))
    lists = log.group_by("key", maintain_order=True).agg(pl.col("item").alias("log"))
    stops = found.join_asof(counted, on="event_timestamp", by="key", allow_exact_matches=False)
    stops = stops.with_columns(pl.col("stop").fill_null(0)).join(lists, on="key", how="left")
    first = (pl.col("stop") - SEQUENCE_LENGTH).clip(lower_bound=0)
    return stops.with_columns(pl.col("log").list.slice(first, pl.col("stop") - first).alias("items")).drop(
        "log", "stop"
    )


PEERS: dict[str, Callable[[Case, Path], Callable[[], Any]]] = {
    "bare scan": bare_scan,
    "ours": ours,
    "DuckDB, narrow by hand": duckdb_narrow,
    "DuckDB, wide by hand": duckdb_wide,
    "Polars, narrow by hand": polars_narrow,
    "Polars, wide by hand": polars_wide,
    "feast duckdb": feast_duckdb,
    "feast file": feast_file,
}


if __name__ == "__main__":
    main()
