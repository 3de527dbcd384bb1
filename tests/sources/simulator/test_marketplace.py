"""The staged marketplace: whole, honest, and with its truth kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from moonlake.embeddings.images import inspect
from moonlake.settings import Settings
from sources.own_files.staging import SourceInfo
from sources.simulator.clicks import ClickModel
from sources.simulator.marketplace import stage_arrivals, stage_marketplace
from sources.simulator.presets import PRESETS

Row = dict[str, Any]


def states_by_product(tiny: Any) -> dict[str, list[Row]]:
    states: dict[str, list[Row]] = {}
    for row in tiny.read("products").sort_by("event_timestamp").to_pylist():
        states.setdefault(row["product_id"], []).append(row)
    return states


def content(state: Row) -> tuple[Any, ...]:
    return state["title"], tuple(state["image_names"]), dict(state["attributes"]).get("material")


def test_it_is_labelled_simulated_with_the_windows_of_the_protocol(tiny: Any) -> None:
    info = SourceInfo.read(tiny.folder)
    window = PRESETS["tiny"].window
    assert info.simulated
    assert (info.window, info.t1, info.t2) == ((window.start, window.end), window.t1, window.t2)
    assert info.fingerprint == PRESETS["tiny"].fingerprint


def test_every_reference_has_its_row(tiny: Any) -> None:
    impressions, behaviors, queries = (tiny.read(kind) for kind in ("impressions", "behaviors", "queries"))
    known = {
        "product_id": set(tiny.read("products")["product_id"].to_pylist()),
        "user_id": set(tiny.read("users")["user_id"].to_pylist()),
        "query_id": set(queries["query_id"].to_pylist()),
    }
    for name, ids in known.items():
        for rows in (impressions, behaviors):
            assert set(rows[name].drop_null().to_pylist()) <= ids
    images = set(tiny.read("images")["name"].to_pylist())
    named = {
        name
        for kind in ("products", "queries")
        for names in tiny.read(kind)["image_names"].to_pylist()
        for name in names
    }
    assert named == images
    merchants = set(tiny.read("merchants")["merchant_id"].to_pylist())
    assert set(tiny.read("products")["merchant_id"].to_pylist()) <= merchants


def test_only_products_on_sale_are_shown_and_none_twice_in_an_answer(tiny: Any) -> None:
    states = states_by_product(tiny)
    shown = tiny.read("impressions").to_pylist()
    for row in shown:
        now = [state for state in states[row["product_id"]] if state["event_timestamp"] <= row["event_timestamp"]]
        assert now, row
        assert not now[-1]["deleted"], row
    assert len({(row["request_id"], row["product_id"]) for row in shown}) == len(shown)
    assert len({(row["request_id"], row["position"]) for row in shown}) == len(shown)


def test_a_click_is_an_action_after_its_search_and_counts_once(tiny: Any) -> None:
    impressions, behaviors = tiny.read("impressions"), tiny.read("behaviors").to_pylist()
    clicks = [row for row in behaviors if row["action"] == "click"]
    assert len(clicks) == pc.sum(impressions["clicked"]).as_py()
    clicked: dict[tuple[Any, ...], list[Row]] = {}
    for row in impressions.filter(impressions["clicked"]).to_pylist():
        clicked.setdefault((row["user_id"], row["query_id"], row["product_id"]), []).append(row)
    for row in clicks:
        seen = clicked[row["user_id"], row["query_id"], row["product_id"]]
        assert any(shown["event_timestamp"] < row["event_timestamp"] <= shown["label_time"] for shown in seen)
    clicked_pairs = {(row["user_id"], row["query_id"], row["product_id"]) for row in clicks}
    later = [row for row in behaviors if row["action"] in ("cart", "purchase")]
    assert {(row["user_id"], row["query_id"], row["product_id"]) for row in later} <= clicked_pairs
    times = [row["event_timestamp"] for row in behaviors]
    assert times == sorted(times)
    assert times[-1] < PRESETS["tiny"].window.end


def test_some_products_change_back_some_change_price_some_leave_and_some_are_new(tiny: Any) -> None:
    states = states_by_product(tiny).values()
    assert any(len(rows) == 3 and content(rows[0]) == content(rows[2]) != content(rows[1]) for rows in states)
    assert any(
        len(rows) == 2 and content(rows[0]) == content(rows[1]) and rows[0]["price_cents"] > rows[1]["price_cents"]
        for rows in states
    )
    assert any(rows[-1]["deleted"] for rows in states)
    late = sum(rows[0]["listed_at"] > PRESETS["tiny"].window.start for rows in states)
    assert 0.2 < late / len(states) < 0.5


def test_small_merchants_write_poorer_titles(tiny: Any) -> None:
    tier = dict(zip(*(tiny.read("merchants")[name].to_pylist() for name in ("merchant_id", "tier")), strict=True))
    words: dict[int, list[int]] = {1: [], 3: []}
    for row in tiny.read("products").to_pylist():
        said = sum(word in (row["title"] or "") for word in (row["brand"], row["category"]))
        if tier[row["merchant_id"]] in words:
            words[tier[row["merchant_id"]]].append(said)
    assert np.mean(words[1]) > np.mean(words[3])


def test_a_query_picture_is_never_a_picture_of_the_catalogue(tiny: Any) -> None:
    facts = {row["name"]: inspect(row["image_bytes"]) for row in tiny.read("images").to_pylist()}
    asked = {name for names in tiny.read("queries")["image_names"].to_pylist() for name in names}
    assert asked
    ids = {name: fact.image_id for name, fact in facts.items()}
    assert len(set(ids.values())) == len(ids), "every picture is drawn afresh"
    distances = [
        min(
            (int(facts[query].perceptual_hash, 16) ^ int(facts[other].perceptual_hash, 16)).bit_count()
            for other in facts
            if other not in asked
        )
        for query in asked
    ]
    assert np.mean(np.array(distances) <= 2) < 0.02, "near-duplicates of catalogue pictures"


def test_the_truth_lies_apart_and_answers_for_what_was_shown(tiny: Any) -> None:
    model = ClickModel.open(tiny.settings.truth / "tiny")
    staged = {path.name for path in tiny.folder.rglob("*")}
    assert not staged & {path.name for path in (tiny.settings.truth / "tiny").iterdir()}
    impressions = tiny.read("impressions")
    requests = pq.read_table(tiny.settings.truth / "tiny" / "requests.parquet")["request_id"].to_pylist()
    row_of_request = {name: row for row, name in enumerate(requests)}
    row_of_product = {name: row for row, name in enumerate(model.catalogue.product_ids)}
    request = np.array([row_of_request[name] for name in impressions["request_id"].to_pylist()])
    product = np.array([row_of_product[name] for name in impressions["product_id"].to_pylist()])
    position = impressions["position"].to_numpy()
    probability = model.probability(request, product[:, None], position[:, None])[:, 0]
    clicked = impressions["clicked"].to_numpy(zero_copy_only=False)
    error = (clicked - probability).sum() / np.sqrt((probability * (1 - probability)).sum())
    assert abs(error) < 4.0, "clicks are drawn from the probabilities of the model"
    similarity = model.similarity(request, product[:, None])[:, 0]
    assert similarity[clicked].mean() > similarity[~clicked].mean() + 0.1


def test_staged_again_it_is_found_as_it_lies(tiny: Any) -> None:
    before = (tiny.folder / "source.json").stat().st_mtime_ns
    assert stage_marketplace("tiny", tiny.settings) == tiny.folder
    assert (tiny.folder / "source.json").stat().st_mtime_ns == before


def test_a_lost_truth_is_made_again(settings: Settings, tmp_path: Path) -> None:
    folder = stage_marketplace("tiny", settings)
    (settings.truth / "tiny").rename(tmp_path / "lost")
    assert stage_marketplace("tiny", settings) == folder
    assert ClickModel.open(settings.truth / "tiny").config == ClickModel.open(tmp_path / "lost").config


@pytest.mark.parametrize("day", [1, 2])
def test_arrivals_are_new_products_after_the_window(settings: Settings, day: int) -> None:
    folder = stage_arrivals("tiny", settings, count=4, day=day)
    rows = pq.read_table(folder / "products").to_pylist()
    assert [row["product_id"][:5] for row in rows] == [f"new{day}-"] * 4
    assert all((row["listed_at"] - PRESETS["tiny"].window.end).days == day for row in rows)
    names = [name for row in rows for name in row["image_names"]]
    assert pq.read_table(folder / "images")["name"].to_pylist() == names
    assert SourceInfo.read(folder).window is None
