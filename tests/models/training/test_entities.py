"""Entities against a plain search for the vocabulary's words."""

from __future__ import annotations

import numpy as np

from models.training.entities import EntityFinder, Phrase


def test_single_words_are_counted_as_a_set_of_words_is() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(30)]
    known = words[:15]
    finder = EntityFinder([Phrase("WORD", word) for word in known])
    texts = [" ".join(rng.choice(words, rng.integers(1, 8))) for _ in range(60)]
    assert finder.count(texts) == [len({*text.split()} & {*known}) for text in texts]


def test_the_longest_name_wins_and_names_never_overlap() -> None:
    names = ["tea", "tea pot", "pot", "pot lid"]
    finder = EntityFinder([Phrase("CATEGORY", name) for name in names])
    # "tea pot lid" is "tea pot" and a lid: what was matched first is not matched again.
    assert finder.count(["TEA POT", "tea pot tea", "the pot lid", "tea pot lid"]) == [1, 2, 1, 1]


def test_a_stop_word_is_no_entity_even_where_the_vocabulary_has_it() -> None:
    assert EntityFinder([Phrase("WORD", "for"), Phrase("WORD", "mug")]).count(["a mug for the mug"]) == [1]


def test_labels_go_to_the_first_kind_that_has_a_name() -> None:
    finder = EntityFinder([Phrase("WORD", "Oak"), Phrase("BRAND", "oak"), Phrase("CATEGORY", "chair")])
    found = [(entity.label_, entity.text) for entity in finder.language("Oak chair").ents]
    assert found == [("BRAND", "Oak"), ("CATEGORY", "chair")]
