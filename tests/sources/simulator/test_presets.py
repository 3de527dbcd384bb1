"""A preset is frozen: its numbers and the behaviour that it produces are pinned."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from moonlake.errors import NotFound
from moonlake.hashing import stable_hash
from moonlake.settings import Settings
from sources.simulator.presets import PRESETS, BehaviorConfig, microseconds, preset_named

FINGERPRINTS = {
    "tiny": "ab76a972908757aac607c7e4aed14c89",
    "demo": "4f69e2ded80d7868815166e2af3d8a46",
    "standard-1": "855ad5e1d637ecca54f711cf4bef5398",
}
"""Never edit one: a change of the simulator's numbers is a new preset."""
TINY_DIGESTS = {
    "products": "764189e8c44e59156dfc16888a42267e",
    "queries": "799faa4ba794b3bd4f50795e9a381e37",
    "impressions": "d9af5f42bc110d933c15bdf34b71f5a3",
    "behaviors": "c2de2196c1e3fd9ce9617863a66a5eb6",
}
"""Never edit one: a change of what the simulator produces is a new SIMULATOR_VERSION and new presets."""
ROUNDED = {"impressions": ["propensity"]}
"""Columns that may differ in their last digits from one processor to the next."""


@pytest.mark.parametrize("name", PRESETS)
def test_the_numbers_of_a_preset_never_change(name: str) -> None:
    assert PRESETS[name].fingerprint == FINGERPRINTS[name]


@pytest.mark.parametrize("kind", TINY_DIGESTS)
def test_tiny_produces_what_it_always_produced(tiny: Any, kind: str) -> None:
    rows = tiny.read(kind).drop_columns(ROUNDED.get(kind, []))
    assert stable_hash(json.dumps(rows.to_pylist(), default=str)) == TINY_DIGESTS[kind]


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="no preset huge; there are tiny, demo, standard-1"):
        preset_named("huge")


def test_the_window_is_cut_in_order() -> None:
    window = PRESETS["demo"].window
    assert window.start < window.t1 < window.t2 < window.end == datetime(2026, 3, 1, tzinfo=UTC)
    assert window.span_us == (microseconds(window.start), microseconds(window.end))


def test_microseconds_are_exact() -> None:
    assert microseconds(datetime(2026, 2, 13, 12, 0, 0, 123_457, tzinfo=UTC)) == 1_770_984_000_123_457


def test_a_behavior_configuration_survives_json() -> None:
    config = BehaviorConfig(users=3, sessions=4)
    as_json = {"users": 3, "sessions": 4, "query_shares": [0.3, 0.6, 0.1], "relevant_share": [0.6, 0.3]}
    assert BehaviorConfig.from_json(as_json) == config


def test_two_runs_give_the_same_bytes(tiny: Any, settings: Settings) -> None:
    from sources.simulator.marketplace import stage_marketplace

    again = stage_marketplace("tiny", settings)
    for kind in ("products", "images", "queries", "impressions", "behaviors", "users", "merchants"):
        assert pq.read_table(again / kind).equals(tiny.read(kind)), kind
