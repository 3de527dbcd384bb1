"""Impressions become a training set: which rows, in which order, the same bytes again, nothing of the future."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureService

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.joins.plan import delta_source
from moonlake.feast_delta.store import apply, feature_store
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.training_sets import build
from moonlake.training_sets.build import replay, run
from moonlake.training_sets.diff import diff
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.labels import LABEL_COLUMNS
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet
from moonlake.training_sets.verify import verify
from spark_jobs import build_training_set

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]

START = datetime(2026, 1, 1, tzinfo=UTC)
WRITTEN = datetime(2026, 3, 1, tzinfo=UTC)
JANUARY = TrainingSetSpec("january", start=START, end=START + timedelta(days=31))


def impression(number: int, day: float, **stated: Any) -> dict[str, Any]:
    shown = START + timedelta(days=day)
    return {
        "impression_id": f"i{number}",
        "request_id": f"r{number // 2}",
        "user_id": f"u{number % 3}",
        "product_id": f"p{number % 2}",
        "position": 1 + number % 2,
        "clicked": number % 4 == 0,
        "event_timestamp": shown,
        "label_time": shown + timedelta(days=1),
        **stated,
    }


@pytest.fixture
def home(settings: Settings, write_rows: Write) -> Settings:
    """30 impressions in January, not in order, the last of which is settled in February; prices and actions."""
    numbers = [*range(10, 30), *range(10)]
    write_rows(settings, "impressions", [impression(number, day=1 + number) for number in numbers])
    prices = [(0, 0, 100), (0, 15, 150), (1, 5, 200)]
    facts = [
        {"product_id": f"p{product}", "price_cents": price, "event_timestamp": START + timedelta(days=day)}
        for product, day, price in prices
    ]
    write_rows(settings, "products", facts)
    days = range(1, 31)
    sequence = {
        "user_id": "u0",
        "month": "2026-01",
        "times_us": [int((START + timedelta(days=day)).timestamp()) * 1_000_000 for day in days],
        "actions": ["click"] * 30,
        **{name: [f"{name[0]}{day}" for day in days] for name in ("product_ids", "content_ids", "query_content_ids")},
        "event_timestamp": START + timedelta(days=30),
    }
    write_rows(settings, "behavior_sequences", [sequence])
    store = apply(settings)
    profile = [store.get_feature_view(name) for name in ("product_profile_v1", "user_profile_v1")]
    store.apply(FeatureService(name="profile_v1", features=[*profile]))
    return settings


def built(settings: Settings, spec: TrainingSetSpec = JANUARY) -> TrainingSet:
    return run(settings, spec, written_at=WRITTEN).training_set


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_the_settled_impressions_of_the_window_by_time_then_id(home: Settings, write_rows: Write) -> None:
    write_rows(home, "impressions", [impression(31, day=1), impression(30, day=1), impression(99, day=31)])
    ids = built(home).read(["impression_id"])["impression_id"].to_pylist()
    assert ids == ["i0", "i30", "i31", *(f"i{number}" for number in range(1, 30))]
    early = built(home, replace(JANUARY, settled_by=START + timedelta(days=4)))
    assert early.read(["impression_id"])["impression_id"].to_pylist() == ["i0", "i30", "i31", "i1", "i2"]


def test_a_click_that_is_still_to_come_is_not_taken_for_none(home: Settings, write_rows: Write) -> None:
    late = JANUARY.end - timedelta(hours=1)  # its attribution window reaches into February
    write_rows(home, "impressions", [impression(50, day=0, event_timestamp=late, label_time=late + timedelta(days=1))])
    assert "i50" not in built(home).read(["impression_id"])["impression_id"].to_pylist()


def test_columns_are_labels_then_features_and_position_is_not_among_them(home: Settings) -> None:
    columns = built(home).schema.names
    assert columns[: len(LABEL_COLUMNS)] == list(LABEL_COLUMNS)
    assert not {"position", "propensity", "label_time", "created_at"} & set(columns)
    assert {"price_cents", "product_ctr_7d", "user_clicks_7d", "segment", "behavior_times_us"} <= set(columns)


def test_features_are_those_of_the_moment_of_the_impression(home: Settings) -> None:
    for row in built(home).read().to_pylist():
        day = (row["event_timestamp"] - START).days
        first, then, changed = (100, 150, 15) if row["product_id"] == "p0" else (None, 200, 5)
        assert row["price_cents"] == (then if day >= changed else first)
        acted = list(range(1, day)) if row["user_id"] == "u0" else []
        assert row["behavior_product_ids"] == [f"p{earlier}" for earlier in acted]


def test_the_length_of_sequences_is_chosen_when_the_set_is_built(home: Settings) -> None:
    short = built(home, replace(JANUARY, name="short", sequence_length=3)).read(["user_id", "behavior_content_ids"])
    lists = [row["behavior_content_ids"] for row in short.to_pylist() if row["user_id"] == "u0"]
    assert lists[-1] == ["c25", "c26", "c27"]
    assert max(len(found) for found in lists) == 3


def test_a_second_build_does_no_work_and_keeps_every_byte(home: Settings) -> None:
    first = run(home, JANUARY, written_at=WRITTEN)
    written = {path: path.stat().st_mtime_ns for path in first.training_set.folder.rglob("*")}
    second = run(home, JANUARY, written_at=WRITTEN + timedelta(days=1))
    assert (first.built, second.built) == (True, False)
    assert {path: path.stat().st_mtime_ns for path in first.training_set.folder.rglob("*")} == written
    assert len(Lake(home).read("training_sets")) == 1


def test_the_same_tables_give_the_same_bytes_in_any_folder_and_by_any_blocks(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(home).folder
    first = file_bytes(folder)
    folder.rename(folder.with_name("kept"))
    assert file_bytes(built(home).folder) == first
    folder.rename(folder.with_name("kept as well"))

    def in_small_blocks(*inputs: Any, **stated: Any) -> TrainingSet:
        folder, manifest, labels, batches = inputs
        blocks = [block.slice(first, 7) for block in batches for first in range(0, len(block), 7)]
        return write_training_set(folder, manifest, labels, blocks, **stated)

    monkeypatch.setattr(build, "write_training_set", in_small_blocks)
    assert file_bytes(built(home).folder) == first


def test_a_change_of_a_table_builds_anew_and_registers_a_second_set(home: Settings, write_rows: Write) -> None:
    before = built(home).manifest
    write_rows(home, "users", [{"user_id": "u0", "segment": "loyal", "event_timestamp": START}])
    report = run(home, JANUARY, written_at=WRITTEN)
    after = report.training_set.manifest
    assert report.built
    assert (before.table_versions["users"], after.table_versions["users"]) == (-1, 0)
    assert before.label_hash == after.label_hash
    registered = Lake(home).read("training_sets").to_pylist()
    assert {row["training_set_id"] for row in registered} == {before.training_set_id, after.training_set_id}
    assert {row["rows"] for row in registered} == {30}


def test_the_manifest_says_what_was_read(home: Settings) -> None:
    manifest = built(home).manifest
    tables = {"impressions", "products", "product_stats", "users", "user_stats", "behavior_sequences"}
    assert set(manifest.table_versions) == tables
    assert manifest.definitions[0]["view"] == "product_profile_v1"
    assert manifest.spec == replace(JANUARY, settled_by=JANUARY.end)


def test_of_a_restated_label_the_row_written_last_counts(home: Settings, write_rows: Write) -> None:
    told = [(1, True), (3, False), (2, True)]
    for day, clicked in told:
        row = impression(0, day=1, clicked=clicked, created_at=START + timedelta(days=day))
        write_rows(home, "impressions", [row])
    rows = built(home).read(["impression_id", "clicked"]).to_pylist()
    assert [row["clicked"] for row in rows if row["impression_id"] == "i0"] == [False]
    assert len(rows) == 30


def test_a_window_without_settled_impressions_and_an_unknown_service_are_named(home: Settings) -> None:
    february = replace(JANUARY, start=JANUARY.end, end=JANUARY.end + timedelta(days=1), name="february")
    with pytest.raises(InputError, match="table impressions holds no label row in"):
        built(home, february)
    with pytest.raises(NotFound, match="no feature service ctr_v9"):
        built(home, replace(JANUARY, feature_service="ctr_v9"))
    assert not (home.training_sets / "february").exists()


def test_pointers_of_a_service_without_sequences_are_the_rows_alone(home: Settings) -> None:
    inline, pointers = (
        built(home, replace(JANUARY, name=kind, feature_service="profile_v1", sequences=kind))
        for kind in ("inline", "pointers")
    )
    assert pointers.read() == inline.read()
    assert verify(home, pointers.folder).problems == ()


def test_the_command_builds_and_then_finds_it_built(
    home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(home.home))
    window = ["--start", "2026-01-01T00:00:00Z", "--end", "2026-02-01T00:00:00Z"]
    for _ in range(2):
        build_training_set.main(["--name", "january", *window])
    folder = home.training_sets / "january"
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["job"], first["folder"], first["rows"], first["built"]) == (
        "build_training_set", str(folder), 30, True
    )  # fmt: skip
    assert (second["built"], second["run"] == first["run"]) == (False, False)


def behavior(number: int, day: float, **stated: Any) -> dict[str, Any]:
    return {
        "behavior_id": f"b{number}",
        "user_id": f"u{number % 3}",
        "product_id": f"p{number % 2}",
        "action": "cart",
        "event_timestamp": START + timedelta(days=day),
        **stated,
    }


def test_any_lake_table_with_an_event_time_gives_labels(home: Settings, write_rows: Write) -> None:
    write_rows(home, "behaviors", [behavior(number, day=20 - number) for number in range(4)] + [behavior(9, day=40)])
    found = built(home, replace(JANUARY, label_table="behaviors"))
    assert found.read(["behavior_id"])["behavior_id"].to_pylist() == ["b3", "b2", "b1", "b0"]
    assert found.schema.names[:5] == ["behavior_id", "user_id", "action", "product_id", "query_id"]
    assert not {"source", "created_at"} & set(found.schema.names)
    assert found.manifest.label_key == ("behavior_id",)
    assert found.read(["price_cents"])["price_cents"].to_pylist() == [200, 150, 200, 150]
    some = built(home, replace(JANUARY, name="some", label_table="behaviors", label_columns=("user_id", "product_id")))
    assert some.schema.names[:4] == ["behavior_id", "user_id", "product_id", "event_timestamp"]
    with pytest.raises(InputError, match="table product_images has no event time"):
        built(home, replace(JANUARY, label_table="product_images"))


def test_a_delta_table_at_a_path_gives_labels_when_its_columns_are_stated(home: Settings, tmp_path: Path) -> None:
    path = str(tmp_path / "bought")
    days = [10, 3, 40, 3]
    rows = {
        "basket": ["b", "a", "c", "a"],
        "line": pa.array([1, 1, 1, 2], pa.int64()),
        "user_id": ["u0"] * 4,
        "product_id": ["p0"] * 4,
        "paid": [True, False, True, True],
        "refunded": [True] * 4,
        "at": pa.array([START + timedelta(days=day) for day in days], pa.timestamp("us", tz="UTC")),
    }
    write_deltalake(path, pa.table(rows))
    write_deltalake(path, pa.table(rows).slice(1, 1).set_column(4, "paid", pa.array([True])), mode="append")
    stated: dict[str, Any] = {"label_key": ("basket", "line"), "label_event_time": "at"}
    wanted = replace(JANUARY, label_table=path, label_columns=("paid", "user_id", "product_id"), **stated)
    found = built(home, wanted)
    assert found.schema.names[:6] == ["basket", "line", "event_timestamp", "paid", "user_id", "product_id"]
    assert "refunded" not in found.schema.names
    read = found.read(["basket", "line", "paid", "price_cents"])
    assert [tuple(row.values()) for row in read.to_pylist()] == [
        ("a", 1, True, 100),  # the commit that came last counts
        ("a", 2, True, 100),
        ("b", 1, True, 100),
    ]
    assert found.manifest.table_versions[path] == 1
    earlier = built(home, replace(wanted, name="earlier", versions={path: 0}))
    assert earlier.read(["paid"])["paid"].to_pylist() == [False, True, True]
    for change, message in [
        ({"label_event_time": None}, "for a label table at a path state label_event_time"),
        ({"label_columns": ("paid", "position")}, r"label columns \['position'\] never enter"),
    ]:
        with pytest.raises(InputError, match=message):
            built(home, replace(wanted, **change))  # type: ignore[arg-type]
    with pytest.raises(NotFound, match=r"has no columns \['price'\]; it has basket"):
        built(home, replace(wanted, label_columns=("price",)))
    with pytest.raises(InputError, match="no label row in"):
        built(home, replace(wanted, start=JANUARY.end + timedelta(days=30), end=JANUARY.end + timedelta(days=31)))


def test_key_columns_with_nulls_are_refused_and_not_dropped(home: Settings, tmp_path: Path) -> None:
    path = str(tmp_path / "bought")
    at = pa.array([START + timedelta(days=1)] * 2, pa.timestamp("us", tz="UTC"))
    write_deltalake(path, pa.table({"basket": pa.array(["a", None]), "user_id": ["u0"] * 2, "at": at}))
    wanted = replace(
        JANUARY, label_table=path, label_key=("basket",), label_event_time="at", label_columns=("user_id",)
    )
    with pytest.raises(InputError, match=r"key columns with nulls in the window: \{'basket': 1\}"):
        built(home, wanted)


def test_tables_are_read_at_the_versions_that_are_stated(home: Settings, write_rows: Write) -> None:
    write_rows(home, "products", [{"product_id": "p0", "price_cents": 999, "event_timestamp": START}])
    write_rows(home, "impressions", [impression(77, day=2)])
    latest = built(home, replace(JANUARY, name="latest"))
    pinned = built(home, replace(JANUARY, versions={"products": 0, "impressions": 0}))
    assert (pinned.manifest.table_versions["products"], latest.manifest.table_versions["products"]) == (0, 1)
    assert len(latest) == len(pinned) + 1
    assert 999 not in pinned.read(["price_cents"])["price_cents"].to_pylist()
    with pytest.raises(NotFound, match=r"january reads no tables \['merchants'\]; it reads products"):
        built(home, replace(JANUARY, versions={"merchants": 0}))
    with pytest.raises(NotFound, match="has no version 9"):
        built(home, replace(JANUARY, versions={"products": 9}))


def test_a_version_that_a_source_pins_itself_is_not_overruled_in_silence(home: Settings, write_rows: Write) -> None:
    write_rows(home, "products", [{"product_id": "p0", "price_cents": 999, "event_timestamp": START}])
    store = feature_store(home)
    view = store.get_feature_view("product_profile_v1")
    source = delta_source(view)
    source.version = 1
    store.apply([source, view])
    assert built(home).manifest.table_versions["products"] == 1
    with pytest.raises(InputError, match="january: its sources pin other versions: products 1, not 0"):
        built(home, replace(JANUARY, versions={"products": 0}))


def test_lengths_are_stated_by_view(home: Settings) -> None:
    view = "user_behavior_sequence_v1"
    found = built(home, replace(JANUARY, sequence_lengths={view: 2})).read(["user_id", "behavior_actions"])
    assert max(len(row["behavior_actions"]) for row in found.to_pylist()) == 2
    with pytest.raises(NotFound, match=rf"no sequence views \['users'\]; it has {view}"):
        built(home, replace(JANUARY, sequence_lengths={"users": 2}))


def test_known_by_written_leaves_out_what_had_not_been_written_by_then(home: Settings, write_rows: Write) -> None:
    late = {"product_id": "p1", "price_cents": 999, "event_timestamp": START + timedelta(days=2)}
    write_rows(home, "products", [late | {"created_at": START + timedelta(days=20)}])
    days: dict[str, list[int]] = {}
    for known_by in ("event", "written"):
        stated: dict[str, Any] = {"name": known_by, "known_by": known_by, "feature_service": "profile_v1"}
        rows = built(home, replace(JANUARY, **stated)).read()
        days[known_by] = [
            (row["event_timestamp"] - START).days for row in rows.to_pylist() if row["price_cents"] == 999
        ]
    assert days == {"event": [2, 4], "written": []}  # from day 5 on another price is true


def move_on(settings: Settings, write_rows: Write) -> None:
    """Changes of tables after a training set was built: late rows, restated labels, deletes, compaction."""
    write_rows(settings, "products", [{"product_id": "p0", "price_cents": 7, "event_timestamp": START}])
    write_rows(settings, "users", [{"user_id": "u0", "segment": "loyal", "event_timestamp": START}])
    restated = impression(3, day=4, clicked=True, created_at=WRITTEN)
    write_rows(settings, "impressions", [impression(70, day=5), restated])
    DeltaTable(f"{settings.lake}/impressions").optimize.compact()
    DeltaTable(f"{settings.lake}/products").delete("product_id = 'p1'")
    DeltaTable(f"{settings.lake}/behavior_sequences").delete()


@pytest.mark.parametrize(
    "changed",
    [
        {"sequence_length": 7},
        {"sequences": "pointers", "sequence_length": 7},
        {"format": "delta", "known_by": "written", "feature_service": "profile_v1"},
    ],
)
def test_a_manifest_gives_the_same_bytes_after_the_tables_have_moved_on(
    home: Settings, write_rows: Write, tmp_path: Path, changed: dict[str, Any]
) -> None:
    first = built(home, replace(JANUARY, **changed))
    before = file_bytes(first.folder)
    move_on(home, write_rows)
    report = replay(home, first.manifest, tmp_path / "again", written_at=WRITTEN)
    assert file_bytes(tmp_path / "again") == before
    assert report.warnings == ()
    assert built(home, first.manifest.spec).manifest.label_hash != first.manifest.label_hash
    registered = Lake(home).read("training_sets")["training_set_id"].to_pylist()
    assert registered.count(first.manifest.training_set_id) == 1
    if first.manifest.spec.format == "delta":
        folder = str(tmp_path / "again" / "rows")
        assert DeltaTable(folder).to_pyarrow_dataset().to_table() == report.training_set.read()


def test_a_build_that_cannot_be_repeated_says_what_differs(home: Settings, write_rows: Write, tmp_path: Path) -> None:
    manifest = built(home).manifest
    again = tmp_path / "again"
    other = replace(manifest, code_version="0", libraries={"pyarrow": "1"})
    assert len(replay(home, other, again, written_at=None).warnings) == 2
    definition = {**manifest.definitions[0], "ttl_seconds": 5}
    with pytest.raises(InputError, match="definitions changed: view product_profile_v1: ttl_seconds 5 -> 0"):
        replay(home, replace(manifest, definitions=[definition, *manifest.definitions[1:]]), again, written_at=None)
    with pytest.raises(InputError, match="the label rows are others than those of the manifest"):
        replay(home, replace(manifest, label_hash="0"), again, written_at=None)
    with pytest.raises(InputError, match=r"files differ from those of the manifest: \['part-00000.parquet'\]"):
        replay(home, replace(manifest, files={"part-00000.parquet": "0"}), again, written_at=None)
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == ["again"]
    move_on(home, write_rows)
    products = DeltaTable(f"{home.lake}/products")
    products.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(NotFound, match=r"cannot be built again: table products version 0: 1 of 1 files were vacuumed"):
        replay(home, manifest, again, written_at=None)


def test_a_service_that_is_keyed_by_space_has_the_features_of_the_stated_one(home: Settings, write_rows: Write) -> None:
    content, spaces = "c" * 32, ("5" * 32, "6" * 32)
    vectors = [{"content_id": content, "space_id": space, "vector": [float(space[0]), 1.0]} for space in spaces]
    write_rows(home, "embeddings", vectors)
    write_rows(home, "impressions", [impression(90, day=1.5, content_id=content)])
    similar = replace(JANUARY, feature_service="similar_products_v1", end=START + timedelta(days=4))
    rows = built(home, replace(similar, space_id=spaces[1])).read(["space_id", "vector"]).to_pylist()
    assert [row["vector"] for row in rows] == [None, [6.0, 1.0], None, None]
    assert {row["space_id"] for row in rows} == {spaces[1]}
    with pytest.raises(InputError, match=r"views \['content_embedding_v1'\] are keyed by space_id; state a space"):
        built(home, replace(similar, name="open"))


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_sequences_as_pointers_are_read_as_lists_are(home: Settings, form: Any) -> None:
    inline = built(home, replace(JANUARY, name="inline", sequence_length=5, format=form))
    pointers = built(home, replace(JANUARY, name="pointers", sequence_length=5, format=form, sequences="pointers"))
    assert pointers.schema == inline.schema
    assert pointers.read() == inline.read()
    middle = START + timedelta(days=15)
    columns = ["behavior_actions", "impression_id", "behavior_times_us"]
    assert pointers.read(columns, start=middle) == inline.read(columns, start=middle)
    assert pointers.read(["clicked"]) == inline.read(["clicked"])
    assert diff(inline, pointers).same_rows
    view = "user_behavior_sequence_v1"
    stored = pointers.dataset().to_table()
    assert {f"{view}__start", f"{view}__stop"} <= set(stored.column_names)
    assert not set(columns) & {"behavior_actions"} & set(stored.column_names)
    assert f"_sequences/{view}.arrow" in (pointers.manifest.files or {})
    assert pointers.expand(stored.slice(3, 4)) == inline.read().slice(3, 4)
    assert verify(home, pointers.folder).problems == ()
    log = pointers.folder / "rows" / "_sequences" / f"{view}.arrow"
    log.write_bytes(log.read_bytes()[:-1] + b" ")
    assert f"rows/_sequences/{view}.arrow was changed" in verify(home, pointers.folder).problems[0]
    assert not [path for path in home.training_sets.iterdir() if path.name.startswith(".")]
