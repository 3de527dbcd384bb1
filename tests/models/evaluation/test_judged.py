"""Judged queries in a lake: what is measured on, and what a perfect, a random and a silent encoder come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from models.evaluation.judged import FULL_TEXT, evaluate_judged, judged_queries
from moonlake.arrays import Float32s
from moonlake.embeddings.contents import Content, content_of
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
COLOURS = ("red", "blue", "green", "pink", "lime", "grey")
WriteRows = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]


def product(name: str, title: str, **other: Any) -> dict[str, Any]:
    return {"product_id": name, "title": title, "content_id": content_of(title, []).content_id} | other


def query(name: str, text: str) -> dict[str, Any]:
    return {"query_id": name, "modality": "text", "text": text, "content_id": content_of(text, []).content_id}


def judgment(of_query: str, of_product: str, grade: int, **other: Any) -> dict[str, Any]:
    return {"query_id": of_query, "product_id": of_product, "grade": grade} | other


@pytest.fixture
def judged(settings: Settings, lake: Lake, write_rows: WriteRows) -> Lake:
    """Six queries for a chair of a colour; chairs say their colour in the title, lamps in their bullet points."""
    products, queries, judgments = [], [], []
    for colour in COLOURS:
        products.append(product(f"{colour}-chair", f"{colour} chair"))
        products.append(
            product(f"{colour}-lamp", "lamp", attributes=[("bullet_points", f"{colour} light\nfor a chair")])
        )
        queries.append(query(colour, f"{colour} chair"))
        judgments += [judgment(colour, f"{colour}-chair", 3), judgment(colour, f"{colour}-lamp", 1)]
        judgments.append(judgment(colour, f"{'blue' if colour == 'red' else 'red'}-chair", 2))
    write_rows(settings, "products", products)
    write_rows(settings, "queries", queries)
    write_rows(settings, "judgments", judgments)
    return lake


def first_word(contents: Sequence[Content]) -> Float32s:
    """Unit vectors that know the first word of a text and nothing else."""
    known = [*COLOURS, "lamp"]
    return np.eye(len(known), dtype=np.float32)[[known.index(str(content.text).split()[0]) for content in contents]]


def values(lake: Lake, represent: Callable[[Sequence[Content]], Float32s] | None) -> dict[Any, float]:
    figures = evaluate_judged(lake, represent)
    return {(figure.subject, figure.candidates, figure.gain): figure.ndcg.value for figure in figures.figures}


def test_judgments_are_read_as_they_stand_now_and_those_without_their_two_sides_are_counted(
    judged: Lake, settings: Settings, write_rows: WriteRows
) -> None:
    gone = product("gone", "old chair", deleted=True)
    write_rows(settings, "products", [gone])
    restated = judgment("red", "red-chair", 0, event_timestamp=LATE, created_at=LATE)
    earlier = judgment("red", "red-lamp", 3, event_timestamp=EARLY, created_at=EARLY)
    corrected = judgment("red", "red-lamp", 2, event_timestamp=EARLY, created_at=LATE)
    lost = [judgment("red", "gone", 3), judgment("red", "never", 3), judgment("nobody asked", "red-chair", 3)]
    write_rows(settings, "queries", [query("hopeless", "purple chair")])
    write_rows(settings, "judgments", [corrected, restated, earlier, *lost, judgment("hopeless", "red-chair", 0)])
    found = judged_queries(judged)
    assert (len(found.queries), len(found.pool), found.left_out) == (6, 12, 4)
    red = next(one for one in found.queries if one.content.text == "red chair")
    graded = {found.full_texts[row]: grade for row, grade in zip(red.rows, red.grades, strict=True)}
    assert graded == {"red chair": 0, "lamp\nred light\nfor a chair": 2, "blue chair": 2}


BEST = {"exponential": 7 + 3 / np.log2(3) + 1 / 2, "esci": 1 + 0.1 / np.log2(3) + 0.01 / 2}
"""Discounted gain of a query's chair, another chair and its lamp in this order."""


def test_figures_are_those_of_a_sum_by_hand(judged: Lake) -> None:
    found = values(judged, first_word)
    # The chair first; the other chair and the lamp tie at zero, so that the lamp counts as second.
    assert found["encoder", "judged", "exponential"] == pytest.approx(
        (7 + 1 / np.log2(3) + 3 / 2) / BEST["exponential"]
    )
    assert found["encoder", "judged", "esci"] == pytest.approx((1 + 0.01 / np.log2(3) + 0.1 / 2) / BEST["esci"])
    # Of all products eleven tie behind it, nine of which nobody judged: they count as the places from 2 to 10.
    assert found["encoder", "all", "exponential"] == pytest.approx(7 / BEST["exponential"])
    assert found["encoder", "all", "esci"] == pytest.approx(1 / BEST["esci"])


def test_where_one_ranking_is_perfect_the_blend_is_too_and_differences_say_which_is_better(judged: Lake) -> None:
    figures = evaluate_judged(judged, first_word)
    found = {(figure.subject, figure.candidates, figure.gain): figure.ndcg for figure in figures.figures}
    assert found["bm25", "judged", "exponential"].value == found["blend", "judged", "exponential"].value == 1.0
    differences = {(figure.subject, figure.candidates, figure.gain): figure.ndcg for figure in figures.differences}
    worse = differences["encoder - bm25", "judged", "exponential"]
    assert worse.value == pytest.approx(found["encoder", "judged", "exponential"].value - 1.0)
    assert worse.low <= worse.value <= worse.high < 0
    assert all(max(some) < 1.0 for some in figures.weights.values()), "the encoder alone is never best"


def test_an_encoder_without_vectors_has_every_tie_against_it(judged: Lake) -> None:
    found = values(judged, lambda contents: np.zeros((len(contents), 4), np.float32))
    upside_down = 1 + 3 / np.log2(3) + 7 / 2
    assert found["encoder", "judged", "exponential"] == pytest.approx(upside_down / BEST["exponential"])
    last_place = 0.01 / np.log2(11)  # after nine that nobody judged
    assert found["encoder", "all", "esci"] == pytest.approx(last_place / BEST["esci"])


def test_a_product_without_a_vector_stands_behind_one_that_points_away(judged: Lake) -> None:
    def some(contents: Sequence[Content]) -> Float32s:
        """Queries and lamps point apart; chairs have no vector."""
        asked = len(contents) == len(COLOURS)
        sign = {True: 1.0, False: -0.5}[asked]
        return np.array(
            [[sign, 0.0] if asked or content.text == "lamp" else [0.0, 0.0] for content in contents], np.float32
        )

    best = 7 + 3 / np.log2(3) + 1 / 2
    assert values(judged, some)["encoder", "judged", "exponential"] == pytest.approx(
        (1 + 3 / np.log2(3) + 7 / 2) / best
    )


def test_without_an_encoder_bm25_is_measured_on_the_title_and_on_all_that_is_said(judged: Lake) -> None:
    figures = evaluate_judged(judged, None)
    assert {figure.subject for figure in figures.figures} == {"bm25", FULL_TEXT}
    assert (figures.differences, figures.weights) == ([], {})
    assert (figures.queries, figures.judgments, figures.pool, figures.left_out) == (6, 18, 12, 0)
    found = figures.metrics()
    assert found["ndcg_10_bm25_judged_exponential"] == 1.0
    assert found["ndcg_10_bm25_on_full_text_judged_exponential"] < 1.0, "a lamp for a chair is no chair"


def test_a_lake_without_judged_queries_says_what_to_do(judged: Lake, settings: Settings, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"0 judged queries .* moonlake ingest --source esci"):
        evaluate_judged(Lake(Settings(home=tmp_path / "other")), None)
