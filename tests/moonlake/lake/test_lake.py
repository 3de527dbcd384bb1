from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from moonlake.embeddings.contents import content_of, read_contents
from moonlake.errors import BatchRejected, NotFound, SchemaMismatch
from moonlake.lake.lake import Lake, WriteReport
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import STUDY_RESULTS, TABLES
from moonlake.settings import Settings

LATER = datetime(2026, 3, 2, tzinfo=UTC)


def results(*values: float, **changed: Any) -> pa.Table:
    facts = {"study": "s", "run_id": "r", "subject": "x", "segment": "all", "simulated": True, "event_timestamp": LATER}
    rows = [facts | {"metric": f"m{place}", "value": value} | changed for place, value in enumerate(values)]
    return pa.Table.from_pylist(rows, schema=arrow_schema(STUDY_RESULTS, STUDY_RESULTS.facts))


def test_what_is_appended_is_read_back_with_the_types_of_the_contract(lake: Lake, written_at: datetime) -> None:
    report = lake.append("study_results", results(1.0, 2.0), written_at=written_at)
    assert (report.written, report.version) == (2, 0)
    rows = lake.read("study_results")
    assert rows.schema == arrow_schema(STUDY_RESULTS)
    assert rows["value"].to_pylist() == [1.0, 2.0]
    assert set(rows["created_at"].to_pylist()) == {written_at}


def test_appending_again_writes_only_what_is_new_and_no_change_writes_no_commit(
    lake: Lake, written_at: datetime
) -> None:
    lake.append("study_results", results(1.0), written_at=written_at)
    assert lake.append("study_results", results(1.0), written_at=LATER).version == 0
    report = lake.append("study_results", results(1.0, 2.0), written_at=LATER)
    assert (report.written, report.unchanged, report.version) == (1, 1, 1)


def test_projection_filter_and_version_reach_the_read(lake: Lake, written_at: datetime) -> None:
    for value in (1.0, 2.0, 3.0):
        lake.append("study_results", results(value, run_id=str(value)), written_at=written_at)
    rows = lake.read("study_results", ["run_id"], where=pc.field("value") > 1.5, version=1)
    assert rows.to_pydict() == {"run_id": ["2.0"]}


def test_a_table_that_was_never_written_reads_as_empty_with_its_schema(lake: Lake) -> None:
    assert lake.version("products") == -1
    assert lake.read("products").schema == arrow_schema(TABLES["products"])
    assert len(lake.read("products")) == 0


def test_what_does_not_exist_is_named(lake: Lake, written_at: datetime) -> None:
    with pytest.raises(NotFound, match="no table nowhere; the lake has product_events"):
        lake.read("nowhere")
    with pytest.raises(NotFound, match=r"table products has no columns \['colour'\]"):
        lake.read("products", ["colour"])
    lake.append("study_results", results(1.0), written_at=written_at)
    with pytest.raises(NotFound, match=r"table study_results .* has no version 7"):
        lake.read("study_results", version=7)


def test_a_bad_row_refuses_the_whole_batch(lake: Lake, written_at: datetime) -> None:
    with pytest.raises(BatchRejected, match="study_results: 1 of 2 rows break rules, first value_not_finite"):
        lake.append("study_results", results(1.0, float("nan")), written_at=written_at)
    with pytest.raises(BatchRejected, match="study_short"):
        lake.append("study_results", results(1.0, study=""), written_at=written_at)
    with pytest.raises(SchemaMismatch, match=r"columns \['value'\] are missing"):
        lake.append("study_results", results(1.0).drop_columns("value"), written_at=written_at)
    assert not lake.exists("study_results")


def test_a_clustered_table_is_left_to_spark(lake: Lake, written_at: datetime) -> None:
    empty = arrow_schema(TABLES["products"], TABLES["products"].facts).empty_table()
    with pytest.raises(ValueError, match="write it with Spark"):
        lake.append("products", empty, written_at=written_at)


def test_a_report_in_which_rows_go_missing_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="rows went missing"):
        WriteReport("t", rows_in=3, written=1, rejected=1, duplicates=0, unchanged=0, version=0)
    with pytest.raises(AssertionError, match="not every rejected row has a rule"):
        WriteReport("t", rows_in=3, written=1, rejected=2, duplicates=0, unchanged=0, version=0, by_rule={"bad": 1})


def test_a_content_id_that_nothing_has_is_an_error(lake: Lake) -> None:
    with pytest.raises(NotFound, match="1 content ids stand in no product or query"):
        read_contents(lake, [content_of("never seen", []).content_id])


def test_a_short_script_that_reads_a_table_ends_cleanly(settings: Settings, written_at: datetime) -> None:
    """delta-rs 2184: some ways of reading abort the interpreter at exit, about every other time."""
    Lake(settings).append("study_results", results(1.0), written_at=written_at)
    script = (
        "from pathlib import Path\nfrom moonlake.lake.lake import Lake\nfrom moonlake.settings import Settings\n"
        f"print(len(Lake(Settings(home=Path({str(settings.home)!r}))).read('study_results')))"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
