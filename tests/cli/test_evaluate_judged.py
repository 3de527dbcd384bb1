"""The `judged` task says what was measured, on what, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.evaluate_judged import judged_lines
from models.evaluation.judged import evaluate_judged
from moonlake.embeddings.contents import content_of
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.encoder_figures import JudgedEvaluation

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WORDS = ("chair", "lamp", "vase", "shoe", "mug")


@pytest.fixture
def judged(
    settings: Settings, lake: Lake, write_rows: Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
) -> Lake:
    """Five queries of a word, with the product of that word judged right and another one wrong."""
    content = {word: content_of(word, []).content_id for word in WORDS}
    told = {"event_timestamp": datetime(2026, 2, 1, tzinfo=UTC)}
    write_rows(
        settings, "products", [{"product_id": word, "title": word, "content_id": content[word]} for word in WORDS]
    )
    queries = [{"query_id": word, "modality": "text", "text": word, "content_id": content[word]} for word in WORDS]
    write_rows(settings, "queries", queries)
    pairs = zip(WORDS, (*WORDS[1:], WORDS[0]), strict=True)
    rows = [(right, product, grade) for right, wrong in pairs for product, grade in ((right, 3), (wrong, 0))]
    judgments = [{"query_id": query, "product_id": product, "grade": grade} | told for query, product, grade in rows]
    write_rows(settings, "judgments", judgments)
    return lake


def test_every_ranking_has_a_line_with_its_interval_and_json_holds_them_all(judged: Lake) -> None:
    figures = evaluate_judged(judged, lambda contents: np.ones((len(contents), 1), np.float32), NOW)
    found = JudgedEvaluation("mine", figures).as_json()
    lines = list(judged_lines(JudgedEvaluation("mine", figures)))
    assert lines[0] == "mine: 5 judged queries, 10 judgments, pool of 5; 0 left out"
    assert "    bm25               1.0000 [1.0000, 1.0000]" in lines
    worst = 1 / np.log2(3)  # every product has one vector: the wrong one counts as first
    assert f"    encoder            {worst:.4f} [{worst:.4f}, {worst:.4f}]" in lines
    assert any(line.startswith(f"    encoder - bm25     {worst - 1:+.4f}") for line in lines)
    assert json.loads(json.dumps(found))["judgments"] == 10
    assert {one["subject"] for one in found["figures"]} == {"bm25", "bm25 on full text", "encoder", "blend"}


def test_bm25_is_measured_without_an_encoder(judged: Lake) -> None:
    found = evaluate_judged(judged, None, NOW)
    assert not any("encoder" in line for line in judged_lines(JudgedEvaluation("bm25", found)))
    assert (found.differences, found.weights) == ([], {})


def test_judgments_of_later_are_not_known(judged: Lake) -> None:
    with pytest.raises(InputError, match="0 judged queries"):
        evaluate_judged(judged, None, datetime(2026, 2, 1, tzinfo=UTC))


def test_the_command_measures_and_writes_json(
    judged: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    written = settings.home / "figures.json"
    asked = ["evaluate", "encoder", "bm25", "--task", "judged", "--end", NOW.isoformat(), "--output", str(written)]
    shown = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert shown.stdout.startswith("bm25: 5 judged queries, 10 judgments")
    assert {one["subject"] for one in json.loads(written.read_text())["figures"]} == {"bm25", "bm25 on full text"}


def test_the_first_numbers_of_the_vectors_are_measured_too(
    judged: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    asked = ["evaluate", "encoder", "pixels", "--task", "judged", "--end", NOW.isoformat(), "--prefix", "8"]
    shown = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert "pixels: 5 judged queries" in shown
    assert "pixels, first 8 numbers of each vector: 5 judged queries" in shown
