"""The commands that train and evaluate click models, on a small shop without Spark or Feast."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from deltalake import write_deltalake
from typer.testing import CliRunner

from cli.evaluate_ctr import evaluate_ctr
from cli.train_ctr import train_ctr
from models.ctr.config import MODELS
from models.ctr.model import CtrModel
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.snapshots import CONTROLS
from moonlake.errors import InputError, MoonlakeError, NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, TIMELESS
from moonlake.settings import Settings
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from sources.simulator.clicks import Catalogue, ClickModel, Requests, Shoppers
from sources.simulator.presets import BehaviorConfig
from workflows.train_ctr import ControlKind, Model

T1 = datetime(2026, 1, 1, tzinfo=UTC)
T2 = T1 + timedelta(days=3)
SMALL = ["--set", "hidden=[8]", "--set", "max_epochs=1", "--set", "behavior_length=2", "--set", "dense_features=[]",
         "--set", 'id_features=["product_id"]']  # fmt: skip
FEW_TREES = [*SMALL[4:], "--set", "trees.max_rounds=3", "--set", "trees.threads=1"]

app = typer.Typer()
app.command("train")(train_ctr)
app.command("evaluate")(evaluate_ctr)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with a space "encoder" and a training set "clicks" of four days, 400 impressions."""
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    settings, rng = Settings.from_environment(), np.random.default_rng(0)
    ids = [stable_hash(str(number)) for number in range(20)]
    definition = spaces.SpaceDefinition("w", "", "", "", ("title",), "mean", "l2", "float16", 4)
    stated: dict[str, Any] = {"name": "encoder", "artifact": "none", "trained_until": T1 - timedelta(days=1)}
    space_id = spaces.register(Lake(settings), definition, **stated, metrics={}, written_at=T1).space_id
    vectors = [row.tolist() for row in np.eye(4, dtype=np.float32)[rng.integers(0, 4, 20)]]
    rows = {"content_id": ids, "space_id": [space_id] * 20, "vector": vectors, "event_timestamp": [TIMELESS] * 20,
            "created_at": [T1] * 20}  # fmt: skip
    write_deltalake(Lake(settings).path("embeddings"), pa.table(rows, schema=arrow_schema(EMBEDDINGS)))
    product = rng.integers(0, 20, 400)
    labels = pa.table({
        "impression_id": [f"i{n:03}" for n in range(400)], "user_id": [f"u{n % 9}" for n in range(400)],
        "product_id": [f"p{n}" for n in product], "content_id": [ids[n] for n in product],
        "query_content_id": [ids[n] for n in rng.integers(0, 20, 400)], "clicked": rng.random(400) < 0.3,
        "event_timestamp": pa.array([T1 + timedelta(minutes=14 * n) for n in range(400)], pa.timestamp("us", "UTC")),
        **{f"behavior_{name}": pa.array([["x"]] * 400)
           for name in ("product_ids", "content_ids", "query_content_ids", "actions")},
        "behavior_times_us": pa.array([[0]] * 400),
    })  # fmt: skip
    manifest = Manifest(TrainingSetSpec("clicks", T1, T1 + timedelta(days=4)), {}, [], stable_hash(""), "test")
    write_training_set(settings.training_sets / "clicks", manifest, labels.select(["impression_id"]), [labels])
    return settings


def invoke(*words: str, fails: bool = False) -> str:
    """Output of a command, with --json the JSON alone; errors of ours come through as they are."""
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, MoonlakeError):
        raise result.exception
    assert (result.exit_code != 0) == fails, result.output
    return result.stdout if "--json" in words else result.output


def train(name: str, *words: str, small: list[str] = SMALL) -> str:
    return invoke("train", "clicks", "--name", name, "--end", T2.isoformat(), *small, *words)


def test_models_are_trained_measured_and_recorded(shop: Settings) -> None:
    train("ids")
    train("content", "--space", "encoder")
    output = invoke("evaluate", "content", "--on", "clicks", "--against", "ids")
    assert [line.split(":")[0] for line in output.splitlines() if ": AUC" in line] == ["ids", "content"]
    assert "content over ids, in brackets 95% intervals over users:" in output
    recorded = {row["name"]: row for row in Lake(shop).read("model_versions").to_pylist()}
    assert recorded["ids"]["space_id"] is None
    assert recorded["content"]["space_id"] == releases.find(Lake(shop), "encoder").space_id
    gain = json.loads(recorded["content"]["metrics"])["gain"]
    assert (gain["against"], gain["model_id"], gain["space_id"]) == ("ids", recorded["ids"]["model_id"], None)
    value, low, high = gain["auc"]
    assert f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" in output
    assert "gain" not in json.loads(recorded["ids"]["metrics"])


def test_a_control_is_labelled_wherever_its_figures_are(shop: Settings) -> None:
    words = ("--space", "encoder", "--control-seed", "7", "--control")
    for kind in ControlKind:
        label = f"NOTE: control: {kind} with seed 7"
        assert label in train(kind, *words, kind)
        assert label in invoke("evaluate", kind, "--on", "clicks")
    spaces_read = {row["space_id"] for row in Lake(shop).read("model_versions").to_pylist()}
    assert len(spaces_read | {releases.find(Lake(shop), "encoder").space_id}) == 3


def test_the_truth_of_a_simulation_is_read_and_labelled(shop: Settings, write_rows: Callable[..., None]) -> None:
    names, flat, none = [f"p{n}" for n in range(20)], np.zeros(20, np.float32), np.zeros(20, np.int64)
    styles = np.eye(20, dtype=np.float32)
    truth = ClickModel(
        BehaviorConfig(1, 1),
        Catalogue(names, styles, none, flat, flat, none, none),
        Shoppers(["u"], ["value"], flat[:1], styles[:1], styles[:1]),
        Requests(none[:1], none[:1], none[:1], none[:1], styles[:1]),
        (0, 1),
    )
    (shop.truth / "shop").mkdir(parents=True)
    truth.save(shop.truth / "shop", ["r"], ["q"])
    states = [{"product_id": f"p{n}", "content_id": stable_hash(str(n)), "event_timestamp": T1} for n in range(20)]
    write_rows(shop, "products", states)
    assert "NOTE: ceiling: true latents of shop, simulated" in train("ceiling", "--ceiling", "shop")
    assert "NOTE: ceiling: true latents of shop, simulated" in invoke("evaluate", "ceiling", "--on", "clicks")
    assert CtrModel.open(shop.artifacts / "ctr-ceiling").lineage.dimension == 20


def test_a_truth_that_there_is_not_is_an_error() -> None:
    with pytest.raises(NotFound, match="no truth"):
        train("ceiling", "--ceiling", "shop")


def test_a_model_is_trained_by_its_name(shop: Settings) -> None:
    train("ids", "--model", "id")
    train("trees", "--model", "trees", small=FEW_TREES)
    train("similarities", "--model", "trees", "--space", "encoder", small=FEW_TREES)
    output = invoke("evaluate", "trees", "similarities", "--on", "clicks", "--against", "ids")
    assert "similarities over ids, in brackets 95% intervals over users:" in output
    recorded = {row["name"]: row for row in Lake(shop).read("model_versions").to_pylist()}
    assert recorded["trees"]["space_id"] is None
    assert recorded["similarities"]["space_id"] == releases.find(Lake(shop), "encoder").space_id
    opened = {name: CtrModel.open(Path(row["artifact"])) for name, row in recorded.items()}
    assert {name: model.config.model for name, model in opened.items()} == {
        "ids": "id", "trees": "trees", "similarities": "trees",
    }  # fmt: skip
    assert opened["trees"].metrics["rounds"] <= 3


def test_without_a_name_it_is_attention_over_ids_and_with_a_space_content(shop: Settings) -> None:
    train("plain")
    train("content", "--space", "encoder")
    for name, model in (("plain", "din"), ("content", "cube")):
        assert CtrModel.open(shop.artifacts / f"ctr-{name}").config.model == model


def test_json_is_printed_in_place_of_lines() -> None:
    trained = json.loads(train("ids", "--json"))
    assert (trained["name"], trained["model"], trained["space_id"]) == ("ids", "din", None)
    measured = json.loads(invoke("evaluate", "ids", "--on", "clicks", "--json"))
    assert measured["models"]["ids"]["model_id"] == trained["model_id"]
    assert (measured["against"], measured["gains"], measured["segments"]) == (None, {}, [])


def test_the_names_of_models_and_controls_are_those_that_there_are() -> None:
    assert tuple(Model) == MODELS
    assert tuple(ControlKind) == CONTROLS


def test_figures_of_each_part_are_written_as_json(shop: Settings, write_rows: Callable[..., None]) -> None:
    listed = [T1 - timedelta(days=2 * n) for n in range(20)]
    states = [
        {"product_id": f"p{n}", "merchant_id": "m", "event_timestamp": at, "listed_at": at}
        for n, at in enumerate(listed)
    ]
    write_rows(shop, "products", states)
    write_rows(shop, "merchants", [{"merchant_id": "m", "tier": 2, "event_timestamp": min(listed)}])
    early = ("--end", (T1 + timedelta(days=1)).isoformat())
    train("ids", *early)
    train("content", "--space", "encoder", *early)
    file = shop.home / "figures.json"
    words = ("evaluate", "content", "--on", "clicks", "--against", "ids", "--segments", "--output", str(file))
    output = invoke(*words)
    found = json.loads(file.read_text())
    models = found["models"]
    assert list(models) == ["ids", "content"]
    assert models["content"]["metrics"]["impressions"] == 400 - 103  # one each 14 minutes, less the first day's
    assert set(found["gains"]["content"]) == {"auc", "gauc", "log_loss"}
    for metric in ("auc", "gauc", "log_loss"):
        value, low, high = found["gains"]["content"][metric]
        assert value == pytest.approx(models["content"]["metrics"][metric] - models["ids"]["metrics"][metric])
        assert low <= value <= high
    tier = next(one for one in found["segments"] if one["division"] == "merchant tier" and one["model"] == "content")
    assert tier["part"] == "tier 2"
    assert tier["metrics"] == models["content"]["metrics"]
    assert tier["auc_gain"][0] == pytest.approx(found["gains"]["content"]["auc"][0])
    assert "content by segment, gain in AUC over ids:" in output
    assert "merchant tier: tier 2" in output
    assert found["simulated"] == []


def test_the_gate_fails_where_the_gain_is_too_small() -> None:
    train("ids")
    train("other", "--seed", "1")
    output = invoke("evaluate", "other", "--on", "clicks", "--against", "ids", "--minimum-gain", "0.9", fails=True)
    assert "gate: AUC gain over ids must lie above +0.9000" in output
    invoke("evaluate", "other", "--on", "clicks", "--against", "ids", "--minimum-gain", "-0.9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--control", "random"), "--space"),
        (("--ceiling", "shop", "--space", "encoder"), "leave out --space"),
        (("--ceiling", "shop", "--model", "din"), "reads no vectors"),
        (("--set", "speed=1"), "speed"),
        (("--set", "speed"), "NAME=VALUE"),
        (("--set", "hidden=[8"), "JSON"),
        (("--set", "seed=3"), "no 'seed'"),
        (("--set", "trees.speed=1"), "speed"),
        (("--set", "trees.max_depth=3"), "trees.max_depth: model din"),
        (("--model", "trees"), "hidden.*: model trees"),
        (("--model", "cube"), "--space"),
        (("--model", "id", "--space", "encoder"), "reads no vectors"),
        (("--name", "../x"), "model name '../x': expected letters"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train("ids", *words)
