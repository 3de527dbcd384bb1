from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from models.evaluation.attributes import (
    AttributeTrials,
    attribute_precision,
    in_test,
    measure_attribute,
    read_attribute_trials,
)
from moonlake.embeddings.contents import Content, content_of
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
AT = T0 + timedelta(days=9)
Write = Callable[..., None]


def unit(rng: np.random.Generator, rows: int, width: int = 4) -> np.ndarray:
    found = rng.standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def trials(query_labels: list[str], pool_labels: list[str], own: list[int] | None = None) -> AttributeTrials:
    queries, pool = ([content_of(f"{side}{row}", []) for row in range(len(labels))]
                     for side, labels in (("q", query_labels), ("p", pool_labels)))  # fmt: skip
    rows = np.array([-1] * len(queries) if own is None else own)
    return AttributeTrials("kind", queries, pool, np.array(query_labels), np.array(pool_labels), rows, 0)


def slow_share(scores: np.ndarray, right: np.ndarray, own: int, cutoff: int) -> float:
    """The first ones of everything sorted by score, wrong before right where scores tie."""
    order = sorted((-round(float(score), 4), bool(ok)) for at, (score, ok) in enumerate(zip(scores, right, strict=True))
                   if at != own)  # fmt: skip
    return sum(ok for _, ok in order[:cutoff]) / cutoff


def test_precision_agrees_with_a_full_sort_with_ties_and_self_left_out() -> None:
    rng = np.random.default_rng(0)
    pool = unit(rng, 12)[rng.integers(12, size=60)]  # about five rows tie with each other
    labels = rng.choice(list("abc"), size=60).tolist()
    asked = trials(labels[:30], labels, list(range(30)))
    asked.own[::3] = -1
    found = attribute_precision(asked, pool[:30], pool, cutoffs=(1, 10))
    right = asked.query_labels[:, None] == asked.pool_labels
    slow = [
        [slow_share(pool @ pool[row], right[row], asked.own[row], cutoff) for cutoff in (1, 10)] for row in range(30)
    ]
    np.testing.assert_allclose(found, np.array(slow))


def test_a_space_that_puts_all_in_one_place_finds_nothing_while_something_is_wrong() -> None:
    one = np.repeat(unit(np.random.default_rng(0), 1), 30, axis=0)
    found = attribute_precision(trials(["a"], ["a"] * 20 + ["b"] * 10), one[:1], one, cutoffs=(1, 10, 20))
    np.testing.assert_allclose(found, np.array([[0, 0, 0.5]]))


def test_a_pool_smaller_than_the_cutoff_and_vectors_that_are_missing_count_as_wrong() -> None:
    pool = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    asked = trials(["a", "a"], ["a", "a", "a"], [0, -1])
    found = attribute_precision(asked, np.array([[1, 0], [0, 0]], np.float32), pool, cutoffs=(1, 10))
    np.testing.assert_allclose(found, np.array([[1, 0.1], [0, 0]]))  # only the last is left for the first query


def test_chance_is_the_share_of_the_same_value_in_the_pool() -> None:
    pool = unit(np.random.default_rng(0), 4)
    found = measure_attribute(trials(["a", "c"], ["a", "a", "a", "b"]), pool[:2], pool)
    assert found.chance == pytest.approx(0.75 / 2)
    assert [rate.cutoff for rate in found.precisions] == [1, 10]
    assert all(rate.low <= rate.value <= rate.high for rate in found.precisions)


def test_the_share_that_asks_depends_on_id_and_seed_alone() -> None:
    names = [f"p{number}" for number in range(4_000)]
    asks = in_test(names, 0.2, seed=1)
    assert asks.mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(asks[::-1], in_test(names[::-1], 0.2, seed=1))
    assert (asks != in_test(names, 0.2, seed=2)).any()
    assert not in_test(names, 0.0).any()
    assert in_test(names, 1.0).all()


@pytest.fixture
def stocked(settings: Settings, write_rows: Write) -> Lake:
    """a and b are red, c blue, d of no colour; e was red and is green; f has no picture; late comes later."""
    colour = {"a": "red", "b": "red", "c": "blue", "d": None, "e": "red", "f": "blue"}

    def row(name: str, value: str | None, day: int = 0) -> dict[str, object]:
        images = [] if name == "f" else [f"image {name}"]
        return {"product_id": name, "title": name, "attributes": [("colour", value)] if value else [],
                "image_ids": images, "content_id": content_of(name, images).content_id, "category": "chair",
                "listed_at": T0, "event_timestamp": T0 + timedelta(days=day)}  # fmt: skip

    rows = [row(name, value) for name, value in colour.items()]
    write_rows(settings, "products", [*rows, row("e", "green", 3), row("late", "red", 9), row("a", "blue", 9)])
    return Lake(settings)


def test_a_label_is_the_latest_before_the_moment(stocked: Lake) -> None:
    found = read_attribute_trials(stocked, "colour", AT)
    assert found.query_labels.tolist() == found.pool_labels.tolist() == ["red", "red", "blue", "green", "blue"]
    assert found.own.tolist() == [0, 1, 2, 3, 4]
    assert found.left_out == 1
    assert set(read_attribute_trials(stocked, "category", AT).pool_labels) == {"chair"}


def test_what_asks_is_not_found_and_may_show_its_pictures_alone(stocked: Lake) -> None:
    found = read_attribute_trials(stocked, "colour", AT, test={"a", "f"}, pictures_only=True)
    assert found.queries == [content_of(None, ["image a"])]
    assert [content.text for content in found.pool] == ["b", "c", "e"]
    assert found.own.tolist() == [-1]
    whole: list[Content] = read_attribute_trials(stocked, "colour", AT, test={"a", "f"}).queries
    assert [content.text for content in whole] == ["a", "f"]


def test_a_picture_that_another_product_shows_does_not_ask_where_fresh_ones_are_wanted(
    settings: Settings, write_rows: Write
) -> None:
    pictures = {"a": ["x", "y"], "b": ["y", "z"], "c": ["w", "w"], "d": [], "e": ["v"]}
    rows = [{"product_id": name, "title": name, "category": "chair", "image_ids": images, "event_timestamp": T0,
             "content_id": content_of(name, images).content_id} for name, images in pictures.items()]  # fmt: skip
    write_rows(settings, "products", rows)
    lake = Lake(settings)
    fresh = read_attribute_trials(lake, "category", AT, fresh_pictures=True)
    assert [content.text for content in fresh.queries] == ["c", "d", "e"]
    assert len(fresh.pool) == 5
    split = read_attribute_trials(lake, "category", AT, test={"b", "e"}, fresh_pictures=True)
    assert [content.text for content in split.queries] == ["e"]
    assert len(read_attribute_trials(lake, "category", AT, test={"b", "e"}).queries) == 2


def test_an_attribute_that_nothing_has_and_an_empty_side_are_errors(stocked: Lake) -> None:
    with pytest.raises(InputError, match="has a value of 'shape'"):
        read_attribute_trials(stocked, "shape", AT)
    with pytest.raises(InputError, match="0 products ask"):
        read_attribute_trials(stocked, "colour", AT, test={"late"})
