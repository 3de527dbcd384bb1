"""Training pairs of a catalogue without behaviour: two texts of one product, of which one stands for a query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from models.training.pairs import PAIR_COLUMNS, Pairs, make_pairs
from moonlake.embeddings.contents import Content, content_of, live_states, prompt_text, read_images
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake

PASSAGE_ATTRIBUTES = ("bullet_points", "description")
"""Attributes that speak of a product in sentences, in the order in which they are read."""


@dataclass(frozen=True, slots=True)
class CataloguePairsConfig:
    """Configuration of texts that stand for queries, and of how many a product gives.

    Attributes:
        passages: bullet points, or lines of the description.
        passage_characters: a longer passage is cut at a word.
        phrases: draws of `phrase_words` (from, to) words of the title in their order, as a shopper would type them.
        categories: the leaf category, one for all its products: needs repelling to be masked by equal query content.
    """

    passages: int = 4
    passage_characters: int = 160
    phrases: int = 4
    phrase_words: tuple[int, int] = (2, 5)
    categories: bool = True
    seed: int = 0


class CatalogueProduct(NamedTuple):
    """A product on sale, with every text that the catalogue has of it."""

    product_id: str
    spu_id: str | None
    category: str | None
    title: str | None
    content: Content
    passages: list[str]
    event_timestamp: datetime


class CataloguePairs(NamedTuple):
    """Rows for `models.training.pairs.make_pairs`.

    Attributes:
        columns: those of `contrastive_pairs`, one value a pair.
        contents: of both sides by content_id; those of the queries are of no product in the lake.
    """

    columns: dict[str, list[Any]]
    contents: dict[str, Content]


def catalogue_pairs(lake: Lake, before: datetime, config: CataloguePairsConfig | None = None) -> CataloguePairs:
    """Pairs of the products with a title that were on sale just before a moment; the same for the same lake and config.

    No judgment and no behaviour is read. Nobody searched with these texts: a figure says that it was trained so.
    """
    config = config or CataloguePairsConfig()
    contents: dict[str, Content] = {}
    rows: list[dict[str, Any]] = []
    for product in products_on_sale(lake, before):
        if not product.title:
            continue
        contents[product.content.content_id] = product.content
        shown = "product" if product.content.image_ids else "text"
        for text in dict.fromkeys(_query_texts(product, config)):
            query = content_of(text, [])
            contents[query.content_id] = query
            rows.append(
                {
                    "pair_id": stable_hash(f"{query.content_id} {product.product_id}"),
                    "anchor_content_id": query.content_id,
                    "positive_content_id": product.content.content_id,
                    "positive_product_id": product.product_id,
                    "positive_spu_id": product.spu_id,
                    "hard_negative_content_ids": [],
                    "category": product.category,
                    "stage": 1,
                    "pair_type": f"text_query_to_{shown}",
                    "event_timestamp": product.event_timestamp,
                }
            )
    return CataloguePairs(
        {name: [row[name] for row in rows] for name in (*PAIR_COLUMNS, "category", "stage")}, contents
    )


def read_catalogue_pairs(lake: Lake, before: datetime, image_size: tuple[int, int]) -> Pairs:
    """`catalogue_pairs` with their default configuration, in memory, with the decoded images of their products."""
    found = catalogue_pairs(lake, before)
    files = read_images(lake, {image for content in found.contents.values() for image in content.image_ids})
    return make_pairs(found.columns, found.contents, files, image_size)


def products_on_sale(lake: Lake, at: datetime) -> list[CatalogueProduct]:
    """The products on sale just before `at`, each as it was then, in the order of their ids."""
    columns = [name for name in CatalogueProduct._fields if name not in ("content", "passages")]
    products = []
    for row in live_states(lake, at, [*columns, "content_id", "attributes", "image_ids"]):
        attributes = dict(row["attributes"])
        text = prompt_text(row["title"], attributes)
        content = Content(row["content_id"], text, tuple(row["image_ids"]))
        passages = [line for key in PASSAGE_ATTRIBUTES for line in _lines(attributes.get(key))]
        products.append(
            CatalogueProduct(
                row["product_id"],
                row["spu_id"],
                row["category"],
                row["title"],
                content,
                passages,
                row["event_timestamp"],
            )
        )
    return products


def _query_texts(product: CatalogueProduct, config: CataloguePairsConfig) -> Iterator[str]:
    for passage in product.passages[: config.passages]:
        yield _cut(passage, config.passage_characters)
    words = (product.title or "").split()
    digest = hashlib.blake2b(f"{config.seed} {product.product_id}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest))
    low, high = config.phrase_words
    for _ in range(config.phrases):
        count = min(int(rng.integers(low, high + 1)), len(words))
        yield " ".join(words[place] for place in sorted(rng.choice(len(words), count, replace=False)))
    if config.categories and product.category:
        yield product.category


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters + 1].rpartition(" ")[0] or text[:characters]


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]
