from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from models.evaluate_encoder import evaluate_encoder
from models.representations import lake_vectors
from models.trials import live_products, read_trials
from moonlake.contents import Content, content_of
from moonlake.errors import InputError, NotFound
from moonlake.lake import Lake, arrow_schema
from moonlake.tables import TABLES, TIMELESS

T0 = datetime(2026, 1, 1, tzinfo=UTC)
END = T0 + timedelta(days=9)


def write(lake: Lake, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into any table, with a plain Delta write: the jobs that write these tables need Spark."""
    whole = [{column.name: None for column in TABLES[name]} | {"created_at": T0, "source": "t"} | row for row in rows]
    schema = arrow_schema(TABLES[name])
    write_deltalake(lake.path(name), pa.Table.from_pylist(whole, schema), mode="append")


def product(name: str, image: str, day: int = 0, *, deleted: bool = False) -> dict[str, Any]:
    return {
        "product_id": name, "title": name, "attributes": [], "image_ids": [image], "listed_at": T0, "deleted": deleted,
        "content_id": content_of(name, [image]).content_id, "event_timestamp": T0 + timedelta(days=day),
    }  # fmt: skip


def query(name: str, image: str, modality: str = "image") -> dict[str, Any]:
    return {
        "query_id": name, "modality": modality, "image_ids": [image],
        "content_id": content_of(None, [image]).content_id, "event_timestamp": T0,
    }  # fmt: skip


def purchase(number: int, product_id: str, query_id: str | None, day: int, action: str = "purchase") -> dict[str, Any]:
    return {
        "behavior_id": f"b{number}", "user_id": "u", "action": action, "product_id": product_id, "query_id": query_id,
        "event_timestamp": T0 + timedelta(days=day),
    }  # fmt: skip


@pytest.fixture
def stocked(lake: Lake) -> Lake:
    write(
        lake,
        "products",
        [
            product("a", "ia"), product("b", "ib"), product("b", "ib2", 3), product("c", "ic"),
            product("gone", "ig"), product("gone", "ig", 8, deleted=True), product("late", "il", 9),
        ],
    )  # fmt: skip
    write(lake, "queries", [query("q1", "x1"), query("q2", "x2"), query("q3", "ia"), query("q4", "x4", "product")])
    write(
        lake,
        "behaviors",
        [
            purchase(1, "a", "q1", 5), purchase(2, "b", "q1", 6), purchase(3, "c", "q2", 5),
            purchase(4, "gone", "q1", 5), purchase(5, "a", "q3", 5),  # left out: off sale, and a catalogue picture
            purchase(6, "a", "q4", 5), purchase(7, "a", None, 5), purchase(8, "a", "q1", 5, "click"),
            purchase(9, "a", "q2", 1), purchase(10, "a", "q2", 9),
        ],
    )  # fmt: skip
    return lake


def start() -> datetime:
    return T0 + timedelta(days=4)


def represent(contents: Sequence[Content]) -> np.ndarray:
    """A made-up encoder: q1 sees a exactly and b half, q2 sees nothing of c."""
    known = {"a": [1, 0, 0], "b": [0.6, 0.8, 0], "c": [0, 1, 0]}
    queries = {"x1": [1, 0, 0], "x2": [0, 0, 1]}
    rows = [known[one.text] if one.text else queries[one.image_ids[0]] for one in contents]
    return np.array(rows, np.float32)


def test_the_pool_is_what_was_on_sale_at_the_end_in_its_latest_state(stocked: Lake) -> None:
    assert list(live_products(stocked, END)) == ["a", "b", "c"]
    assert live_products(stocked, END)["b"] == content_of("b", ["ib2"]).content_id
    assert live_products(stocked, T0 + timedelta(days=2))["b"] == content_of("b", ["ib"]).content_id


def test_trials_are_purchases_after_an_image_query_in_the_window(stocked: Lake) -> None:
    trials = read_trials(stocked, start(), END)
    rows = zip(trials.query_rows, trials.positives, strict=True)
    assert sorted((trials.queries[q].image_ids[0], trials.products[p]) for q, p in rows) == [
        ("x1", "a"),
        ("x1", "b"),
        ("x2", "c"),
    ]
    assert trials.left_out == 2


def test_recall_is_what_a_hand_counts(stocked: Lake) -> None:
    recall = evaluate_encoder(stocked, represent, start(), END, trained_until=None)
    # a is first for q1, b second; for q2 all three tie, so that c counts as third
    assert [rate.value for rate in recall.hit_rates] == [pytest.approx(1 / 3), 1.0, 1.0]
    assert (recall.purchases, recall.queries, recall.pool, recall.left_out, recall.seen) == (3, 2, 3, 2, False)


def test_a_query_without_a_vector_finds_nothing(stocked: Lake) -> None:
    def blind(contents: Sequence[Content]) -> np.ndarray:
        return represent(contents) * np.array([[one.text is not None] for one in contents], np.float32)

    recall = evaluate_encoder(stocked, blind, start(), END, trained_until=None)
    assert [rate.value for rate in recall.hit_rates] == [0, 0, 0]


def test_rows_that_the_encoder_saw_are_refused_unless_asked_for_by_name(stocked: Lake) -> None:
    with pytest.raises(InputError, match="ask for seen rows by name"):
        evaluate_encoder(stocked, represent, start(), END, trained_until=start())
    assert evaluate_encoder(stocked, represent, start(), END, trained_until=start(), allow_seen=True).seen


def test_a_window_without_purchases_is_an_error(stocked: Lake) -> None:
    with pytest.raises(InputError, match="image_search: no purchase"):
        evaluate_encoder(stocked, represent, END + timedelta(days=1), END + timedelta(days=2), trained_until=None)


def test_vectors_of_the_lake_come_row_by_row_from_one_space(lake: Lake) -> None:
    ids = [content_of(name, []) for name in ("a", "b")]
    rows = [
        {
            "content_id": one.content_id,
            "space_id": space * 32,
            "vector": [at, space == "0"],
            "event_timestamp": TIMELESS,
        }
        for at, one in enumerate(ids)
        for space in "01"
    ]
    schema = arrow_schema(TABLES["embeddings"])
    write_deltalake(lake.path("embeddings"), pa.Table.from_pylist([row | {"created_at": T0} for row in rows], schema))
    np.testing.assert_array_equal(lake_vectors(lake, "0" * 32)(ids[::-1]), [[1, 1], [0, 1]])
    with pytest.raises(NotFound, match="1 contents have no vector"):
        lake_vectors(lake, "0" * 32)([*ids, content_of("c", [])])
