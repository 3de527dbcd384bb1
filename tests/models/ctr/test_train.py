"""Training and measuring by the protocol, on clicks that content decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from models.ctr.config import MODELS, CtrConfig
from models.ctr.train import IN_SAMPLE, BatchReport, evaluate, gain, record_model, score, train_ctr
from models.ctr.training_rows import FEW_CLICKS, SAW_THE_ROWS
from models.ctr.trees import TreesConfig
from models.evaluation.click_metrics import log_loss
from moonlake.errors import InputError, PointInTimeError, SpaceMismatch
from moonlake.lake.lake import Lake
from moonlake.progress import EachNote
from moonlake.training_sets.training_set import TrainingSet

CONFIG = CtrConfig(behavior_length=10, batch_size=512, max_epochs=4)
CONTENT = replace(CONFIG, model="cube")
BRIEF = replace(CONFIG, max_epochs=1, hidden=(8,))


def test_content_beats_ids_when_content_decides_and_shuffled_vectors_do_not(world: Any) -> None:
    scores = {}
    for name, snapshot, config in (
        ("ids", None, CONFIG), ("content", world.snapshot, CONTENT), ("shuffled", world.snapshot.shuffled(0), CONTENT),
    ):  # fmt: skip
        model = train_ctr(world.training_set, snapshot, config, window=world.window)
        scores[name] = score(model, world.training_set, snapshot, start=world.window[1])
    found = {name: evaluate(rows).auc for name, rows in scores.items()}
    assert found["content"] > found["ids"] + 0.15
    assert found["shuffled"] < found["ids"] + 0.03
    assert gain(scores["content"], scores["ids"]).low > 0.1
    assert gain(scores["shuffled"], scores["ids"], "gauc").value < 0.03
    with pytest.raises(InputError, match="same impressions"):
        gain(scores["content"], scores["ids"].slice(1))


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_randomness_alone(world: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [train_ctr(world.training_set, None, BRIEF, window=world.window) for _ in range(2)]
    assert torch.rand(1) == expected
    rows = world.training_set.read().slice(0, 100)
    np.testing.assert_array_equal(models[0].predict(rows), models[1].predict(rows))
    assert not np.array_equal(
        train_ctr(world.training_set, None, replace(BRIEF, seed=1), window=world.window).predict(rows),
        models[0].predict(rows),
    )


def test_rows_outside_the_window_are_not_trained_on(world: Any, make_training_set: Callable[..., TrainingSet]) -> None:
    rows = world.training_set.read()
    later = pc.greater_equal(rows["event_timestamp"], pa.scalar(world.window[1], rows["event_timestamp"].type))
    flipped = pc.if_else(later, pc.invert(rows["clicked"]), rows["clicked"])
    other = make_training_set(rows.set_column(rows.column_names.index("clicked"), "clicked", flipped))
    first, second = (train_ctr(one, None, BRIEF, window=world.window) for one in (world.training_set, other))
    np.testing.assert_array_equal(first.predict(rows.slice(0, 100)), second.predict(rows.slice(0, 100)))


def test_a_space_that_knows_the_window_is_refused_unless_asked_for_by_name(world: Any) -> None:
    first = pc.min(world.training_set.read(["event_timestamp"])["event_timestamp"]).as_py()
    knowing = replace(world.snapshot, trained_until=first)
    config = replace(BRIEF, model="cube")
    with pytest.raises(PointInTimeError, match=knowing.space_id):
        train_ctr(world.training_set, knowing, config, window=world.window)
    labelled = train_ctr(world.training_set, knowing, config, window=world.window, allow_seen_rows=True)
    assert labelled.lineage.labels == (SAW_THE_ROWS,)
    just_before = replace(world.snapshot, trained_until=first - timedelta(microseconds=1))
    assert train_ctr(world.training_set, just_before, config, window=world.window).lineage.labels == ()


def test_a_control_is_labelled(world: Any) -> None:
    config = replace(BRIEF, model="cube")
    model = train_ctr(world.training_set, world.snapshot.shuffled(4), config, window=world.window)
    assert model.lineage.labels == ("control: shuffled with seed 4",)


def test_test_rows_before_the_end_of_training_are_refused_unless_asked_for_by_name(world: Any) -> None:
    model = train_ctr(world.training_set, None, BRIEF, window=world.window)
    early = world.window[1] - timedelta(hours=1)
    with pytest.raises(PointInTimeError, match="trained on rows until"):
        score(model, world.training_set, start=early)
    scored = score(model, world.training_set, start=early, allow_trained_rows=True)
    assert scored.schema.metadata == {b"label": IN_SAMPLE.encode()}
    assert score(model, world.training_set, start=world.window[1]).schema.metadata is None


def test_a_training_set_of_another_space_is_refused(world: Any) -> None:
    spec = replace(world.training_set.manifest.spec, space_id="f" * 32)
    other = replace(world.training_set, manifest=replace(world.training_set.manifest, spec=spec))
    with pytest.raises(SpaceMismatch, match="f" * 32):
        train_ctr(other, world.snapshot, replace(BRIEF, model="cube"), window=world.window)


def test_content_and_snapshot_go_together(world: Any) -> None:
    with pytest.raises(InputError, match="model cube needs a snapshot"):
        train_ctr(world.training_set, None, CONTENT, window=world.window)
    with pytest.raises(InputError, match="model din needs no snapshot"):
        train_ctr(world.training_set, world.snapshot, CONFIG, window=world.window)
    with pytest.raises(InputError, match="model id needs no snapshot"):
        train_ctr(world.training_set, world.snapshot, replace(CONFIG, model="id"), window=world.window)


def test_every_model_keeps_to_the_protocol_and_is_scored_alike(world: Any) -> None:
    first = pc.min(world.training_set.read(["event_timestamp"])["event_timestamp"]).as_py()
    knowing = replace(world.snapshot, trained_until=first)
    for model in MODELS:
        read = world.snapshot if model in ("cube", "trees") else None
        config = replace(BRIEF, model=model, trees=TreesConfig(max_rounds=3, threads=1))
        if read is not None:
            with pytest.raises(PointInTimeError, match=knowing.space_id):
                train_ctr(world.training_set, knowing, config, window=world.window)
        trained = train_ctr(world.training_set, read, config, window=world.window)
        assert trained.space_id == (None if read is None else read.space_id)
        assert {"validation_log_loss", "training_rows", "validation_rows", "contents_missing"} <= set(trained.metrics)
        with pytest.raises(PointInTimeError, match="trained on rows until"):
            score(trained, world.training_set, read, start=first)
        scores = score(trained, world.training_set, read, start=world.window[1])["score"].to_numpy()
        assert np.all((scores > 0) & (scores < 1))


def test_behaviours_mean_nothing_to_a_model_of_ids_and_something_to_one_with_attention(world: Any) -> None:
    rows = world.training_set.read().slice(0, 100)
    empty = rows
    for name in ("product_ids", "content_ids", "query_content_ids", "actions", "times_us"):
        place = rows.column_names.index(f"behavior_{name}")
        none = pa.array([[]] * len(rows), rows.schema.field(place).type)
        empty = empty.set_column(place, f"behavior_{name}", none)
    ids, din = (
        train_ctr(world.training_set, None, replace(BRIEF, model=model), window=world.window) for model in ("id", "din")
    )
    np.testing.assert_array_equal(ids.predict(empty), ids.predict(rows))
    assert not np.allclose(din.predict(empty), din.predict(rows))


def test_a_window_without_rows_is_named(world: Any) -> None:
    year = timedelta(days=365)
    window = tuple(edge + year for edge in world.window)
    with pytest.raises(InputError, match="2027"):
        train_ctr(world.training_set, None, BRIEF, window=window)


def test_training_stops_when_the_last_part_of_the_window_gets_worse(world: Any) -> None:
    config = replace(CONFIG, max_epochs=50, learning_rate=0.02, patience=1)
    reports: list[BatchReport] = []
    model = train_ctr(world.training_set, None, config, window=world.window, progress=EachNote(reports.append))
    assert reports[-1].epoch == model.metrics["epochs"] + 2 < 50
    assert reports[-1].samples == reports[-1].epoch * model.metrics["training_rows"]


def test_recording_a_model_enters_one_row_and_a_second_time_nothing(world: Any, lake: Lake, tmp_path: Path) -> None:
    model = train_ctr(world.training_set, None, BRIEF, window=world.window).save(tmp_path / "model")
    test = evaluate(score(model, world.training_set, start=world.window[1]))
    facts: dict[str, Any] = {"name": "ids", "artifact": tmp_path / "model"}
    written_at = datetime.fromisoformat("2026-02-01T00:00+00:00")
    assert record_model(lake, model, test, **facts, written_at=written_at).written == 1
    assert record_model(lake, model, test, **facts, written_at=written_at + timedelta(days=1)).written == 0
    row = lake.read("model_versions").to_pylist()[0]
    assert (row["model_id"], row["space_id"], row["name"]) == (model.model_id, None, "ids")
    assert json.loads(row["metrics"])["test"]["auc"] == pytest.approx(test.auc)
    assert row["training_set_id"] == world.training_set.manifest.training_set_id


def test_evaluate_measures_a_segment(world: Any) -> None:
    model = train_ctr(world.training_set, None, BRIEF, window=world.window)
    scored = score(model, world.training_set, start=world.window[1])
    first = np.arange(len(scored)) < 500
    assert evaluate(scored, first) == evaluate(scored.slice(0, 500))
    assert evaluate(scored).impressions == len(scored)


def test_ids_alone_tell_that_the_target_was_acted_on_before(
    world: Any, make_training_set: Callable[..., TrainingSet]
) -> None:
    """Else a shuffled snapshot, in which a content is still like itself, would seem to be worth something."""
    rows = world.training_set.read()
    products = [
        seen[-1] if n % 2 and seen[-1] else product
        for n, (product, seen) in enumerate(
            zip(rows["product_id"].to_pylist(), rows["behavior_product_ids"].to_pylist(), strict=True)
        )
    ]
    again = [product in seen for product, seen in zip(products, rows["behavior_product_ids"].to_pylist(), strict=True)]
    for name, values in (("product_id", products), ("clicked", again)):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    relabelled = make_training_set(rows)
    model = train_ctr(relabelled, None, replace(CONFIG, max_epochs=2), window=world.window)
    assert evaluate(score(model, relabelled, start=world.window[1])).auc > 0.95


@pytest.mark.parametrize("name", ["cube", "trees"])
def test_a_calibrated_model_keeps_its_order_and_is_calibrated_wherever_it_is_asked(
    world: Any, tmp_path: Path, name: Any
) -> None:
    growth = TreesConfig(max_rounds=12, threads=1)
    plain = replace(CONFIG, model=name, max_epochs=2, trees=growth, validation_share=0.4)
    start, rows = world.window[1], world.training_set.read(start=world.window[1])
    raw = train_ctr(world.training_set, world.snapshot, plain, window=world.window)
    before = evaluate(score(raw, world.training_set, world.snapshot, start=start))
    for method in ("platt", "isotonic"):
        config = replace(plain, calibration=method)
        model = train_ctr(world.training_set, world.snapshot, config, window=world.window).save(tmp_path / method)
        scored = score(model, world.training_set, world.snapshot, start=start)
        assert raw.calibrator is None
        assert model.calibrator is not None
        expected = model.calibrator(raw.predict(rows, world.snapshot))
        np.testing.assert_array_equal(scored["score"].to_numpy(), expected)
        np.testing.assert_array_equal(model.predict(rows, world.snapshot), expected)
        after = evaluate(scored)
        assert after.auc == pytest.approx(before.auc, abs=0 if method == "platt" else 0.01)
        assert after.calibration_error < 0.04
        assert (tmp_path / method / "calibration.json").exists()
    assert raw.save(tmp_path / "raw").calibrator is None


def relabelled(rows: pa.Table, clicked: np.ndarray) -> pa.Table:
    return rows.set_column(rows.column_names.index("clicked"), "clicked", pa.array(clicked))


@pytest.mark.parametrize("name", ["din", "trees"])
def test_few_clicks_to_stop_by_are_said_and_none_is_an_error(
    world: Any, make_training_set: Callable[..., TrainingSet], name: Any
) -> None:
    config = replace(BRIEF, model=name, trees=TreesConfig(max_rounds=2, threads=1))
    rows = world.training_set.read()
    end = pa.scalar(world.window[1], rows["event_timestamp"].type)
    last = pc.sum(pc.less(rows["event_timestamp"], end)).as_py() - 1
    with pytest.raises(InputError, match=r"^100% of 10485 training rows are clicked: there is nothing to learn"):
        train_ctr(make_training_set(relabelled(rows, np.ones(len(rows), bool))), None, config, window=world.window)
    clicked = np.arange(len(rows)) % 7 == 0
    clicked[last - 2000 :] = False
    with pytest.raises(InputError, match=r"0 of the 1165 last rows.*validation_share, now 0\.1"):
        train_ctr(make_training_set(relabelled(rows, clicked)), None, config, window=world.window)
    clicked[last - 2 : last + 1] = True
    few = make_training_set(relabelled(rows, clicked))
    with pytest.raises(InputError, match=r"calibration platt needs 50 clicks.*holds 3 clicks in 1165"):
        train_ctr(few, None, replace(config, calibration="platt"), window=world.window)
    model = train_ctr(few, None, config, window=world.window)
    assert model.lineage.labels == (f"{FEW_CLICKS}: 3 of 1165",)
    fitted = clicked[: last + 1 - 1165]
    expected = log_loss(clicked[last + 1 - 1165 : last + 1], np.full(1165, fitted.mean()))
    assert model.metrics["constant_log_loss"] == pytest.approx(expected)
