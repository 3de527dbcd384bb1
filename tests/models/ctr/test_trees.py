"""Trees as a click model: their columns against the rows and the job, and that they learn, stop and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.ctr import cube
from models.ctr.config import CtrConfig
from models.ctr.features import ROWS_AT_ONCE, EncodedRows, FeatureEncoder, column_reader
from models.ctr.model import CtrModel
from models.ctr.train import BatchReport, evaluate, gain, score, train_ctr
from models.ctr.trees import TreeColumns, Trees, TreesConfig
from moonlake.errors import InputError, SpaceMismatch
from moonlake.progress import EachNote
from moonlake.training_sets.training_set import TrainingSet
from spark_jobs.build_cube_features import similarity_rows

LENGTH = 4
GROWTH = TreesConfig(max_rounds=60, patience=10, max_depth=4, learning_rate=0.2, threads=1)
CONFIG = CtrConfig(model="trees", behavior_length=10, trees=GROWTH)
BRIEF = replace(CONFIG, trees=replace(GROWTH, max_rounds=4))


@pytest.fixture(scope="module")
def rows(world: Any) -> pa.Table:
    """More rows than a batch holds; some have no target, no query, or a behaviour, whose content is unknown."""
    rows = world.training_set.read().slice(0, ROWS_AT_ONCE + 150)
    for name, every in (("content_id", 11), ("query_content_id", 7)):
        values = [None if n % every == 0 else one for n, one in enumerate(rows[name].to_pylist())]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    contents = [
        ["f" * 32 if n % 5 == 0 and at == len(seen) - 1 else one for at, one in enumerate(seen)]
        for n, seen in enumerate(rows["behavior_content_ids"].to_pylist())
    ]
    return rows.set_column(rows.column_names.index("behavior_content_ids"), "behavior_content_ids", pa.array(contents))


@pytest.fixture(scope="module")
def encoder(rows: pa.Table) -> FeatureEncoder:
    fitted = np.arange(len(rows)) < 1000
    return FeatureEncoder.fit(
        column_reader(rows.select), fitted, ("product_id", "category", "brand"),
        ("price_cents", "user_ctr_7d"), min_count=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoded(rows: pa.Table, encoder: FeatureEncoder, world: Any) -> EncodedRows:
    return encoder.encode(column_reader(rows.select), world.snapshot)


@pytest.fixture(scope="module")
def model(world: Any) -> CtrModel:
    """Trees that read the similarities of the true space."""
    return train_ctr(world.training_set, world.snapshot, CONFIG, window=world.window)


def test_similarities_are_those_of_the_job(
    rows: pa.Table, encoder: FeatureEncoder, encoded: EncodedRows, world: Any
) -> None:
    """Each impression is given a user of its own, whose log is what the row says of behaviours."""
    impressions = rows.set_column(rows.column_names.index("user_id"), "user_id", rows["impression_id"])
    of_behavior = {
        name: pa.array([[one or None for one in seen] for seen in rows[f"behavior_{name}"].to_pylist()])
        for name in ("times_us", "actions", "product_ids", "content_ids", "query_content_ids")
    }
    log = pa.table({"user_id": rows["impression_id"], "month": ["2026-01"] * len(rows), **of_behavior})
    expected = similarity_rows(impressions, log, world.snapshot, LENGTH)
    columns = TreeColumns.of(encoder, TreesConfig(), LENGTH, content=True)
    found = columns.matrix(encoded, np.arange(len(rows)), world.snapshot.vectors)
    for name in ("target_query_similarity", *cube.ITEM_COLUMNS, *cube.SEARCH_COLUMNS):
        own = [at for at, one in enumerate(columns.names) if one == name or one.startswith(f"{name}_")]
        stated = np.array(expected[name].to_pylist(), np.float64).reshape(len(rows), -1)
        np.testing.assert_allclose(found[:, own], stated, atol=1e-5, err_msg=name)
    assert sum(expected["searches_used"].to_pylist()) > 0
    assert expected["target_query_similarity"].null_count > 0
    assert expected["behavior_similarity_max"].null_count > 0
    assert sum(expected["behaviors_missing"].to_pylist()) > 0


def test_tabular_columns_hold_what_the_rows_say_and_nan_for_what_they_do_not(
    rows: pa.Table, encoder: FeatureEncoder, encoded: EncodedRows
) -> None:
    columns = TreeColumns.of(encoder, TreesConfig(), LENGTH, content=False)
    assert columns.names == [
        "category", "brand", "price_cents", "user_ctr_7d", "behaviors_on_product", "behaviors_on_target", "searches",
    ]  # fmt: skip
    assert columns.types == ["c", "c", "q", "q", "q", "q", "q"]
    chosen = np.array([2100, 0, 1, 3])
    found = columns.matrix(encoded, chosen, None)
    known = encoder.vocabularies["category"].to_pylist()
    for line, row in zip(found, rows.take(pa.array(chosen)).to_pylist(), strict=True):
        latest = row["behavior_product_ids"][-LENGTH:]
        price = (np.log1p(row["price_cents"]) - encoder.centre[0]) / encoder.scale[0]
        expected = [
            known.index(row["category"]), np.nan if row["brand"] is None else 0, price, np.nan,
            sum(one != "" for one in latest), latest.count(row["product_id"]),
            row["behavior_actions"][-LENGTH:].count("search"),
        ]  # fmt: skip
        np.testing.assert_allclose(line, expected, atol=1e-5)
    assert columns.matrix(encoded, np.array([], np.int64), None).shape == (0, 7)


def test_an_id_that_training_hardly_saw_is_missing_and_ids_that_are_left_out_can_be_let_in(
    rows: pa.Table, encoder: FeatureEncoder, world: Any
) -> None:
    place = rows.column_names.index("category")
    unheard = rows.slice(0, 5).set_column(place, "category", pa.array(["unheard of"] * 5))
    columns = TreeColumns.of(encoder, TreesConfig(left_out=()), LENGTH, content=False)
    found = columns.matrix(encoder.encode(column_reader(unheard.select), None), np.arange(5), None)
    assert columns.names[:3] == ["product_id", "category", "brand"]
    assert np.isnan(found[:, 1]).all()


def test_similarities_gain_when_content_decides_and_shuffled_vectors_gain_nothing(world: Any, model: CtrModel) -> None:
    scores = {"true": score(model, world.training_set, world.snapshot, start=world.window[1])}
    for name, snapshot in (("none", None), ("shuffled", world.snapshot.shuffled(0))):
        other = train_ctr(world.training_set, snapshot, CONFIG, window=world.window)
        scores[name] = score(other, world.training_set, snapshot, start=world.window[1])
    assert gain(scores["true"], scores["none"]).low > 0.1
    assert abs(gain(scores["shuffled"], scores["none"]).value) < 0.03
    assert evaluate(scores["true"]).calibration == pytest.approx(1, abs=0.1)


def test_without_a_space_they_know_that_the_target_was_acted_on_before(
    world: Any, make_training_set: Callable[..., TrainingSet]
) -> None:
    """Else shuffled vectors, which are still like themselves, would seem to be worth something."""
    rows = world.training_set.read()
    seen = rows["behavior_product_ids"].to_pylist()
    products = [
        own[-1] if n % 2 and own[-1] else product
        for n, (product, own) in enumerate(zip(rows["product_id"].to_pylist(), seen, strict=True))
    ]
    again = [product in own for product, own in zip(products, seen, strict=True)]
    for name, values in (("product_id", products), ("clicked", again)):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    relabelled = make_training_set(rows)
    trees = train_ctr(relabelled, None, BRIEF, window=world.window)
    assert evaluate(score(trees, relabelled, start=world.window[1])).auc > 0.95


def test_an_artifact_is_the_model_and_opens_by_the_door_of_all_click_models(
    model: CtrModel, world: Any, tmp_path: Path
) -> None:
    saved = model.save(tmp_path / "model")
    opened = CtrModel.open(tmp_path / "model")
    assert set(opened.features.vocabularies) == {"product_id", "category", "brand", "merchant_id", "segment"}
    rows = world.training_set.read().slice(0, 50)
    assert isinstance(opened.predictor, Trees)
    np.testing.assert_array_equal(opened.predict(rows, world.snapshot), model.predict(rows, world.snapshot))
    assert (opened.config, opened.lineage, opened.metrics) == (model.config, model.lineage, model.metrics)
    assert opened.space_id == world.snapshot.space_id
    assert opened.model_id == saved.model_id == model.save(tmp_path / "again").model_id
    with pytest.raises(SpaceMismatch, match=world.snapshot.space_id):
        opened.predict(rows)
    (tmp_path / "model" / "trees.ubj").write_bytes(b"")
    with pytest.raises(InputError, match=r"trees\.ubj"):
        CtrModel.open(tmp_path / "model")


def test_the_same_seed_gives_the_same_model_and_another_seed_another(world: Any, tmp_path: Path) -> None:
    def trained(seed: int) -> str | None:
        model = train_ctr(world.training_set, None, replace(BRIEF, seed=seed), window=world.window)
        return model.save(tmp_path / "model").model_id

    first, again, other = trained(0), trained(0), trained(1)
    assert first == again != other
    config = replace(BRIEF, trees=replace(BRIEF.trees, subsample=1.0, colsample_bytree=1.0))
    rows = world.training_set.read().slice(0, 100)
    zero, one = (
        train_ctr(world.training_set, None, replace(config, seed=seed), window=world.window).predict(rows)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(zero, one)  # nothing is drawn


def test_rows_score_alone_as_they_do_among_others(model: CtrModel, world: Any) -> None:
    rows = world.training_set.read().slice(0, ROWS_AT_ONCE + 50)
    together = model.predict(rows, world.snapshot)
    for n in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 49):
        assert model.predict(rows.slice(n, 1), world.snapshot)[0] == pytest.approx(together[n], abs=1e-6)
    assert model.predict(rows.slice(0, 0), world.snapshot).shape == (0,)


def test_growth_stops_when_the_last_part_of_the_window_gets_worse(world: Any) -> None:
    reports: list[BatchReport] = []
    config = replace(CONFIG, trees=replace(GROWTH, max_rounds=500, learning_rate=0.5, patience=3))
    model = train_ctr(world.training_set, None, config, window=world.window, progress=EachNote(reports.append))
    assert isinstance(model.predictor, Trees)
    rounds, rows = model.metrics["rounds"], model.metrics["training_rows"]
    assert model.predictor.booster.num_boosted_rounds() == rounds
    assert [one.epoch for one in reports] == list(range(1, int(rounds) + 4))
    assert (reports[-1].samples, reports[-1].total) == (len(reports) * rows, 500 * rows)
    assert model.metrics["validation_log_loss"] == pytest.approx(min(one.loss for one in reports))


def test_without_a_tree_that_splits_the_score_is_the_click_rate(world: Any) -> None:
    config = replace(BRIEF, validation_share=0.01, trees=replace(GROWTH, max_rounds=1, min_child_weight=1e9))
    model = train_ctr(world.training_set, None, config, window=world.window)
    rows = world.training_set.read(None, *world.window)
    rate = np.mean(rows["clicked"].to_numpy()[: int(model.metrics["training_rows"])])
    np.testing.assert_allclose(model.predict(rows.slice(0, 20)), rate, atol=1e-3)


def test_rows_of_one_class_are_refused(world: Any, make_training_set: Callable[..., TrainingSet]) -> None:
    rows = world.training_set.read()
    never = rows.set_column(rows.column_names.index("clicked"), "clicked", pa.array([False] * len(rows)))
    with pytest.raises(InputError, match=r"^0% of .* clicked"):
        train_ctr(make_training_set(never), None, BRIEF, window=world.window)
    with pytest.raises(InputError, match="max_depth"):
        TreesConfig(max_depth=0)
