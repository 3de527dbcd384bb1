"""Entities of a query: names of the catalogue's own vocabulary that its text holds.

No language model is needed: spaCy's EntityRuler finds the phrases, the longest first, never two that overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spacy.language import Language

LABELS = ("BRAND", "CATEGORY", "ATTRIBUTE", "WORD")
LANGUAGE = "en"
"""Its tokeniser and stop words serve; texts of another language without spaces between words need another one."""


class Phrase(NamedTuple):
    """One entry of the vocabulary: what kind of name it is, one of LABELS, and the name."""

    label: str
    text: str


class EntityFinder:
    """The phrases of a vocabulary, ready to be found in texts, whatever their case."""

    def __init__(self, vocabulary: Sequence[Phrase]) -> None:
        self.language = new_ruler(vocabulary)

    def count(self, texts: Iterable[str]) -> list[int]:
        """The number of distinct entities in each text: a name that stands there twice counts once.

        >>> EntityFinder([Phrase("WORD", "red"), Phrase("CATEGORY", "mug")]).count(["A red, red MUG", "a mug", ""])
        [2, 1, 0]
        """
        return [len({entity.text.lower() for entity in doc.ents}) for doc in self.language.pipe(texts)]


def new_ruler(vocabulary: Sequence[Phrase]) -> Language:
    """A blank spaCy pipeline with one EntityRuler. A name with several labels has that which LABELS names first.

    Stop words are no entities, even where a title word of that kind is frequent.
    """
    import spacy

    language = spacy.blank(LANGUAGE)
    # Longest match first is the ruler's own rule; of equal phrases the first added wins.
    ruler = language.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
    known: dict[str, Phrase] = {}
    for phrase in sorted(vocabulary, key=lambda one: (LABELS.index(one.label), one.text)):
        name = " ".join(phrase.text.lower().split())
        if name and name not in language.Defaults.stop_words:
            known.setdefault(name, phrase)
    ruler.add_patterns([{"label": phrase.label, "pattern": name} for name, phrase in known.items()])  # type: ignore[attr-defined]
    return language
