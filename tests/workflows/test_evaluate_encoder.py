"""Spaces measured from Python: figures come back as values, without a command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.evaluate_encoder import Task, evaluate_attribute, evaluate_purchases, products_that_ask, subject_of

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=4)


def test_recall_of_two_spaces_and_of_pixels(shop: Settings) -> None:
    found = {name: evaluate_purchases(shop, name, (START, END), prefix=5) for name in ("true", "noise", "pixels")}
    hits = {name: one.tasks["image_search"].recall.hit_rates[0].value for name, one in found.items()}
    assert hits["true"] == 1
    assert hits["noise"] < 0.5
    assert hits["pixels"] == 0  # no pictures: all alike, ties against us
    one = found["true"]
    assert (one.subject, one.simulated, one.seen) == ("true", [], False)
    prefix = one.tasks["image_search"].prefix
    assert prefix is not None
    assert prefix.minus_whole[0].value == pytest.approx(prefix.recall.hit_rates[0].value - 1)
    assert one.tasks["image_search"].ceiling is None
    assert "ceiling" not in json.loads(json.dumps(one.as_json()))["tasks"]["image_search"]


def test_precision_of_an_attribute_among_some_products(shop: Settings) -> None:
    asking = products_that_ask(Lake(shop), END, share=0.3)
    assert asking is not None
    assert 0 < len(asking) < 20
    found = evaluate_attribute(shop, "true", "category", END, asking=asking)
    assert (found.precision.queries, found.precision.pool) == (len(asking), 20 - len(asking))
    assert "prefix" not in found.as_json()


def test_a_task_that_is_not_of_purchases_is_refused(shop: Settings) -> None:
    with pytest.raises(InputError, match="task judged is not measured on purchases"):
        evaluate_purchases(shop, "true", (START, END), Task.JUDGED)


def test_a_subject_knows_what_its_training_saw(shop: Settings) -> None:
    assert subject_of(Lake(shop), "true").trained_until == START - timedelta(days=1)
    assert subject_of(Lake(shop), "pixels").trained_until is None
