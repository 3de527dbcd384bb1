"""`moonlake evaluate exchange-rate` on a small shop of three spaces, each nearer to the truth, without Spark."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from typer.testing import CliRunner

from cli.evaluate_ctr import evaluate_ctr
from cli.evaluate_exchange_rate import exchange_rate
from cli.train_ctr import train_ctr
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import content_of
from moonlake.errors import InputError, MoonlakeError, NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec

T1 = datetime(2026, 1, 1, tzinfo=UTC)
T2, END = T1 + timedelta(days=3), T1 + timedelta(days=5)
PRODUCTS, IMPRESSIONS = 60, 1_500
SPACES = {"first": 2.0, "second": 0.8, "third": 0.1}
"""Name of each space, and how much noise its vectors hold beside the truth."""
BEHAVIORS = ("product_ids", "content_ids", "query_content_ids", "actions")
SMALL = ["--set", "hidden=[16]", "--set", "max_epochs=4", "--set", "behavior_length=2", "--set", "dense_features=[]",
         "--set", 'id_features=["product_id"]', "--set", "learning_rate=0.02", "--set", "batch_size=64"]  # fmt: skip
WINDOW = ["--on", "clicks", "--start", T2.isoformat(), "--end", END.isoformat()]
ASKED = [*SPACES, *WINDOW]
CUBE = ["--models", "cube-*"]

app = typer.Typer()
app.command("train")(train_ctr)
app.command("evaluate")(evaluate_ctr)
app.command("rate")(exchange_rate)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., None]) -> Settings:
    """A lake with three spaces, a training set "clicks", and two recorded CTR models on each space."""
    torch.set_num_threads(1)
    settings, rng = Settings(home=tmp_path_factory.mktemp("shop")), np.random.default_rng(0)
    styles = unit(rng.normal(size=(PRODUCTS, 6)))
    products = [content_of(f"product {at}", []) for at in range(PRODUCTS)]
    queries = [content_of(None, [f"x{at}"]) for at in range(PRODUCTS)]
    write_rows(settings, "products", [
        {"product_id": f"p{at}", "title": one.text, "content_id": one.content_id, "event_timestamp": T1}
        for at, one in enumerate(products)
    ])  # fmt: skip
    write_rows(settings, "queries", [
        {"query_id": f"q{at}", "modality": "image", "image_ids": list(one.image_ids), "content_id": one.content_id}
        for at, one in enumerate(queries)
    ])  # fmt: skip
    write_rows(settings, "behaviors", [
        {"behavior_id": f"b{at}", "user_id": f"u{at}", "action": "purchase", "product_id": f"p{at}",
         "query_id": f"q{at}", "event_timestamp": T2 + timedelta(minutes=at)} for at in range(PRODUCTS)
    ])  # fmt: skip
    for name, noise in SPACES.items():
        space_id = enter_space(settings, name)
        vectors = [unit(styles + noise * unit(rng.normal(size=styles.shape))) for _ in range(2)]
        write_rows(settings, "embeddings", [
            {"content_id": one.content_id, "vector": vector.tolist(), "space_id": space_id, "event_timestamp": TIMELESS}
            for contents, of_side in zip((products, queries), vectors, strict=True)
            for one, vector in zip(contents, of_side, strict=True)
        ])  # fmt: skip
    asked, shown = rng.integers(0, PRODUCTS, (2, IMPRESSIONS))
    appeal = (styles[asked] * styles[shown]).sum(1)
    labels = pa.table({
        "impression_id": [f"i{n:04}" for n in range(IMPRESSIONS)],
        "user_id": [f"u{n % 50}" for n in range(IMPRESSIONS)],
        "product_id": [f"p{n}" for n in shown], "content_id": [products[n].content_id for n in shown],
        "query_content_id": [queries[n].content_id for n in asked],
        "clicked": rng.random(IMPRESSIONS) < 1 / (1 + np.exp(1 - 6 * appeal)),
        "event_timestamp": pa.array(
            [T1 + n * (END - T1) / IMPRESSIONS for n in range(IMPRESSIONS)], pa.timestamp("us", "UTC")
        ),
        **{f"behavior_{name}": pa.array([["x"]] * IMPRESSIONS) for name in BEHAVIORS},
        "behavior_times_us": pa.array([[0]] * IMPRESSIONS),
    })  # fmt: skip
    manifest = Manifest(TrainingSetSpec("clicks", T1, END), {}, [], stable_hash(""), "test")
    write_training_set(settings.training_sets / "clicks", manifest, labels.select(["impression_id"]), [labels])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOONLAKE_HOME", str(settings.home))
        names = [f"cube-{space}-{seed}" for space in SPACES for seed in (0, 1)]
        for name in names:
            _, space, seed = name.split("-")
            train(name, "--space", space, "--seed", seed)
        invoke("evaluate", *names, "--on", "clicks")
    return settings


@pytest.fixture(autouse=True)
def _at_home(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(shop.home))


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found.astype(np.float16).astype(np.float32)


def enter_space(settings: Settings, name: str, trained_until: datetime = T1 - timedelta(days=1)) -> str:
    definition = spaces.SpaceDefinition(name, "", "", "", ("title",), "mean", "l2", "float16", 6)
    stated: dict[str, Any] = {"name": name, "artifact": "none", "trained_until": trained_until}
    return spaces.register(Lake(settings), definition, **stated, metrics={}, written_at=T1).space_id


def train(name: str, *words: str) -> str:
    return invoke("train", "clicks", "--name", name, "--end", T2.isoformat(), *SMALL, *words)


def invoke(*words: str) -> str:
    """Output of a command; errors of ours come through as they are."""
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, MoonlakeError):
        raise result.exception
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    return result.output


def test_the_table_the_file_and_the_picture_say_the_same(tmp_path: Path) -> None:
    file, picture = tmp_path / "rates.json", tmp_path / "rates.svg"
    printed = invoke("rate", *ASKED, *CUBE, "--output", str(file), "--plot", str(picture))
    found = json.loads(file.read_text())
    assert [one["name"] for one in found["spaces"]] == list(SPACES)
    assert [[model["seed"] for model in one["models"]] for one in found["spaces"]] == [[0, 1]] * 3
    hits = [one["metrics"]["image_search_hit_10"][0] for one in found["spaces"]]
    aucs = [one["target"][0] for one in found["spaces"]]
    assert hits == sorted(hits)
    assert aucs == sorted(aucs)
    assert aucs[2] > aucs[0] + 0.05
    first = next(one for one in found["predictors"] if one["metric"] == "image_search_hit_10")
    assert first["spearman"][0] == 1
    assert f"r {first['pearson']:+.3f}" in printed
    assert f"first: AUC {aucs[0]:.4f}" in printed
    assert "2 runs" in printed
    # Of 60 products two of three hit rates at 50 are about the same: noise has no rate.
    assert [pair["rate"] for pair in found["pairs"]].count(None) == printed.count("(blank: noise)") > 0
    for line in found["verdict"]:
        assert line in printed
    texts = [one.text for one in ET.fromstring(picture.read_text()).iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "second", "third", "image_search_hit_10"} <= set(texts)


def test_the_file_names_what_was_measured(tmp_path: Path, shop: Settings) -> None:
    file = tmp_path / "rates.json"
    printed = invoke("rate", *ASKED, *CUBE, "--task", "image_search", "--target", "gauc", "--output", str(file))
    found = json.loads(file.read_text())
    assert found["target"] == "gauc"
    assert found["spaces"][0]["space_id"] == releases.find(Lake(shop), "first").space_id
    assert found["impressions"]["rows"] == IMPRESSIONS * 2 // 5
    assert found["impressions"]["start"] == T2.isoformat()
    assert (found["trials"]["end"], found["seen"], found["simulated"]) == (END.isoformat(), [], [])
    assert found["ctr_model"]["hidden"] == [16]
    assert "seed" not in found["ctr_model"]
    recorded = {row["name"]: row["model_id"] for row in Lake(shop).read("model_versions").to_pylist()}
    assert found["spaces"][1]["models"][1]["model_id"] == recorded["cube-second-1"]
    assert "600 impressions of 50 users" in printed
    assert "text_search" not in printed


def test_two_spaces_have_pairs_only(tmp_path: Path) -> None:
    picture = tmp_path / "two.svg"
    printed = invoke("rate", "first", "second", *WINDOW, "--models", "cube-*-0", "--plot", str(picture))
    assert "2 spaces: pairs only" in printed
    assert "one run of the CTR model on first, second" in printed
    assert "first</text>" in picture.read_text()


def test_ctr_models_that_are_not_alike_are_refused_by_name() -> None:
    train("other", "--space", "third", "--seed", "7", "--set", "hidden=[4]")
    invoke("evaluate", "other", "--on", "clicks")
    with pytest.raises(InputError, match=r"cube-first-0 and other .*hidden \(16,\) and \(4,\)"):
        invoke("rate", *ASKED, *CUBE, "--models", "other")
    assert "AUC" in invoke("rate", *ASKED, *CUBE, "--task", "image_search")
    train("again", "--space", "third", "--seed", "1")
    invoke("evaluate", "again", "--on", "clicks")
    with pytest.raises(InputError, match=r"again and cube-third-1|cube-third-1 and again"):
        invoke("rate", *ASKED, *CUBE, "--models", "again")


def test_a_model_that_was_trained_again_must_be_measured_again() -> None:
    train("fresh", "--space", "third", "--seed", "3")
    invoke("evaluate", "fresh", "--on", "clicks")
    train("fresh", "--space", "third", "--seed", "4")
    with pytest.raises(InputError, match="fresh was trained again"):
        invoke("rate", *ASKED, *CUBE, "--models", "fresh")


def test_a_space_that_saw_the_trials_is_refused_by_name_or_labelled(tmp_path: Path) -> None:
    early = [*SPACES, "--on", "clicks", "--start", str(T1 - timedelta(days=1)), "--end", END.isoformat()]
    words = [*early, "--models", "cube-*-0", "--task", "image_search"]
    with pytest.raises(InputError, match=r"space first .*ask for seen rows by name"):
        invoke("rate", *words)
    file = tmp_path / "seen.json"
    assert "may have seen (first, second, third)" in invoke("rate", *words, "--allow-seen", "--output", str(file))
    assert json.loads(file.read_text())["seen"] == list(SPACES)


def test_what_cannot_be_meant_is_refused(shop: Settings) -> None:
    with pytest.raises(InputError, match="two or more different spaces"):
        invoke("rate", "first", "first", *WINDOW)
    with pytest.raises(InputError, match="two or more different spaces"):
        invoke("rate", "first", *WINDOW)
    with pytest.raises(NotFound, match="no embedding space 'fourth'"):
        invoke("rate", "first", "fourth", *WINDOW)
    with pytest.raises(NotFound, match="no CTR model of space first"):
        invoke("rate", *ASKED, "--models", "din-*")
    with pytest.raises(InputError, match=r"ends in \.svg"):
        invoke("rate", *ASKED, "--plot", "x.png")
    with pytest.raises(InputError, match="--task judged"):
        invoke("rate", *ASKED, *CUBE, "--task", "judged")
    late = [*SPACES, "--on", "clicks", "--start", END.isoformat(), "--end", (END + timedelta(days=1)).isoformat()]
    with pytest.raises(InputError, match="no purchase"):
        invoke("rate", *late, *CUBE)
