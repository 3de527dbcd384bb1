"""A staged source appears whole or not at all, and says what it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonlake.errors import InputError, NotFound, SchemaMismatch
from moonlake.settings import Settings
from sources.own_files.schema import KINDS
from sources.own_files.staging import SourceInfo, is_staged, new_stage, stage_path

WINDOW = (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))


def info(fingerprint: str = "f1") -> SourceInfo:
    return SourceInfo("shop", False, "test", WINDOW, WINDOW[0], WINDOW[1], "", fingerprint)


def merchants(*names: str) -> pa.Table:
    rows = [{"merchant_id": name, "tier": 1, "event_timestamp": WINDOW[0]} for name in names]
    return pa.Table.from_pylist(rows, schema=KINDS["merchants"].schema())


def test_every_kind_is_there_even_without_rows(settings: Settings) -> None:
    with new_stage(settings, "shop") as writer:
        writer.write("merchants", merchants("m1"))
        writer.describe(info())
    folder = stage_path(settings, "shop")
    assert {path.name for path in folder.iterdir()} == {*KINDS, "refused", "source.json"}
    for kind in KINDS.values():
        assert pq.read_table(folder / kind.name).schema.names == list(kind.names)


def test_the_description_is_read_back_with_the_counts(settings: Settings) -> None:
    with new_stage(settings, "shop") as writer:
        writer.write("merchants", merchants("m1", "m2"))
        writer.refuse("merchants", "tier_unreadable", [{"merchant_id": "m3", "tier": "gold"}])
        writer.describe(info())
    read = SourceInfo.read(stage_path(settings, "shop"))
    assert (read.window, read.t1, read.t2, read.fingerprint) == (WINDOW, WINDOW[0], WINDOW[1], "f1")
    assert (read.staged["merchants"], read.refused["merchants"], read.staged["users"]) == (2, 1, 0)
    refused = pq.read_table(stage_path(settings, "shop") / "refused").to_pylist()
    assert refused == [
        {"kind": "merchants", "rule": "tier_unreadable", "value": '{"merchant_id": "m3", "tier": "gold"}'}
    ]


def test_a_stage_that_fails_leaves_the_one_before_untouched(settings: Settings) -> None:
    with new_stage(settings, "shop") as writer:
        writer.write("merchants", merchants("old"))
        writer.describe(info())

    def fail() -> None:
        with new_stage(settings, "shop") as writer:
            writer.write("merchants", merchants("new"))
            raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        fail()
    assert pq.read_table(stage_path(settings, "shop") / "merchants")["merchant_id"].to_pylist() == ["old"]
    assert [path.name for path in settings.staging.iterdir()] == ["shop"]


def test_a_stage_takes_the_place_of_an_older_one(settings: Settings) -> None:
    for name in ("old", "new"):
        with new_stage(settings, "shop") as writer:
            writer.write("merchants", merchants(name))
            writer.describe(info(fingerprint=name))
    assert pq.read_table(stage_path(settings, "shop") / "merchants")["merchant_id"].to_pylist() == ["new"]
    assert is_staged(settings, "shop", "new")
    assert not is_staged(settings, "shop", "old")


def test_rows_with_other_columns_are_an_error(settings: Settings) -> None:
    with pytest.raises(SchemaMismatch, match="kind users"), new_stage(settings, "shop") as writer:
        writer.write("users", merchants("m1"))


def test_span_is_the_first_and_last_event_time(settings: Settings) -> None:
    with new_stage(settings, "shop") as writer:
        assert writer.span("merchants") is None
        writer.write("merchants", merchants("m1"))
        assert writer.span("merchants") == (WINDOW[0], WINDOW[0])
        writer.describe(info())


@pytest.mark.parametrize("name", ["../outside", "", "a/b", ".hidden", "my shop"])
def test_a_name_that_is_no_folder_name_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(InputError, match="source name"):
        stage_path(settings, name)


def test_a_folder_that_is_no_staged_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a staged source"):
        SourceInfo.read(tmp_path)
