"""Contrastive pairs in memory: which query led to which product, with everything that training reads of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc

from models.encoder.picture_store import PictureStore, decode_files, read_pictures
from moonlake.arrays import Bools, Float64s, Int8s, Int64s, UInt8s
from moonlake.embeddings.contents import Content, read_contents
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake

PAIR_COLUMNS = (
    "pair_id",
    "anchor_content_id",
    "positive_content_id",
    "positive_product_id",
    "positive_spu_id",
    "hard_negative_content_ids",
    "pair_type",
    "event_timestamp",
)
SHOWN = ("product", "image", "text")
"""What of a product a pair shows; its place here is its code."""
QUERY = len(SHOWN)
"""Code of a query, which is shown as it is."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a batch of pairs.

    Attributes:
        texts: [B].
        images: [B], each uint8 [n, H, W, 3].
    """

    texts: list[str | None]
    images: list[UInt8s]


@dataclass(frozen=True, slots=True)
class Choice:
    """The pictures and texts of contents that a step shows.

    Attributes:
        rows: int64 [N]: pictures, those of one content after those of the one before it.
        counts: int64 [V]: pictures of each content.
        with_text: bool [V].
    """

    rows: Int64s
    counts: Int64s
    with_text: Bools


@dataclass(frozen=True)
class Pairs:
    """Training pairs. Contents (of queries and of products) are numbered together.

    Attributes:
        groups: int64 [P, 4]: query content, product content, product and SPU of each pair; two pairs that share one
            are no negatives of each other. -1 for no SPU.
        shown: int8 [P]: what of the product is shown, a code of SHOWN.
        hard: contents that are hard negatives of each pair, [P] of int64 [n].
        content_groups: int64 [C, 4]: groups of each content as a hard negative; -1 in the first column.
        texts: [C].
        pictures: the images of each content, decoded.
        trained_until: time of the last pair; None if there is none.
    """

    groups: Int64s
    shown: Int8s
    hard: list[Int64s]
    content_groups: Int64s
    texts: list[str | None]
    pictures: PictureStore
    trained_until: datetime | None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def anchors(self) -> Int64s:
        """int64 [P]: the content of each query."""
        return self.groups[:, 0]

    @property
    def positives(self) -> Int64s:
        """int64 [P]: the content of each product."""
        return self.groups[:, 1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that training reads of them."""
        hard = np.concatenate([*self.hard, np.array([len(one) for one in self.hard], np.int64)])
        arrays = (self.groups, self.shown.astype(np.int64), hard, self.content_groups)
        parts = [array.tobytes().hex() for array in arrays] + [repr(self.texts), self.pictures.fingerprint]
        return stable_hash("\n".join(parts))

    def queries(self, chosen: Int64s, max_images: int) -> Side:
        """The queries of some pairs, as they are."""
        contents = self.anchors[chosen]
        shown = np.full(len(contents), QUERY, np.int8)
        return self._side(contents, self.choose(contents, shown, max_images, 1, 0.0, np.zeros((len(contents), 2))))

    def items(self, chosen: Int64s, max_images: int, text_dropout: float, rng: np.random.Generator) -> Side:
        """The products of some pairs as their pair types show them, partly hidden by chance; see `choose`."""
        contents = self.positives[chosen]
        draws = rng.random((len(contents), self.draws))
        return self._side(contents, self.choose(contents, self.shown[chosen], 1, max_images, text_dropout, draws))

    @property
    def draws(self) -> int:
        """Uniform numbers that `choose` takes for one content."""
        return 2 + int(self.pictures.counts.max(initial=0))

    def choose(
        self,
        contents: Int64s,
        shown: Int8s,
        query_images: int,
        item_images: int,
        text_dropout: float,
        draws: Float64s,
    ) -> Choice:
        """The visible part of each content. A query is seen whole; a product as `shown` says, partly hidden by chance.

        Args:
            contents: [V].
            shown: [V], codes of SHOWN, or QUERY.
            query_images: the first so many images of a query are seen.
            item_images: from one to so many of a product's images are seen.
            text_dropout: probability that a product with an image is seen without its text.
            draws: [V, self.draws], uniform in [0, 1); a query takes none.
        """
        counts = self.pictures.counts[contents]
        has_text = self._has_text[contents]
        is_query = shown == QUERY
        counts = np.where((shown == SHOWN.index("text")) & has_text, 0, counts)
        some = 1 + np.floor(draws[:, 0] * np.minimum(counts, item_images)).astype(np.int64)
        seen = np.where(is_query, np.minimum(counts, query_images), np.minimum(some, counts))
        hidden = ~is_query & ((shown == SHOWN.index("image")) | (draws[:, 1] < text_dropout)) & (seen > 0)
        return Choice(self._rows(contents, counts, seen, is_query, draws[:, 2:]), seen, has_text & ~hidden)

    @cached_property
    def _has_text(self) -> Bools:
        return np.array([bool(text) for text in self.texts], bool)

    def _rows(
        self,
        contents: Int64s,
        counts: Int64s,
        seen: Int64s,
        in_order: Bools,
        draws: Float64s,
    ) -> Int64s:
        """`seen` of the first `counts` pictures of each content, drawn by chance or in order, as they stand there."""
        width = int(counts.max(initial=0))
        places = np.arange(width)
        ranks = np.broadcast_to(places, (len(contents), width))
        if len(draws) and draws.shape[1] >= width and not in_order.all():
            keys = np.where(places < counts[:, None], draws[:, :width], 2.0)
            ranks = np.where(in_order[:, None], ranks, np.argsort(np.argsort(keys, axis=1), axis=1))
        inside = (ranks < seen[:, None]) & (places < counts[:, None])
        return self.pictures.rows_of(contents, inside)

    def _side(self, contents: Int64s, choice: Choice) -> Side:
        pixels = self.pictures.pixels[choice.rows]
        texts = [self.texts[one] if seen else None for one, seen in zip(contents, choice.with_text, strict=True)]
        return Side(texts, np.split(pixels, np.cumsum(choice.counts)[:-1]) if len(contents) else [])


def read_pairs(lake: Lake, before: datetime, image_size: tuple[int, int], stage: int = 1, workers: int = 2) -> Pairs:
    """The pairs of a stage with an event time before `before`, their images decoded once, in parallel.

    A pair of which one side has neither text nor a readable image is left out.
    """
    where = (pc.field("event_timestamp") < before) & (pc.field("stage") == stage)
    rows = lake.read("contrastive_pairs", PAIR_COLUMNS, where=where)
    rows = rows.sort_by([("event_timestamp", "ascending"), ("pair_id", "ascending")])
    columns = rows.to_pydict()
    hard = {one for some in columns["hard_negative_content_ids"] for one in some}
    contents = read_contents(lake, {*columns["anchor_content_id"], *columns["positive_content_id"], *hard})
    pictures = read_pictures(lake, [content.image_ids for content in _ordered(contents)], image_size, workers)
    return _assemble(columns, contents, pictures, _products_of(lake, hard))


def make_pairs(
    columns: Mapping[str, Sequence[Any]],
    contents: Mapping[str, Content],
    files: Mapping[str, bytes],
    image_size: tuple[int, int],
    products: Mapping[str, tuple[str, str | None]] | None = None,
) -> Pairs:
    """Pairs from the columns of `contrastive_pairs`, the contents that they name and the images of these.

    Args: products: product and SPU of the contents that are hard negatives.
    """
    pictures = decode_files([content.image_ids for content in _ordered(contents)], files, image_size)
    return _assemble(columns, contents, pictures, products or {})


def _ordered(contents: Mapping[str, Content]) -> list[Content]:
    return [contents[content_id] for content_id in sorted(contents)]


def _products_of(lake: Lake, content_ids: set[str]) -> dict[str, tuple[str, str | None]]:
    """Product and SPU of some contents; of several products with one content, the first by name."""
    if not content_ids:
        return {}
    rows = lake.read(
        "products", ["content_id", "product_id", "spu_id"], where=pc.field("content_id").isin(sorted(content_ids))
    )
    found = sorted(
        {(one["content_id"], one["product_id"], one["spu_id"] or "") for one in rows.to_pylist()}, reverse=True
    )
    return {content_id: (product_id, spu_id or None) for content_id, product_id, spu_id in found}


def _assemble(
    columns: Mapping[str, Sequence[Any]],
    contents: Mapping[str, Content],
    pictures: PictureStore,
    products_of: Mapping[str, tuple[str, str | None]],
) -> Pairs:
    number = {content_id: at for at, content_id in enumerate(sorted(contents))}
    texts = [content.text for content in _ordered(contents)]
    anchors = np.array([number[str(one)] for one in columns["anchor_content_id"]], np.int64)
    positives = np.array([number[str(one)] for one in columns["positive_content_id"]], np.int64)
    shown = np.array([_shown(str(one)) for one in columns["pair_type"]], np.int8)
    has_text = np.array([bool(text) for text in texts], bool)
    readable = has_text | (pictures.counts > 0)
    keep = readable[anchors] & readable[positives]
    keep &= has_text[positives] | (shown != SHOWN.index("text"))
    products, spus = _Numbers(), _Numbers()
    groups = np.stack(
        [
            anchors,
            positives,
            products.of_all(columns["positive_product_id"]),
            spus.of_all(columns["positive_spu_id"]),
        ],
        axis=1,
    ).reshape(-1, 4)
    content_groups = np.full((len(texts), 4), -1, np.int64)
    content_groups[:, 1] = np.arange(len(texts))
    for content_id, (product_id, spu_id) in products_of.items():
        content_groups[number[content_id], 2:] = products.of(product_id), spus.of(spu_id)
    # A positive's SPU is merged with its near duplicates: it says more than the catalogue's.
    content_groups[positives, 2:] = groups[:, 2:]
    hard = [np.array([number[str(c)] for c in some], np.int64) for some in columns["hard_negative_content_ids"]]
    times = [time for time, kept in zip(columns["event_timestamp"], keep, strict=True) if kept]
    return Pairs(
        groups=groups[keep],
        shown=shown[keep],
        hard=[some[readable[some]] for some, kept in zip(hard, keep, strict=True) if kept],
        content_groups=content_groups,
        texts=texts,
        pictures=pictures,
        trained_until=max(times) if times else None,
    )


def _shown(pair_type: str) -> int:
    shown = pair_type.rpartition("_to_")[2]
    if shown not in SHOWN:
        raise InputError(f"contrastive_pairs: pair type {pair_type!r}; expected one that ends in {', '.join(SHOWN)}")
    return SHOWN.index(shown)


class _Numbers:
    """A number for each distinct value; -1 for None."""

    def __init__(self) -> None:
        self.known: dict[object, int] = {}

    def of(self, value: object) -> int:
        return -1 if value is None else self.known.setdefault(value, len(self.known))

    def of_all(self, values: Sequence[object]) -> Int64s:
        return np.array([self.of(value) for value in values], np.int64)
