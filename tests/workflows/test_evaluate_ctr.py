"""Click models trained, measured and priced from Python: values come back, and no command line is needed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.evaluate_ctr import evaluate_ctr
from workflows.evaluate_encoder import Task
from workflows.exchange_rate import measure_exchange_rate
from workflows.train_ctr import ControlKind, Model, TrainedCtr, chosen_model, config_of, train_ctr, vectors_of

START = datetime(2026, 1, 1, tzinfo=UTC)
T2, END = START + timedelta(days=3), START + timedelta(days=4)
PAGE = Path(__file__).parents[2] / "docs/workflows.md"
SMALL = {"hidden": [8], "max_epochs": 1, "behavior_length": 2, "dense_features": [], "id_features": ["product_id"]}


def train(shop: Settings, name: str, space: str | None = None, control: ControlKind | None = None) -> TrainedCtr:
    vectors = vectors_of(shop, space, control=control, control_seed=7)
    config = config_of(chosen_model(None, content=vectors is not None), SMALL)
    return train_ctr(shop, "clicks", name, config, vectors, end=T2)


def test_models_are_trained_measured_and_recorded(shop: Settings) -> None:
    ids, content = train(shop, "ids"), train(shop, "content", "true")
    shuffled = train(shop, "shuffled", "true", ControlKind.SHUFFLED)
    assert [one.model.config.model for one in (ids, content, shuffled)] == ["din", "cube", "cube"]
    assert ids.folder == shop.artifacts / "ctr-ids"
    assert json.loads(json.dumps(shuffled.as_json()))["labels"][0] == "control: shuffled with seed 7"
    found = evaluate_ctr(shop, ["content", "shuffled"], "clicks", against="ids", written_at=END)
    assert list(found.models) == ["ids", "content", "shuffled"]
    assert len(found.models["ids"].scored) == found.models["ids"].metrics.impressions == 100
    assert list(found.gains) == ["content", "shuffled"]
    assert found.gains["content"]["auc"].value == pytest.approx(
        found.models["content"].metrics.auc - found.models["ids"].metrics.auc
    )
    assert set(found.without_gain(1.0)) == {"content", "shuffled"}
    assert not found.without_gain(-1.0)
    assert {row["name"] for row in Lake(shop).read("model_versions").to_pylist()} == set(found.models)
    assert "scored" not in json.dumps(found.as_json())


def test_the_exchange_rate_of_two_spaces(shop: Settings) -> None:
    names = ["true", "noise"]
    for name in names:
        train(shop, f"on-{name}", name)
    evaluate_ctr(shop, [f"on-{name}" for name in names], "clicks", written_at=END)
    found = measure_exchange_rate(shop, names, "clicks", (T2, END), tasks=[Task.IMAGE_SEARCH])
    assert [one.space.name for one in found.subjects] == names
    assert (found.impressions, found.users, found.tested_from) == (100, 9, T2)
    assert {task: size.trials for task, size in found.trials.items()} == {"image_search": 20}
    assert [one["models"][0]["name"] for one in found.as_json()["spaces"]] == ["on-true", "on-noise"]
    with pytest.raises(InputError, match="two or more different spaces"):
        measure_exchange_rate(shop, ["true"], "clicks", (T2, END))


def test_a_model_that_does_not_fit_what_it_would_read_is_refused(shop: Settings) -> None:
    with pytest.raises(InputError, match="cube reads the vectors of a space"):
        train_ctr(shop, "clicks", "x", config_of(Model.CUBE, SMALL), end=T2)
    with pytest.raises(InputError, match="id reads no vectors"):
        train_ctr(shop, "clicks", "x", config_of(Model.ID, SMALL), vectors_of(shop, "true"), end=T2)
    with pytest.raises(InputError, match=r"model name '\.\./x'"):
        train_ctr(shop, "clicks", "../x", config_of(Model.ID, SMALL), end=T2)


def test_the_example_of_the_page_runs(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(shop.home))
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    small = "dense_features=(), id_features=('product_id',), max_epochs=1, model="
    names: dict[str, Any] = {}
    exec(compile(code.replace('"next"', '"true"').replace("model=", small), PAGE.name, "exec"), names)
    assert names["recall"].hit_rates[0].value == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
