"""`moonlake product`, without the stream: tests/spark_jobs/test_stream_products.py runs that."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import PRODUCT_ARRIVALS
from moonlake.settings import Settings


def products(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["product", *arguments], env=settings.environment())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good products and one that cannot be read."""
    rows = ['{"product_id": "1", "title": "mug"}', '{"product_id": "2", "title": "cup"}', "{"]
    (tmp_path / "products.jsonl").write_text("\n".join(rows))
    return tmp_path


def arrive(lake: Lake, outcomes: dict[str, str], seconds: float = 2.0) -> None:
    """Enter records as taken in."""
    now = datetime.now(UTC)
    rows = [
        {
            "event_id": event_id, "record_hash": stable_hash(event_id), "product_id": event_id, "content_id": None,
            "outcome": outcome, "handed_in_at": now, "event_timestamp": now + timedelta(seconds=seconds),
        }
        for event_id, outcome in outcomes.items()
    ]  # fmt: skip
    facts = pa.Table.from_pylist(rows, arrow_schema(PRODUCT_ARRIVALS, PRODUCT_ARRIVALS.facts))
    lake.append("product_arrivals", facts, written_at=now)


def test_a_folder_is_handed_in_and_what_cannot_be_read_is_kept(settings: Settings, lake: Lake, folder: Path) -> None:
    told = products(settings, "add", str(folder), "--source", "shop")
    assert told.output == "2 records submitted, 1 refused (table rejects)\n"
    events = lake.read("product_events").to_pylist()
    assert [(row["product_id"], row["kind"], row["source"]) for row in events] == [
        ("1", "upsert", "shop"), ("2", "upsert", "shop"),
    ]  # fmt: skip
    assert json.loads(events[0]["payload"])["title"] == "mug"
    assert [(row["table"], row["source"]) for row in lake.read("rejects").to_pylist()] == [("product_events", "shop")]


def test_handing_in_again_is_another_record(settings: Settings, lake: Lake, folder: Path) -> None:
    for _ in range(2):
        products(settings, "add", str(folder))
    assert len(set(lake.read("product_events")["event_id"].to_pylist())) == 4


def test_waiting_in_vain_is_an_error_that_says_what_to_run(settings: Settings, folder: Path) -> None:
    told = products(settings, "add", str(folder), "--wait", "0.1")
    assert told.exit_code == 1
    assert "processed: none" in told.output
    assert "2 still waiting after 0.1 s: is `moonlake product watch` running?" in told.output


def test_json_names_the_records_and_says_what_waits(settings: Settings, lake: Lake, folder: Path) -> None:
    told = products(settings, "add", str(folder), "--wait", "0.1", "--json")
    report = json.loads(told.stdout)
    assert told.exit_code == 1
    assert sorted(report["event_ids"]) == sorted(lake.read("product_events")["event_id"].to_pylist())
    assert (report["refused"], report["intake"]["waiting"]) == (1, 2)


def test_a_folder_without_products_is_an_error(settings: Settings, tmp_path: Path) -> None:
    told = products(settings, "add", str(tmp_path))
    assert told.exit_code == 1
    assert re.search(r"error: .* holds products\.jsonl", told.output)


def test_deleting_hands_a_record_in(settings: Settings, lake: Lake) -> None:
    assert products(settings, "delete", "1", "2").output.startswith("2 records submitted, 0 refused")
    assert lake.read("product_events")["kind"].to_pylist() == ["delete", "delete"]


def test_status_counts_outcomes_and_what_waits_and_times_servable_ones(
    settings: Settings, lake: Lake, folder: Path
) -> None:
    assert products(settings, "status").output == "records of the last 24 hours: none; 0 waiting\n"
    products(settings, "add", str(folder))
    (one, _) = lake.read("product_events")["event_id"].to_pylist()
    arrive(lake, {one: "servable"})
    arrive(lake, {"x": "refused"}, seconds=50)
    told = products(settings, "status").output.splitlines()
    assert told[0] == "records of the last 24 hours: 1 refused, 1 servable; 1 waiting"
    assert told[1] == "product to servable: p50 2.00 s, p95 2.00 s, max 2.00 s"
    plain = json.loads(products(settings, "status", "--json").output)
    assert plain["waiting"] == 1
    assert plain["seconds_to_servable"]["max"] == 2.0
