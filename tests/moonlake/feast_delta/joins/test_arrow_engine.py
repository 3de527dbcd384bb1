"""The embedded engine within a memory budget: shards, spilled rows and blocks give what one pass in memory gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from moonlake.errors import InputError
from moonlake.feast_delta.joins.arrow_engine import EmbeddedEngine, feature_columns, possible_rows
from moonlake.feast_delta.joins.plan import Labels, Pull, ViewJoin
from moonlake.feast_delta.sources import BehaviorSequenceSource, Condition, DeltaSource
from moonlake.lake.parquet_rows import RowGroups
from moonlake.lake.sequence_logs import SequenceLog, pointer_names
from moonlake.lake.versions import open_path

MOMENT = pa.timestamp("us", tz="UTC")
KEYS, ROWS, LABELS = 12, 900, 400
PLENTY, NEXT_TO_NOTHING = 1 << 30, 2_000
"""Bytes: one shard in memory; dozens of shards, and every chosen row on disk."""


def rows_at_random(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    keys = [f"k{number}" if number < KEYS else None for number in rng.integers(0, KEYS + 1, ROWS)]
    times, written = rng.integers(0, 300, ROWS), rng.integers(0, 300, ROWS)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "event_timestamp": pa.array(times, MOMENT),
            "created_at": pa.array(written, MOMENT),
            "row": pa.array(range(ROWS), pa.int64()),
            "kind": pa.array(rng.choice(["click", "buy", "view"], ROWS)),
            "vector": pa.array([[float(row), 0.5] for row in range(ROWS)], pa.list_(pa.float32())),
        }
    )


Met = Callable[[dict[str, Any]], bool]


def labels_at_random(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    keys = [f"k{number}" if number <= KEYS else None for number in rng.integers(0, KEYS + 2, LABELS)]  # kN: no rows
    return pa.table({"key": pa.array(keys), "event_timestamp": pa.array(rng.integers(-5, 320, LABELS), MOMENT)})


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Random rows in three commits, so that positions run over files."""
    path, rows = str(tmp_path / "rows"), rows_at_random(1)
    for first in range(0, ROWS, 300):
        write_deltalake(path, rows.slice(first, 300), mode="append")
    return path


def view(path: str, **source: Any) -> ViewJoin:
    columns = ("row", "kind", "vector")
    return ViewJoin(
        view="rows",
        source=DeltaSource(name="rows", path=path, **source),
        snapshot=open_path(path),
        keys=(("key", "key"),),
        features=tuple((column, column) for column in columns),
        event_column="event_timestamp",
        created_column="created_at",
    )


def sequence(path: str, length: int, **source: Any) -> ViewJoin:
    return ViewJoin(
        view="acts",
        source=BehaviorSequenceSource(name="acts", path=path, packed=False, **source),
        snapshot=open_path(path),
        keys=(("key", "key"),),
        features=(("row", "rows"), ("vector", "vectors")),
        event_column="event_timestamp",
        created_column="created_at",
        length=length,
    )


def micros(labels: pa.Table) -> np.ndarray:
    return labels["event_timestamp"].cast(pa.int64()).to_numpy()


def pulled(join: ViewJoin, labels: pa.Table, share: int, tmp_path: Path, pull: Pull = Pull()) -> pa.Table:
    columns = feature_columns(labels, micros(labels), join, pull, share, tmp_path / f"scratch-{share}")
    return pa.table(columns.block(0, len(labels)))


def as_of(labels: pa.Table, rows: pa.Table, met: Met) -> list[int | None]:
    """For each label row, by looking at every row: the one with the greatest (event time, created, position)."""
    chosen: list[int | None] = []
    listed = [row for row in rows.to_pylist() if row["key"] is not None and met(row)]
    for label in labels.to_pylist():
        known = [r for r in listed if r["key"] == label["key"] and r["event_timestamp"] <= label["event_timestamp"]]
        best = max(known, key=lambda r: (r["event_timestamp"], r["created_at"], r["row"]), default=None)
        chosen.append(best and best["row"])
    return chosen


@pytest.mark.parametrize("share", [PLENTY, NEXT_TO_NOTHING])
def test_rows_are_those_of_a_search_through_all_whatever_the_budget(table: str, share: int, tmp_path: Path) -> None:
    labels = labels_at_random(2)
    found = pulled(view(table), labels, share, tmp_path)
    expected = as_of(labels, rows_at_random(1), lambda _: True)
    assert found["row"].to_pylist() == expected
    assert found["vector"].to_pylist() == [None if row is None else [float(row), 0.5] for row in expected]
    assert (tmp_path / f"scratch-{share}").exists() == (share == NEXT_TO_NOTHING)


WHERE: list[tuple[list[Condition], Met]] = [
    ([("kind", "==", "buy")], lambda row: row["kind"] == "buy"),
    ([("kind", "in", ["buy", "view"]), ("row", ">=", 250)], lambda row: row["kind"] != "click" and row["row"] >= 250),
    ([("kind", "not in", ["buy"])], lambda row: row["kind"] != "buy"),
    (
        [("created_at", "<", "1970-01-01T00:00:00.000100+00:00")],
        lambda row: row["created_at"].microsecond < 100,
    ),
]


@pytest.mark.parametrize(("where", "met"), WHERE)
def test_only_rows_that_meet_where_count(table: str, where: list[Condition], met: Met, tmp_path: Path) -> None:
    labels = labels_at_random(3)
    found = pulled(view(table, where=where), labels, PLENTY, tmp_path)
    assert found["row"].to_pylist() == as_of(labels, rows_at_random(1), met)


def test_where_that_compares_unlike_types_is_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source rows: `where` compares row \(int64\) with 'x'"):
        pulled(view(table, where=[("row", ">", "x")]), labels_at_random(3), PLENTY, tmp_path)


def test_rows_that_statistics_rule_out_are_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "days")
    for day in range(4):
        times = pa.array([day * 100 + second for second in range(10)], MOMENT)
        write_deltalake(path, pa.table({"key": ["k"] * 10, "event_timestamp": times}), mode="append")
    join = ViewJoin(
        "v", DeltaSource(name="s", path=path), open_path(path), (("key", "key"),), (), "event_timestamp", None
    )

    label = pa.table({"key": ["k"], "event_timestamp": pa.array([150], MOMENT)})
    assert len(RowGroups(join.snapshot.dataset, possible_rows(label, micros(label), join))) == 20


def last_actions(
    labels: pa.Table, rows: pa.Table, length: int, *, kinds: tuple[str, ...] = (), written: bool = False
) -> list[list[int] | None]:
    """The last actions strictly before each label, by looking at every action."""
    sequences: list[list[int] | None] = []
    listed = [row for row in rows.to_pylist() if not kinds or row["kind"] in kinds]
    for label in labels.to_pylist():
        now = label["event_timestamp"]
        acted = [r for r in listed if r["key"] == label["key"] and r["event_timestamp"] < now]
        acted = [r for r in acted if not written or r["created_at"] <= now]
        acted.sort(key=lambda r: (r["event_timestamp"], r["row"]))
        sequences.append(None if label["key"] is None else [r["row"] for r in acted][-length:])
    return sequences


@pytest.mark.parametrize("share", [PLENTY, NEXT_TO_NOTHING])
@pytest.mark.parametrize("length", [1, 7, 1000])
def test_sequences_are_those_of_a_search_through_all(table: str, share: int, length: int, tmp_path: Path) -> None:
    labels = labels_at_random(4)
    found = pulled(sequence(table, length), labels, share, tmp_path)
    expected = last_actions(labels, rows_at_random(1), length)
    assert found["rows"].to_pylist() == expected
    vectors = [each if each is None else [[float(row), 0.5] for row in each] for each in expected]
    assert found["vectors"].to_pylist() == vectors


@pytest.mark.parametrize("share", [PLENTY, NEXT_TO_NOTHING])
def test_sequences_take_event_types_before_the_length_is_counted(table: str, share: int, tmp_path: Path) -> None:
    labels, kinds = labels_at_random(5), ("buy", "view")
    join = sequence(table, 6, event_types=kinds, event_type_column="kind")
    expected = last_actions(labels, rows_at_random(1), 6, kinds=kinds)
    assert pulled(join, labels, share, tmp_path)["rows"].to_pylist() == expected


@pytest.mark.parametrize("share", [PLENTY, NEXT_TO_NOTHING])
@pytest.mark.parametrize("length", [2, 30])
def test_sequences_of_what_had_been_written_by_then(table: str, share: int, length: int, tmp_path: Path) -> None:
    labels = labels_at_random(6)
    found = pulled(sequence(table, length), labels, share, tmp_path, Pull(known_by="written"))
    assert found["rows"].to_pylist() == last_actions(labels, rows_at_random(1), length, written=True)


def test_columns_put_actions_of_one_time_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    rows = {"key": ["k"] * 4, "event_timestamp": pa.array([5, 5, 5, 1], MOMENT), "row": [2, 1, 3, 9]}
    write_deltalake(path, pa.table({**rows, "vector": pa.array([[0.0]] * 4), "created_at": rows["event_timestamp"]}))
    label = pa.table({"key": ["k"], "event_timestamp": pa.array([6], MOMENT)})
    assert pulled(sequence(path, 3), label, PLENTY, tmp_path)["rows"].to_pylist() == [[2, 1, 3]]
    assert pulled(sequence(path, 3, order=["row"]), label, PLENTY, tmp_path)["rows"].to_pylist() == [[1, 2, 3]]


def test_of_a_restated_action_the_row_written_last_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    times = {"event_timestamp": pa.array([1, 2, 2], MOMENT), "created_at": pa.array([1, 2, 9], MOMENT)}
    rows = {"key": ["k"] * 3, "row": [1, 2, 3], "action_id": ["a", "b", "b"], "vector": pa.array([[0.0]] * 3)}
    write_deltalake(path, pa.table({**rows, **times}))
    label = pa.table({"key": ["k"], "event_timestamp": pa.array([6], MOMENT)})
    join = sequence(path, 5, identity="action_id")
    assert pulled(join, label, PLENTY, tmp_path)["rows"].to_pylist() == [[1, 3]]
    written = Pull(known_by="written")
    assert pulled(join, label, PLENTY, tmp_path, written)["rows"].to_pylist() == [[1, 2]]


def test_an_action_that_was_restated_to_a_later_time_is_gone_from_its_first(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    for time, written in ((1, 1), (8, 9)):  # in files of their own, so that statistics could rule the second out
        times = {"event_timestamp": pa.array([time], MOMENT), "created_at": pa.array([written], MOMENT)}
        rows = {"key": ["k"], "row": [written], "action_id": ["a"], "vector": pa.array([[0.0]])}
        write_deltalake(path, pa.table({**rows, **times}), mode="append")
    label = pa.table({"key": ["k"], "event_timestamp": pa.array([6], MOMENT)})
    assert pulled(sequence(path, 5, identity="action_id"), label, PLENTY, tmp_path)["rows"].to_pylist() == [[]]


@pytest.mark.parametrize("share", [PLENTY, NEXT_TO_NOTHING])
def test_packed_rows_and_a_plain_log_give_the_same_sequences(table: str, share: int, tmp_path: Path) -> None:
    rows = rows_at_random(1).drop_columns("kind").filter(pa.compute.field("key").is_valid())
    rows = rows.sort_by([("key", "ascending"), ("event_timestamp", "ascending"), ("row", "ascending")])
    packed = []
    for key in range(KEYS):  # two packed rows each, the later one first
        own = rows.filter(pa.compute.field("key") == f"k{key}")
        for part in (own.slice(len(own) // 2), own.slice(0, len(own) // 2)):
            times, written = (part[name].cast(pa.int64()).to_pylist() for name in ("event_timestamp", "created_at"))
            packed.append({"key": f"k{key}", "at": times, "written": written, "row": part["row"].to_pylist()})
    path = str(tmp_path / "packed")
    now = pa.array([0] * len(packed), MOMENT)
    write_deltalake(path, pa.Table.from_pylist(packed).append_column("event_timestamp", now))
    join = ViewJoin(
        view="acts",
        source=BehaviorSequenceSource(name="acts", path=path, time_column="at", written_column="written"),
        snapshot=open_path(path),
        keys=(("key", "key"),),
        features=(("row", "rows"),),
        event_column="event_timestamp",
        created_column=None,
        length=9,
    )
    labels = labels_at_random(7)
    # An action at the time of the cut may lie in either part: times are unique enough for the rest.
    for pull in (Pull(), Pull(known_by="written")):
        found = pulled(join, labels, share, tmp_path, pull)["rows"].to_pylist()
        plain = pulled(sequence(table, 9), labels, share, tmp_path, pull)["rows"].to_pylist()
        assert [each and sorted(each) for each in found] == [each and sorted(each) for each in plain]


def test_pointers_expand_to_the_sequences_that_come_inline(table: str, tmp_path: Path) -> None:
    labels, logs = labels_at_random(8), tmp_path / "logs"
    all_labels = Labels(labels, tuple(labels.column_names), "event_timestamp", None, None)
    pull = Pull(sequences="pointers", logs=str(logs))
    found = EmbeddedEngine().historical(all_labels, [sequence(table, 20)], pull).to_arrow()
    start, stop = (found[name].to_numpy() for name in pointer_names("acts"))
    log = SequenceLog.open(logs / "acts.arrow")
    inline = pulled(sequence(table, 20), labels, PLENTY, tmp_path)
    assert log.expand(start, stop)["rows"].to_pylist() == inline["rows"].to_pylist()
    assert log.expand(start, stop)["vectors"].to_pylist() == inline["vectors"].to_pylist()
    shorter = pulled(sequence(table, 5), labels, PLENTY, tmp_path)["rows"].to_pylist()
    assert log.expand(start, stop, length=5)["rows"].to_pylist() == shorter


def test_a_log_of_pointers_has_the_same_bytes_whatever_the_budget(table: str, tmp_path: Path) -> None:
    labels = labels_at_random(9)
    all_labels = Labels(labels, tuple(labels.column_names), "event_timestamp", None, None)
    files = []
    for budget in (1 << 30, 4 * NEXT_TO_NOTHING):
        pull = Pull(sequences="pointers", logs=str(tmp_path / str(budget)))
        EmbeddedEngine(budget).historical(all_labels, [sequence(table, 20)], pull).to_arrow()
        files.append((tmp_path / str(budget) / "acts.arrow").read_bytes())
    assert files[0] == files[1]


def test_blocks_put_together_are_the_whole_result(table: str) -> None:
    labels = pa.concat_tables([labels_at_random(seed) for seed in range(60)])
    all_labels = Labels(labels, tuple(labels.column_names), "event_timestamp", None, None)
    joins = [view(table), sequence(table, 10)]
    blocks = list(EmbeddedEngine(1_000_000).historical(all_labels, joins, Pull()).to_batches())
    assert len(blocks) == 3  # blocks hold at least 10,000 label rows
    assert pa.concat_tables(blocks) == EmbeddedEngine().historical(all_labels, joins, Pull()).to_arrow()
