"""The Myntra catalogue in memory, split for the attribute study: what is trained on, what asks, what may be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.encoder.picture_store import PictureStore
from models.evaluation.attributes import AttributeTrials, in_test
from models.training.captioning import Descriptions, describe
from models.training.pairs import SHOWN, Pairs
from moonlake.arrays import Bools, Int64s, Strings, UInt8s
from moonlake.embeddings.contents import Content
from moonlake.hashing import stable_hash
from sources.datasets.myntra_files import read_myntra, read_pictures

LABEL = "articleType"
CATEGORY = "masterCategory"
NOT_ATTRIBUTES = ("id", "productDisplayName", CATEGORY)
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.15
TEST_SEED, VALIDATION_SEED = 0, 1
"""Of the split: the same queries whatever the seed of the training."""
BASELINE_SIZE = (16, 16)

Mix = Mapping[str, int]
"""How many pairs of each kind a product gives: "text", "image" and "product" (asked for by the picture), "title"."""
DEFAULT_MIX: Mix = {"text": 1, "image": 1, "product": 0, "title": 0}


@dataclass(frozen=True)
class Catalogue:
    """Products with a picture, an article type and a title.

    Attributes:
        ids, titles, labels: [P].
        attributes: [P], with the article type.
        categories: [P].
        pictures: [P].
        twins: int64 [P]: equal for products that have a title or, to the pixel, a picture in common.
        looks: int64 [P]: equal for products that have the picture in common.
    """

    ids: list[str]
    titles: list[str]
    labels: Strings
    attributes: list[dict[str, str]]
    categories: list[str]
    pictures: list[Image.Image]
    twins: Int64s
    looks: Int64s

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, image_size: tuple[int, int]) -> UInt8s:
        """uint8 [P, H, W, 3]: the pictures, resized whole; those that have this size stay as they are."""
        height, width = image_size
        resized = (picture.resize((width, height), Image.Resampling.BICUBIC) for picture in self.pictures)
        return np.stack([np.asarray(picture, np.uint8) for picture in resized])


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the catalogue. No query is trained on.

    Attributes:
        pool: trained on, and what may be found.
        queries: what asks, by its picture alone.
    """

    pool: Int64s
    queries: Int64s


def read_catalogue(folder: Path, limit: int | None = None) -> Catalogue:
    """The products of the published files, the first `limit` of them. Raises as `read_myntra`."""
    found = read_myntra(folder)
    rows = [row for row in found.rows if row["id"] and row["productDisplayName"] and row[LABEL]][:limit]
    pictures = read_pictures(found.images, [str(row["id"]) for row in rows])
    rows = [row for row in rows if row["id"] in pictures]
    titles = [str(row["productDisplayName"]) for row in rows]
    seen = [pictures[str(row["id"])] for row in rows]
    _, looks = np.unique([stable_hash(f"{one.size} {one.tobytes().hex()}") for one in seen], return_inverse=True)
    _, names = np.unique([" ".join(title.lower().split()) for title in titles], return_inverse=True)
    return Catalogue(
        ids=[str(row["id"]) for row in rows],
        titles=titles,
        labels=np.array([row[LABEL] for row in rows], np.str_),
        attributes=[{k: v for k, v in row.items() if v and k not in NOT_ATTRIBUTES} for row in rows],
        categories=[row[CATEGORY] or "" for row in rows],
        pictures=seen,
        twins=_components(names, looks),
        looks=looks,
    )


def split(catalogue: Catalogue, *, validate: bool = False) -> Split:
    """A fixed random 80% and the other 20%; to choose settings, a part of the 80% in place of the 20%."""
    test = in_test(catalogue.ids, TEST_SHARE, seed=TEST_SEED)
    if not validate:
        return Split(np.flatnonzero(~test), np.flatnonzero(test))
    asks = in_test(catalogue.ids, VALIDATION_SHARE, seed=VALIDATION_SEED)
    return Split(np.flatnonzero(~test & ~asks), np.flatnonzero(~test & asks))


def descriptions(catalogue: Catalogue, rows: Int64s, pixels: UInt8s, fields: Sequence[str]) -> Descriptions:
    """Descriptions of some products for stage 0.

    Args: pixels: uint8 [P, H, W, 3] of the whole catalogue.
    """
    parts = [
        describe(catalogue.titles[row], catalogue.attributes[row], catalogue.categories[row], fields) for row in rows
    ]
    return Descriptions(parts, _pictures(pixels, rows, np.ones(len(rows), np.int64)), None)


def pairs(catalogue: Catalogue, rows: Int64s, pixels: UInt8s, mix: Mix) -> Pairs:
    """Contrastive pairs of some products: of each, what its picture (or title) is to find of it.

    Every product is three contents: itself, its picture that asks, its title that asks. So the picture that asks and
    the one that is found are two views, each augmented by itself.

    Args: pixels: uint8 [P, H, W, 3] of the whole catalogue.
    """
    count = len(rows)
    product = np.arange(count)
    kinds = [kind for kind, times in mix.items() for _ in range(times)]
    groups = [
        np.stack([product + count * (2 if kind == "title" else 1), product, product, catalogue.twins[rows]], axis=1)
        for kind in kinds
    ]
    shown = [SHOWN.index("image" if kind == "title" else kind) for kind in kinds]
    titles: list[str | None] = [catalogue.titles[row] for row in rows]
    return Pairs(
        groups=np.concatenate(groups),
        shown=np.repeat(np.array(shown, np.int8), count),
        hard=[np.zeros(0, np.int64)] * (count * len(kinds)),
        content_groups=np.full((3 * count, 4), -1, np.int64),
        texts=titles + [None] * count + titles,
        pictures=_pictures(pixels, np.tile(rows, 3), np.repeat([1, 1, 0], count)),
        trained_until=None,
    )


def trials(catalogue: Catalogue, parts: Split) -> AttributeTrials:
    """The queries, which show their picture alone, and the pool, by article type."""

    def contents(rows: Int64s) -> list[Content]:
        return [Content(catalogue.ids[row], None, (catalogue.ids[row],)) for row in rows]

    return AttributeTrials(
        attribute=LABEL,
        queries=contents(parts.queries),
        pool=contents(parts.pool),
        query_labels=catalogue.labels[parts.queries],
        pool_labels=catalogue.labels[parts.pool],
        own=np.full(len(parts.queries), -1, np.int64),
        left_out=0,
    )


def fresh(catalogue: Catalogue, parts: Split) -> Bools:
    """bool [Q]: false for queries of which the pool has the very picture."""
    return ~np.isin(catalogue.looks[parts.queries], catalogue.looks[parts.pool])


def _pictures(pixels: UInt8s, rows: Int64s, counts: Int64s) -> PictureStore:
    """Contents that show one picture of `pixels`, or none."""
    said = stable_hash(f"{pixels.shape} {stable_hash(pixels[rows[:64]].tobytes().hex())} {rows.tolist()}")
    return PictureStore(pixels, np.arange(len(rows)), counts, rows, said)


def _components(first: Int64s, second: Int64s) -> Int64s:
    """int64 [P]: numbers of the groups of places that are linked by equal values of either array."""
    number = np.arange(len(first))
    while True:
        before = number
        for keys in (first, second):
            lowest = np.full(keys.max(initial=0) + 1, len(keys))
            np.minimum.at(lowest, keys, number)
            number = lowest[keys]
        if (number == before).all():
            return number
