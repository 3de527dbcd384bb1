from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.training.captioning import PretrainingConfig
from models.training.contrastive import TrainingConfig
from models.training.pairs import make_pairs
from moonlake.embeddings.contents import content_of
from moonlake.errors import InputError
from studies.ladder_data import of_types
from studies.ladder_plan import ENCODER, SETTINGS, Plan, node_of, nodes_of, phases_of, rungs_of
from studies.ladder_report import FIRST_MLLM, summary
from studies.study_runner import settings_of

RUNGS = rungs_of(hard_negatives=2, queue=64, item_images=3)
STEPS = 10


def plan(work: Path, **settings: object) -> Plan:
    return Plan(work, "standard-1", ENCODER, {**SETTINGS, **settings}, (1, 2))


def test_every_trained_rung_takes_the_same_steps() -> None:
    sums = {rung.name: sum(phase.steps for phase in phases_of(rung, STEPS)) for rung in RUNGS}
    assert sums == {rung.name: STEPS if rung.trained else 0 for rung in RUNGS}


def test_a_rung_differs_from_the_one_before_in_one_thing_of_stage_2(tmp_path: Path) -> None:
    last = [node_of(rung, STEPS, 0).phases[-1] for rung in RUNGS[4:]]
    said = [(one.stage, one.hard_negatives, one.queue, one.item_images) for one in last]
    assert said == [(2, 0, 0, 1), (2, 2, 0, 1), (2, 2, 64, 1), (2, 2, 64, 3)]
    configs = [
        plan(tmp_path).config(node_of(rung, STEPS, 0), phase) for rung, phase in zip(RUNGS[4:], last, strict=True)
    ]
    assert all(isinstance(one, TrainingConfig) and one.batch_size == SETTINGS["batch_size"] for one in configs)


def test_shared_phases_are_computed_once_and_before_what_begins_with_them() -> None:
    nodes = nodes_of(RUNGS, STEPS, [0, 1])
    assert len(nodes) == len(set(nodes)) == 2 * 10  # stage 0 once, stage 1 after it once for all of stage 2
    for at, node in enumerate(nodes):
        assert node.parent is None or node.parent in nodes[:at]


def test_a_node_goes_by_all_that_decides_of_it(tmp_path: Path) -> None:
    node = node_of(RUNGS[3], STEPS, 0)
    paths = [
        plan(tmp_path).path(node, ""),
        plan(tmp_path, muon_rate=0.01).path(node, ""),
        plan(tmp_path).path(node_of(RUNGS[3], STEPS, 1), ""),
        plan(tmp_path).path(node_of(RUNGS[3], STEPS + 1, 0), ""),
        plan(tmp_path).path(node_of(RUNGS[2], STEPS, 0), ""),
    ]
    assert len(set(paths)) == len(paths)
    assert plan(tmp_path).path(node, "") == paths[0]


def test_settings_reach_the_stages_that_have_them(tmp_path: Path) -> None:
    node = node_of(RUNGS[4], STEPS, 3)
    described, paired, clean = (plan(tmp_path, temperature=0.2).config(node, phase) for phase in node.phases)
    assert isinstance(described, PretrainingConfig)
    assert isinstance(paired, TrainingConfig)
    assert isinstance(clean, TrainingConfig)
    assert (paired.stage, clean.stage, paired.temperature, paired.seed) == (1, 2, 0.2, 3)
    assert described.frozen_tower == paired.frozen_tower == 0.0


def test_a_setting_that_there_is_not_is_an_error() -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        settings_of(["speed=3"], {"steps"}, "--set")


def test_the_summary_agrees_with_hand_made_sums() -> None:
    floor, ceiling = np.array([20, 20, 20, 5]), np.array([1, 1, 1, 1])
    first = np.array([[1, 20, 20, 20], [1, 1, 20, 20]])  # hit@10 of two seeds: 1/4 and 2/4
    last = np.array([[1, 1, 1, 20], [1, 1, 20, 1]])  # 3/4 and 3/4
    rows = summary([(FIRST_MLLM, first), ("last", last)], floor, ceiling, np.arange(4), np.ones(4), cutoffs=(10,))
    pixels, mllm, top = rows
    assert [row.hit.value for row in rows] == [0.25, 0.375, 0.75]
    assert pixels.gap.value == 0
    assert mllm.gap.value == pytest.approx((0.375 - 0.25) / 0.75)
    assert top.gap.value == pytest.approx((0.75 - 0.25) / 0.75)
    assert pixels.to_before is None
    assert mllm.to_before is not None
    assert mllm.to_before.value == pytest.approx(0.125)
    assert mllm.to_first is None
    assert top.to_first == top.to_before
    assert top.to_first is not None
    assert top.to_first.value == pytest.approx(0.375)
    assert top.to_first.low <= 0.375 <= top.to_first.high


def test_a_rung_that_does_worse_shows_as_worse() -> None:
    places = np.ones((3, 50), np.int64)
    rows = summary(
        [(FIRST_MLLM, places), ("worse", places + 30)], places[0] + 99, places[0], np.arange(50), np.ones(50), (10,)
    )
    assert rows[-1].to_before is not None
    assert rows[-1].to_before.high < 0


def test_pairs_are_chosen_by_what_asks_and_what_is_shown() -> None:
    words, thing = content_of("red shoe", []), content_of("shoe", [])
    columns: dict[str, list[Any]] = {
        "anchor_content_id": [words.content_id, words.content_id],
        "positive_content_id": [thing.content_id, thing.content_id],
        "positive_product_id": ["p", "p"],
        "positive_spu_id": [None, None],
        "hard_negative_content_ids": [[], []],
        "pair_type": ["text_to_product", "text_to_text"],
        "event_timestamp": [0, 1],
    }
    pairs = make_pairs(columns, {one.content_id: one for one in (words, thing)}, {}, (8, 8))
    assert of_types(pairs, ["text_to_text"]).shown.tolist() == [2]
    assert len(of_types(pairs, [])) == 2
    assert len(of_types(pairs, ["image_to_product"])) == 0
    with pytest.raises(InputError, match="expected some of"):
        of_types(pairs, ["sound_to_product"])
