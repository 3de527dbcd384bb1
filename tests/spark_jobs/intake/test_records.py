"""Records of product events as rows: pure, without Spark."""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moonlake.embeddings.contents import content_of
from moonlake.hashing import stable_hash
from moonlake.lake.product_events import ProductEvent
from spark_jobs.intake.metrics import Metrics
from spark_jobs.intake.records import Batch, Known, Record, process_records

DAY = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def picture(shade: int, size: tuple[int, int] = (20, 20)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((*size, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def event(name: str, product_id: str, payload: object, at: datetime = DAY, kind: str = "upsert") -> ProductEvent:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return ProductEvent(name, product_id, kind, text, "shop", at)  # type: ignore[arg-type]


def taken(*events: ProductEvent, known: Known | None = None) -> Batch:
    return process_records([Record.read(one, one.event_timestamp) for one in events], known or Known())


def rules(batch: Batch) -> list[str]:
    return [rule for _, rule, _ in batch.refused]


def states(batch: Batch) -> list[dict[str, Any]]:
    return batch.states().to_pylist()


def test_a_record_becomes_a_state_of_its_product_with_its_images_in_order() -> None:
    light, dark = picture(250), picture(20)
    payload = {
        "title": " oak chair ", "price_cents": 1999, "attributes": {"material": "oak"},
        "image_names": ["b", "a"], "images": {"a": base64_of(light), "b": base64_of(dark)},
    }  # fmt: skip
    batch = taken(event("e", "p", payload))
    (state,) = states(batch)
    ids = [stable_hash(dark), stable_hash(light)]
    assert state["image_ids"] == ids
    assert state["content_id"] == content_of("oak chair, oak", ids).content_id
    assert (state["title"], state["price_cents"], state["deleted"]) == ("oak chair", 1999, False)
    assert state["event_timestamp"] == state["listed_at"] == DAY
    assert sorted(batch.image_rows()["image_id"].to_pylist()) == sorted(ids)
    assert not batch.refused


def test_a_payload_says_its_own_time_and_where_its_images_are() -> None:
    known = stable_hash(picture(1))
    payload = {"title": "x", "event_timestamp": "2026-02-01T00:00:00Z", "image_names": [known, "nowhere"]}
    batch = taken(event("e", "p", payload), known=Known(image_ids=frozenset({known})))
    (state,) = states(batch)
    assert state["event_timestamp"] == datetime(2026, 2, 1, tzinfo=UTC)
    assert state["image_ids"] == [known]
    assert rules(batch) == ["image_not_found"]


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        ("{not json", "payload_unreadable"),
        ("[" * 100_000, "payload_unreadable"),
        ("[1, 2]", "payload_unreadable"),
        ("null", "payload_unreadable"),
        ({"title": "x", "images": ["a"]}, "images_unreadable"),
        ({"title": "x", "product_id": "another"}, "product_id_conflicting"),
        ({"title": "x", "price_cents": "cheap"}, "price_cents_unreadable"),
        ('{"title": "x", "price_cents": 1e999}', "price_cents_unreadable"),
        ('{"title": "\\ud800"}', "title_unreadable"),
        ({"title": "a\0b"}, "title_unreadable"),
        ({"title": "x", "event_timestamp": "soon"}, "event_timestamp_unreadable"),
        ({"title": "x", "event_timestamp": "2036-01-01"}, "event_timestamp_ahead"),
        ({"title": {"a": 1}}, "title_unreadable"),
        ({"title": "x", "attributes": [1]}, "attributes_unreadable"),
    ],
)
def test_a_poisoned_record_is_refused_and_the_others_stand(payload: object, rule: str) -> None:
    batch = taken(event("1", "bad", payload), event("2", "good", {"title": "mug"}))
    assert rules(batch) == [rule]
    assert [row["product_id"] for row in states(batch)] == ["good"]
    assert [record.rule for record in batch.records] == [rule, None]


def test_a_product_is_taken_in_without_the_images_that_cannot_be_read() -> None:
    files = {
        "good": base64_of(picture(9)), "text": base64_of(b"<svg/>"), "empty": "", "number": 7, "curly": "{}",
        "wide": base64_of(picture(1, (1, 30_000))),
    }  # fmt: skip
    batch = taken(event("e", "p", {"title": "x", "images": files}))
    assert states(batch)[0]["image_ids"] == [stable_hash(picture(9))]
    assert rules(batch) == [
        "image_unreadable", "image_empty", "image_unreadable", "image_unreadable", "image_too_long"
    ]  # fmt: skip


def test_a_record_that_was_taken_in_has_no_effect_and_another_of_its_id_is_refused() -> None:
    first = event("e", "p", {"title": "mug"})
    (record,) = taken(first).records
    known = Known(record_hashes={"e": record.record_hash})
    again = taken(first, event("e", "p", {"title": "cup"}), known=known)
    assert again.records == []
    assert rules(again) == ["event_id_repeated"]
    assert len(taken(first, first).records) == 1


def test_a_state_that_stands_is_not_written_again_and_one_that_comes_back_is() -> None:
    titles = ["a", "a", "b", "a"]
    events = [event(str(at), "p", {"title": title}, DAY + at * HOUR) for at, title in enumerate(titles)]
    batch = taken(*events)
    assert [row["title"] for row in states(batch)] == ["a", "b", "a"]
    cut_off = taken(*events, known=Known(states={"p": states(batch)}))
    assert [record.state is None for record in cut_off.records] == [False, True, False, False]
    assert {row["listed_at"] for row in states(batch)} == {DAY}
    late = taken(event("late", "p", {"title": "b"}, DAY + 2.5 * HOUR), known=Known(states={"p": states(batch)}))
    assert states(late) == []


def test_a_deleted_product_keeps_what_stood_then() -> None:
    stood = Known(states={"p": states(taken(event("1", "p", {"title": "mug"})))})
    gone = event("2", "p", "", DAY + HOUR, kind="delete")
    (state,) = states(taken(gone, known=stood))
    assert (state["title"], state["deleted"], state["event_timestamp"]) == ("mug", True, DAY + HOUR)
    assert rules(taken(gone)) == ["product_unknown"]
    assert rules(taken(event("3", "p", "", DAY - HOUR, kind="delete"), known=stood)) == ["product_unknown"]


def test_metrics_say_outcomes_and_quantiles_of_servable_products_alone(tmp_path: Any) -> None:
    Metrics(tmp_path / "others.prom").record("refused", 1.0)  # another stream's are its own
    metrics = Metrics(tmp_path / "metrics" / "products.prom")
    for seconds in (1.0, 2.0, 9.0):
        metrics.record("servable", seconds)
    metrics.record("refused", 100.0)
    metrics.write()
    said = metrics.file.read_text()
    assert 'moonlake_product_events_total{outcome="refused"} 1.0' in said
    assert 'moonlake_product_to_servable_recent_seconds{quantile="p50"} 2.0' in said
    assert 'moonlake_product_to_servable_recent_seconds{quantile="max"} 9.0' in said
    assert 'moonlake_product_to_servable_seconds_bucket{le="3.0"} 2.0' in said
    assert 'moonlake_product_to_servable_seconds_bucket{le="+Inf"} 3.0' in said
    assert "moonlake_product_to_servable_seconds_sum 12.0" in said
