"""`moonlake evaluate encoder` on a small shop, without Spark and without an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cli.evaluate_encoder import evaluate_encoder
from moonlake.embeddings import spaces
from moonlake.embeddings.contents import content_of
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from sources.simulator.clicks import Catalogue, ClickModel, Requests, Shoppers
from sources.simulator.presets import BehaviorConfig

T1 = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = ["--start", str(T1), "--end", str(T1 + timedelta(days=4))]
PRODUCTS = 40

app = typer.Typer()
app.command()(evaluate_encoder)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., None]) -> Settings:
    """40 products, each bought after a picture and after a text; a space "encoder" that knows half of the truth."""
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    settings, rng = Settings.from_environment(), np.random.default_rng(0)
    styles = rng.standard_normal((PRODUCTS, 4)).astype(np.float32)
    styles /= np.linalg.norm(styles, axis=1, keepdims=True)
    products, queries, behaviors, vectors, asked = [], [], [], [], []
    for at, style in enumerate(styles):
        one = content_of(f"product {at}", [])
        products.append({"product_id": f"p{at}", "title": one.text, "category": f"kind {at % 2}",
                         "content_id": one.content_id, "event_timestamp": T1 - timedelta(days=2)})  # fmt: skip
        vectors.append((one, style))
        for modality, query in (("image", content_of(None, [f"x{at}"])), ("text", content_of(f"text {at}", []))):
            name = f"{modality}{at}"
            queries.append({"query_id": name, "modality": modality, "text": query.text,
                            "image_ids": list(query.image_ids), "content_id": query.content_id})  # fmt: skip
            behaviors.append({"behavior_id": f"b-{name}", "user_id": f"u{at % 5}", "action": "purchase",
                              "product_id": f"p{at}", "query_id": name,
                              "event_timestamp": T1 + timedelta(hours=at)})  # fmt: skip
            asked.append((name, style))
            vectors.append((query, style if at % 2 else rng.standard_normal(4)))
    for name, rows in {"products": products, "queries": queries, "behaviors": behaviors}.items():
        write_rows(settings, name, rows)
    definition = spaces.SpaceDefinition("w", "", "", "", ("title",), "mean", "l2", "float16", 4)
    lake = Lake(settings)
    until = T1 - timedelta(days=1)
    space_id = spaces.register(
        lake, definition, name="encoder", artifact="none", trained_until=until, metrics={}, written_at=T1
    ).space_id
    spaces.set_status(lake, space_id, "candidate", coverage=1.0, written_at=T1)
    stated: dict[str, Any] = {"space_id": space_id, "event_timestamp": TIMELESS}
    write_rows(settings, "embeddings", [
        {"content_id": one.content_id, "vector": (vector / np.linalg.norm(vector)).tolist(), **stated}
        for one, vector in vectors
    ])  # fmt: skip
    _save_truth(settings.truth / "small", styles, asked)
    return settings


def _save_truth(folder: Path, styles: np.ndarray, asked: list[tuple[str, np.ndarray]]) -> None:
    folder.mkdir(parents=True)
    flat, zeros = np.zeros(PRODUCTS, np.float32), np.zeros(2 * PRODUCTS, np.int64)
    names = [f"p{at}" for at in range(PRODUCTS)]
    catalogue = Catalogue(names, styles, zeros[:PRODUCTS], flat, flat, zeros[:PRODUCTS], zeros[:PRODUCTS])
    shoppers = Shoppers(["u"], ["value"], flat[:1], styles[:1], styles[:1])
    requests = Requests(zeros, zeros, zeros, zeros, np.stack([wanted for _, wanted in asked]))
    model = ClickModel(BehaviorConfig(1, 1), catalogue, shoppers, requests, (0, 1))
    model.save(folder, [f"r{at}" for at in range(2 * PRODUCTS)], [name for name, _ in asked])


def evaluate(*words: str) -> str:
    """The command's output; its error is raised."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_image_search_is_the_default_and_all_figures_go_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    printed = evaluate("encoder", *WINDOW, "--prefix", "2", "--segments", "--ceiling", "small", "--output", str(file))
    found = json.loads(file.read_text())["tasks"]["image_search"]
    hits = {rate["cutoff"]: rate["value"] for rate in found["recall"]["hit_rates"]}
    assert 0.5 <= hits[1] < 0.7  # every other query has the true style, the rest a random one
    assert f"hit@1   {hits[1]:.4f}" in printed
    assert "40 purchases after 40 image queries, pool of 40" in printed
    assert "category: kind" not in printed  # 20 trials are too few
    assert "popularity: never bought before (40 purchases)" in printed
    assert [rate["value"] for rate in found["ceiling"]["true_latents"]["hit_rates"]] == [1, 1, 1]
    floor = found["ceiling"]["pixels"]["hit_rates"][0]["value"]
    assert floor == 0  # no pictures: all alike, ties against us
    assert found["ceiling"]["gap_closed"][0][0] == pytest.approx(hits[1])
    assert found["prefix"]["dimension"] == 2
    assert found["prefix"]["minus_whole"][0][0] <= 0
    assert found["geometry"]["alignment"] > 0
    assert "simulated" in printed


def test_json_is_printed_in_place_of_lines_and_is_what_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    for words in (WINDOW, ["--task", "attributes", "--prefix", "2", *WINDOW]):
        printed = evaluate("encoder", *words, "--json", "--output", str(file))
        assert json.loads(printed) == json.loads(file.read_text())
        assert json.loads(printed)["subject"] == "encoder"


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("text_search", "40 purchases after 40 text queries"),
        ("product_to_product", "purchases within a day after one of"),
        ("attributes", "40 products ask, pool of 40; right is the same category"),
    ],
)
def test_every_task_prints_what_it_measured(task: str, wanted: str) -> None:
    assert wanted in evaluate("encoder", *WINDOW, "--task", task)


def test_attributes_split_by_share_or_by_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "asks.txt"
    listed.write_text("p1\np2\n")
    words = ("encoder", "--end", WINDOW[3], "--task", "attributes")
    assert "2 products ask, pool of 38" in evaluate(*words, "--test-products", str(listed))
    assert "40 products ask" not in evaluate(*words, "--test-share", "0.3")
    with pytest.raises(InputError, match="expected one of them"):
        evaluate(*words, "--test-share", "0.3", "--test-products", str(listed))
    with pytest.raises(NotFound, match="no such file"):
        evaluate(*words, "--test-products", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("task", "options", "wanted"),
    [
        ("judged", ("--segments", "--ceiling", "x"), "does not read --segments, --ceiling: of what was bought alone"),
        ("attributes", ("--segments",), "does not read --segments"),
        ("image_search", ("--test-share", "0"), "does not read --test-share: of attributes alone"),
    ],
)
def test_options_that_a_task_does_not_read_are_refused(task: str, options: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        evaluate("encoder", *WINDOW, "--task", task, *options)


def test_behaviour_needs_a_start_that_training_did_not_see() -> None:
    with pytest.raises(InputError, match="expected --start"):
        evaluate("encoder", "--end", WINDOW[3])
    early = ("encoder", "--start", str(T1 - timedelta(days=1)), "--end", WINDOW[3])
    with pytest.raises(InputError, match="ask for seen rows by name"):
        evaluate(*early)
    assert "training may have seen" in evaluate(*early, "--allow-seen")


def test_a_simulated_stage_labels_the_figures(shop: Settings) -> None:
    folder = shop.staging / "x"  # the source of the rows
    folder.mkdir(parents=True)
    info = {"name": "x", "simulated": True, "kind": "", "window": None, "t1": None, "t2": None, "notes": "",
            "fingerprint": ""}  # fmt: skip
    (folder / "source.json").write_text(json.dumps(info))
    assert evaluate("encoder", *WINDOW).startswith("NOTE: behaviour is simulated (x)")
