from __future__ import annotations

from datetime import UTC, datetime

from moonlake.lake.lake import Lake
from moonlake.lake.product_events import ProductEvent, submit

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def event(event_id: str, product_id: str = "p", payload: str = "{}") -> ProductEvent:
    return ProductEvent(event_id, product_id, "upsert", payload, "shop", DAY)


def test_records_are_handed_in_without_a_jvm_and_bad_ones_go_to_rejects(lake: Lake, written_at: datetime) -> None:
    report = submit(lake, [event("1"), event(""), event("2", "x" * 300), event("3")], written_at=written_at)
    assert (report.written, report.rejected) == (2, 2)
    assert report.by_rule == {"event_id_short": 1, "product_id_long": 1}
    assert lake.read("product_events")["event_id"].to_pylist() == ["1", "3"]
    assert set(lake.read("product_events")["created_at"].to_pylist()) == {written_at}
    assert sorted(lake.read("rejects")["rule"].to_pylist()) == ["event_id_short", "product_id_long"]


def test_a_record_that_is_refused_twice_is_kept_once(lake: Lake, written_at: datetime) -> None:
    for _ in range(2):
        submit(lake, [event("")], written_at=written_at)
    assert len(lake.read("rejects")) == 1
    assert not lake.exists("product_events")


def test_nothing_handed_in_writes_nothing(lake: Lake, written_at: datetime) -> None:
    assert submit(lake, [], written_at=written_at).rows_in == 0
    assert not lake.exists("product_events")
