"""Pairs of two texts of one product: what stands for a query, and that training reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from models.training.catalogue_pairs import CataloguePairsConfig, catalogue_pairs
from models.training.pairs import PAIR_COLUMNS, make_pairs
from moonlake.embeddings.contents import content_of
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

DAY, NEXT, END = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3))
TITLE = "Solid oak chair with a red cushion and four legs"
LONG = "word " * 60


def product(name: str, title: str | None, **other: Any) -> dict[str, Any]:
    state = {"content_id": content_of(title, other.get("image_ids", [])).content_id, "event_timestamp": DAY}
    return {"product_id": name, "title": title} | state | other


@pytest.fixture
def catalogue(
    settings: Settings, lake: Lake, write_rows: Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
) -> Lake:
    """Two chairs, one of which was retitled and one pictured; a product without a title, one gone and one of later."""
    said = [("bullet_points", "It is solid.\n\n It is heavy. \nThird.\nFourth."), ("description", LONG)]
    rows = [
        product("chair", "old title"),
        product("chair", TITLE, attributes=said, category="Chairs", event_timestamp=NEXT),
        product("pictured", TITLE + " too", category="Chairs", image_ids=["a" * 32], spu_id="s"),
        product("nameless", None),
        product("gone", "gone", deleted=True),
        product("later", "later", event_timestamp=END),
    ]
    write_rows(settings, "products", rows)
    return lake


def texts(lake: Lake, **choices: Any) -> dict[str, list[str | None]]:
    """Texts that stand for queries, by product."""
    found = catalogue_pairs(lake, END, CataloguePairsConfig(**choices))
    by_product: dict[str, list[str | None]] = {}
    for name, query in zip(found.columns["positive_product_id"], found.columns["anchor_content_id"], strict=True):
        by_product.setdefault(name, []).append(found.contents[query].text)
    return by_product


def test_passages_are_bullet_points_then_lines_of_the_description_cut_at_a_word(catalogue: Lake) -> None:
    found = texts(catalogue, passages=5, passage_characters=53, phrases=0, categories=False)
    assert found == {"chair": ["It is solid.", "It is heavy.", "Third.", "Fourth.", ("word " * 10).strip()]}


def test_phrases_are_words_of_the_title_in_their_order(catalogue: Lake) -> None:
    found = texts(catalogue, passages=0, phrases=20, phrase_words=(2, 4), categories=False)
    assert found.keys() == {"chair", "pictured"}
    assert len(found["chair"]) > 10
    for phrase in found["chair"]:
        assert 2 <= len(str(phrase).split()) <= 4
        words = iter(TITLE.split())
        assert all(word in words for word in str(phrase).split()), phrase


def test_a_category_is_one_query_for_all_its_products(catalogue: Lake) -> None:
    found = catalogue_pairs(catalogue, END, CataloguePairsConfig(passages=0, phrases=0))
    assert found.columns["positive_product_id"] == ["chair", "pictured"]
    assert len(set(found.columns["anchor_content_id"])) == 1
    assert len(set(found.columns["pair_id"])) == 2
    assert found.columns["pair_type"] == ["text_query_to_text", "text_query_to_product"]
    assert found.columns["positive_spu_id"] == [None, "s"]


def test_the_same_catalogue_gives_the_same_pairs_and_another_seed_other_phrases(catalogue: Lake) -> None:
    assert catalogue_pairs(catalogue, END) == catalogue_pairs(catalogue, END)
    assert texts(catalogue, seed=0) != texts(catalogue, seed=1)


def test_products_are_as_they_were_just_before_the_moment(catalogue: Lake) -> None:
    found = catalogue_pairs(catalogue, NEXT, CataloguePairsConfig(phrases=1))
    assert {found.contents[one].text for one in found.columns["positive_content_id"]} == {"old title", TITLE + " too"}
    assert max(found.columns["event_timestamp"]) == DAY


def test_training_reads_them(catalogue: Lake) -> None:
    found = catalogue_pairs(catalogue, END)
    assert set(PAIR_COLUMNS) <= found.columns.keys()
    pairs = make_pairs(found.columns, found.contents, {}, (8, 8))
    assert len(pairs) == len(found.columns["pair_id"]) > 0
    assert pairs.trained_until == NEXT
    with_text = {pairs.texts[one] for one in pairs.positives}
    assert with_text == {TITLE, TITLE + " too"}


def test_a_catalogue_without_titles_gives_no_pairs(lake: Lake) -> None:
    assert catalogue_pairs(lake, END).columns["pair_id"] == []
