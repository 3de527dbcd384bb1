"""Contrastive pairs in memory: which query led to which product, with everything that training reads of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.pictures import try_pixels
from moonlake.contents import Content, read_contents, read_images
from moonlake.lake import Lake

PAIR_COLUMNS = (
    "pair_id",
    "anchor_content_id",
    "positive_content_id",
    "positive_product_id",
    "positive_spu_id",
    "pair_type",
    "event_timestamp",
)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a batch of pairs.

    Attributes:
        texts: [B].
        images: [B], each uint8 [n, H, W, 3].
    """

    texts: list[str | None]
    images: list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Training pairs; every array has one element a pair.

    Attributes:
        anchors, positives: numbers of contents, rows of `texts` and `image_rows`.
        products, spus: numbers that are equal where the product or SPU is; -1 for no SPU.
        shown: what of the product is shown: "image", "text" or "product".
        texts: of each content.
        image_rows: of each content, rows of `pixels`.
        pixels: uint8 [images, H, W, 3].
        trained_until: time of the last pair; None if there is none.
    """

    anchors: NDArray[np.int64]
    positives: NDArray[np.int64]
    products: NDArray[np.int64]
    spus: NDArray[np.int64]
    shown: list[str]
    texts: list[str | None]
    image_rows: list[NDArray[np.int64]]
    pixels: NDArray[np.uint8]
    trained_until: datetime | None

    def __len__(self) -> int:
        return len(self.anchors)

    def queries(self, chosen: NDArray[np.int64], max_images: int) -> Side:
        """The queries of some pairs, as they are."""
        images = [self.pixels[self.image_rows[content][:max_images]] for content in self.anchors[chosen]]
        return Side([self.texts[content] for content in self.anchors[chosen]], images)

    def items(self, chosen: NDArray[np.int64], max_images: int, text_dropout: float, rng: np.random.Generator) -> Side:
        """The products of some pairs as their pair types show them, partly hidden by chance.

        Args:
            max_images: from one to this many of a product's images are shown.
            text_dropout: probability that a product with an image is shown without its text.
        """
        texts: list[str | None] = []
        images: list[NDArray[np.uint8]] = []
        for pair in chosen:
            content = self.positives[pair]
            rows = self.image_rows[content] if self.shown[pair] != "text" else self.image_rows[content][:0]
            if len(rows):
                count = int(rng.integers(1, min(max_images, len(rows)) + 1))
                rows = np.sort(rng.choice(rows, count, replace=False))
            hidden = self.shown[pair] == "image" or rng.random() < text_dropout
            only_image = hidden and len(rows) > 0
            texts.append(None if only_image else self.texts[content])
            images.append(self.pixels[rows])
        return Side(texts, images)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Numbers of pairs for ever: pass after pass over all of them in a new order; whole batches only."""
        size = min(size, len(self))
        while True:
            order = rng.permutation(len(self))
            yield from order[: len(order) // size * size].reshape(-1, size)


def read_pairs(lake: Lake, before: datetime, image_size: tuple[int, int]) -> Pairs:
    """The pairs of the lake with an event time before `before`, their images decoded once.

    A pair of which one side has neither text nor a readable image is left out.
    """
    rows = lake.read("contrastive_pairs", PAIR_COLUMNS, where=pc.field("event_timestamp") < before)
    rows = rows.sort_by([("event_timestamp", "ascending"), ("pair_id", "ascending")])
    columns = rows.to_pydict()
    contents = read_contents(lake, {*columns["anchor_content_id"], *columns["positive_content_id"]})
    files = read_images(lake, {image for content in contents.values() for image in content.image_ids})
    return make_pairs(columns, contents, files, image_size)


def make_pairs(
    columns: Mapping[str, Sequence[Any]],
    contents: Mapping[str, Content],
    files: Mapping[str, bytes],
    image_size: tuple[int, int],
) -> Pairs:
    """Pairs from the columns of `contrastive_pairs`, the contents that they name and the images of these."""
    pictures = {name: try_pixels(file, image_size) for name, file in sorted(files.items())}
    decoded = {name: found for name, found in pictures.items() if found is not None}
    row_of_image = {name: row for row, name in enumerate(decoded)}
    number = {content_id: at for at, content_id in enumerate(sorted(contents))}
    ordered = [contents[content_id] for content_id in number]
    image_rows = [
        np.array([row_of_image[i] for i in content.image_ids if i in row_of_image], int) for content in ordered
    ]
    texts = [content.text for content in ordered]
    anchors = np.array([number[str(one)] for one in columns["anchor_content_id"]], int)
    positives = np.array([number[str(one)] for one in columns["positive_content_id"]], int)
    shown = [str(one).rpartition("_to_")[2] for one in columns["pair_type"]]
    readable = np.array([bool(text) or len(rows) > 0 for text, rows in zip(texts, image_rows, strict=True)], bool)
    has_text = np.array([bool(text) for text in texts], bool)
    keep = readable[anchors] & readable[positives]
    keep &= has_text[positives] | (np.array(shown, dtype=object) != "text")
    times = [time for time, kept in zip(columns["event_timestamp"], keep, strict=True) if kept]
    return Pairs(
        anchors=anchors[keep],
        positives=positives[keep],
        products=_numbers(columns["positive_product_id"])[keep],
        spus=_numbers(columns["positive_spu_id"])[keep],
        shown=[one for one, kept in zip(shown, keep, strict=True) if kept],
        texts=texts,
        image_rows=image_rows,
        pixels=np.stack(list(decoded.values())) if decoded else np.zeros((0, *image_size, 3), np.uint8),
        trained_until=max(times) if times else None,
    )


def _numbers(values: Sequence[object]) -> NDArray[np.int64]:
    """int64 [n]: equal for equal values, -1 for None."""
    known: dict[object, int] = {}
    return np.array([-1 if value is None else known.setdefault(value, len(known)) for value in values], np.int64)
