"""Random cases on both engines against the brute-force oracle of the kernel's tests, packed many to a job.

A case is a column of the key, so that one job works through all of them. `ORACLE_CASES` sets their number.
"""

from __future__ import annotations

import os
import random
import runpy
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from moonlake.feast_delta.joins.arrow_engine import EmbeddedEngine
from moonlake.feast_delta.joins.plan import Engine, Pull, ViewJoin
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource
from moonlake.lake.versions import open_path
from moonlake.settings import Settings

CASES = int(os.environ.get("ORACLE_CASES", "2000"))
LENGTH = 3
OPTIONS = [(0, 0), (3, 1), (1, 0)]
"""(ttl, lag) in microseconds of a view each."""

MOMENT = pa.timestamp("us", tz="UTC")
oracle = runpy.run_path(str(Path(__file__).parents[2] / "test_point_in_time.py"))
KEYS = [(a, b) for a in ("1", "12", "", None) for b in (1, 3, 23, None)]

Label = tuple[Any, int]
Feature = tuple[Any, int, int]


@pytest.fixture(params=["embedded", pytest.param("spark", marks=pytest.mark.spark)])
def engine(request: pytest.FixtureRequest, settings: Settings) -> Engine[Any]:
    if request.param == "embedded":
        return EmbeddedEngine()
    request.getfixturevalue("spark")
    from moonlake.feast_delta.joins.spark_engine import SparkEngine

    return SparkEngine(settings)


@pytest.fixture(scope="module")
def cases() -> list[tuple[list[Label], list[Feature]]]:
    """Few keys and few moments to a case, so that ties, duplicates and exact edges come up all the time."""
    rng = random.Random(2026)
    made = []
    for _ in range(CASES):
        keys = rng.sample(KEYS, rng.randint(1, 6))
        labels = [(rng.choice(keys), rng.randint(-3, 12)) for _ in range(rng.randint(0, 8))]
        features = [(rng.choice(keys), rng.randint(-3, 12), rng.randint(-3, 12)) for _ in range(rng.randint(0, 16))]
        made.append((labels, features))
    return made


@pytest.fixture(scope="module")
def tables(cases: Sequence[tuple[list[Label], list[Feature]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rows`, a Delta table written in three commits, and `packed`, the same as a log of lists."""
    folder = tmp_path_factory.mktemp("oracle")
    rows = [
        {"case": number, "a": a, "b": b, "event_timestamp": event, "created_at": created, "row": row}
        for number, (_, features) in enumerate(cases)
        for row, ((a, b), event, created) in enumerate(features)
    ]
    schema = pa.schema(
        [
            ("case", pa.int64()),
            ("a", pa.string()),
            ("b", pa.int64()),
            ("event_timestamp", MOMENT),
            ("created_at", MOMENT),
            ("row", pa.int64()),
        ]
    )
    for first, stop in ((0, 5), (5, 10), (10, 100)):
        commit = [row for row in rows if first <= row["row"] < stop]
        write_deltalake(str(folder / "rows"), pa.Table.from_pylist(commit, schema=schema), mode="append")
    logs: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for row in rows:
        logs.setdefault((row["case"], row["a"], row["b"]), []).append((row["event_timestamp"], row["row"]))
    packed = [
        {"case": case, "a": a, "b": b, "times_us": [t for t, _ in sorted(log)], "row": [r for _, r in sorted(log)]}
        for (case, a, b), log in logs.items()
    ]
    lists = [(name, pa.list_(pa.int64())) for name in ("times_us", "row")]
    types = pa.schema([*[schema.field(name) for name in ("case", "a", "b")], *lists])
    log_rows = pa.Table.from_pylist(packed, schema=types)
    event = pa.array([0] * len(log_rows), pa.int64()).cast(MOMENT)
    write_deltalake(str(folder / "packed"), log_rows.append_column("event_timestamp", event))
    return folder


def view(tables: Path, number: int, ttl: int, lag: int) -> ViewJoin:
    source = DeltaSource(name=f"view{number}", path=str(tables / "rows"), lag=timedelta(microseconds=lag))
    return join_of(source, f"view{number}", ttl_us=ttl)


def sequence(tables: Path, packed: bool) -> ViewJoin:
    name = "packed" if packed else "plain"
    path = str(tables / ("packed" if packed else "rows"))
    return join_of(BehaviorSequenceSource(name=name, path=path, packed=packed), name, length=LENGTH)


def join_of(source: DeltaSource, name: str, **options: int) -> ViewJoin:
    sequences = isinstance(source, BehaviorSequenceSource)
    return ViewJoin(
        view=name,
        source=source,
        snapshot=open_path(str(source.path)),
        keys=tuple((key, key) for key in ("case", "a", "b")),
        features=(("row", name),),
        event_column="event_timestamp",
        created_column=None if sequences else "created_at",
        **options,
    )


@pytest.mark.parametrize("known_by", ["event", "written"])
def test_random_cases_agree_with_the_oracle(
    engine: Engine[Any], cases: Sequence[tuple[list[Label], list[Feature]]], tables: Path, known_by: Any
) -> None:
    joins = [view(tables, number, ttl, lag) for number, (ttl, lag) in enumerate(OPTIONS)]
    if known_by == "event":
        joins += [sequence(tables, packed=False), sequence(tables, packed=True)]
    flat = [(number, *key, moment) for number, (labels, _) in enumerate(cases) for key, moment in labels]
    numbers, a, b, moments = zip(*flat, strict=True)
    labels = pa.table(
        {
            "case": pa.array(numbers, pa.int64()),
            "a": pa.array(a, pa.string()),
            "b": pa.array(b, pa.int64()),
            "event_timestamp": pa.array(moments, pa.int64()).cast(MOMENT),
        }
    )
    found = engine.historical(engine.labels(labels, {}), joins, Pull(known_by=known_by)).to_arrow()
    assert found.select(labels.column_names) == labels
    for number, (ttl, lag) in enumerate(OPTIONS):
        expected = [
            None if row == oracle["NO_ROW"] else row
            for case in cases
            for row in oracle["oracle_rows"](oracle["Case"](*case, ttl=ttl, lag=lag, known_by=known_by))
        ]
        assert found[f"view{number}"].to_pylist() == expected, f"ttl {ttl}, lag {lag}"
    if known_by == "event":
        expected_lists = [
            None if None in key else rows
            for case in cases
            for (key, _), rows in zip(case[0], oracle["oracle_slices"](oracle["Case"](*case), LENGTH), strict=True)
        ]
        assert found["plain"].to_pylist() == expected_lists
        assert found["packed"].to_pylist() == expected_lists
