"""The click model as an object: what it refuses, and that an artifact is the model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifacts import read_artifact
from models.ctr.config import NEVER_FEATURES, CtrConfig, ctr_config
from models.ctr.model import CtrModel
from models.ctr.network import CtrNetwork
from models.ctr.train import train_ctr
from models.ctr.trees import TreesConfig
from moonlake.errors import InputError, NotFound, PointInTimeError, SpaceMismatch
from moonlake.hashing import stable_hash
from moonlake.training_sets.labels import NEVER_ENTER


@pytest.fixture(scope="module")
def model(world: Any) -> CtrModel:
    """A content model after one epoch."""
    config = CtrConfig(model="cube", behavior_length=8, hidden=(16,), max_epochs=1, seed=3)
    return train_ctr(world.training_set, world.snapshot, config, window=world.window)


@pytest.mark.parametrize("name", sorted(NEVER_FEATURES))
def test_what_follows_the_impression_is_refused_as_a_feature(name: str) -> None:
    with pytest.raises(PointInTimeError, match=name):
        CtrConfig(dense_features=("price_cents", name))
    with pytest.raises(PointInTimeError, match=name):
        ctr_config({"id_features": ["product_id", name]}, where="a file")


def test_position_and_label_are_among_what_is_never_a_feature() -> None:
    assert {"position", "clicked", "propensity", "label_time"} <= set(NEVER_FEATURES)
    assert set(NEVER_ENTER) <= set(NEVER_FEATURES)
    assert not set(NEVER_FEATURES) & {*CtrConfig().id_features, *CtrConfig().dense_features}


def test_unknown_keys_and_impossible_values_are_errors() -> None:
    with pytest.raises(InputError, match="learning_speed"):
        ctr_config({"learning_speed": 1}, where="a file")
    with pytest.raises(InputError, match="product_id"):
        CtrConfig(id_features=("user_id",))
    with pytest.raises(InputError, match="validation_share"):
        CtrConfig(validation_share=0.0)
    with pytest.raises(InputError, match="calibration is one of none, platt, isotonic, found 'sigmoid'"):
        ctr_config({"calibration": "sigmoid"}, where="a file")
    with pytest.raises(InputError, match="hashed: shop_id"):
        CtrConfig(hashed={"shop_id": 10})
    for rows in (0, 1.5, 1000.0, True, "many", 2**31):
        with pytest.raises(InputError, match=f"user_id with {rows!r} rows"):
            ctr_config({"hashed": {"user_id": rows}}, where="a file")
    with pytest.raises(InputError, match="hashed is rows by id feature"):
        ctr_config({"hashed": 5}, where="a file")
    with pytest.raises(InputError, match="trees split by each id of brand"):
        CtrConfig(model="trees", hashed={"brand": 10})
    with pytest.raises(InputError, match="model is one of id, din, cube, trees, found 'forest'"):
        ctr_config({"model": "forest"}, where="a file")
    with pytest.raises(InputError, match=r"(?s)a file: trees.*depth"):
        ctr_config({"trees": {"depth": 3}}, where="a file")


def test_a_configuration_is_what_its_saved_form_says() -> None:
    growth = TreesConfig(left_out=("user_id",), max_depth=3)
    config = CtrConfig(model="trees", hashed={"user_id": 10}, trees=growth)
    assert ctr_config(json.loads(json.dumps(asdict(config))), where="a file") == config


def test_an_artifact_is_the_model(model: CtrModel, world: Any, tmp_path: Path) -> None:
    saved = model.save(tmp_path / "model")
    opened = CtrModel.open(tmp_path / "model")
    rows = world.training_set.read().slice(0, 50)
    np.testing.assert_array_equal(opened.predict(rows, world.snapshot), model.predict(rows, world.snapshot))
    assert opened.model_id == saved.model_id
    assert (opened.config, opened.lineage, opened.metrics) == (model.config, model.lineage, model.metrics)
    assert opened.space_id == world.snapshot.space_id


def test_the_model_id_follows_from_weights_and_configuration(model: CtrModel, tmp_path: Path) -> None:
    first = model.save(tmp_path / "one").model_id
    assert model.save(tmp_path / "two").model_id == first
    assert replace(model, config=replace(model.config, seed=4)).save(tmp_path / "three").model_id != first
    assert isinstance(model.predictor, CtrNetwork)
    bias = model.predictor.predictor[-1].bias
    assert isinstance(bias, torch.Tensor)
    with torch.no_grad():
        bias += 1
        assert model.save(tmp_path / "four").model_id != first
        bias -= 1


def test_an_artifact_from_before_models_had_names_opens_with_the_id_that_it_had(
    model: CtrModel, world: Any, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "ctr.json"
    document = json.loads(file.read_text())
    old = {"content": True, **document["config"]}
    del old["model"], old["trees"]
    file.write_text(json.dumps({**document, "config": old}))
    opened = CtrModel.open(tmp_path / "model")
    rows = world.training_set.read().slice(0, 20)
    assert opened.config == model.config
    np.testing.assert_array_equal(opened.predict(rows, world.snapshot), model.predict(rows, world.snapshot))
    exact = json.dumps([read_artifact(tmp_path / "model", "ctr").files_hash("*"), old], sort_keys=True)
    assert opened.model_id == stable_hash(exact)


def test_a_damaged_artifact_is_refused(model: CtrModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "model" / "vocabulary.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"vocabulary\.parquet"):
        CtrModel.open(tmp_path / "model")
    with pytest.raises(NotFound, match="nowhere"):
        CtrModel.open(tmp_path / "nowhere")


def test_a_snapshot_of_another_space_or_none_is_refused(model: CtrModel, world: Any) -> None:
    rows = world.training_set.read().slice(0, 2)
    other = world.snapshot.shuffled(0)
    with pytest.raises(SpaceMismatch, match=f"(?s){model.space_id}.*{other.space_id}"):
        model.predict(rows, other)
    with pytest.raises(SpaceMismatch, match=f"{model.space_id}.*no snapshot"):
        model.predict(rows)


def test_one_row_scores_as_it_does_among_others(model: CtrModel, world: Any) -> None:
    rows = world.training_set.read().slice(0, 200)
    together = model.predict(rows, world.snapshot)
    alone = [model.predict(rows.slice(n, 1), world.snapshot)[0] for n in range(0, 200, 40)]
    np.testing.assert_allclose(alone, together[::40], atol=1e-6)


def test_all_contents_unknown_is_a_score_like_any_other(model: CtrModel, world: Any) -> None:
    rows = world.training_set.read().slice(0, 20)
    place = rows.column_names.index("content_id")
    scores = model.predict(rows.set_column(place, "content_id", rows["impression_id"]), world.snapshot)
    assert np.all((scores > 0) & (scores < 1))
