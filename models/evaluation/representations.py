"""Vectors of contents to measure: made now by an embedder, read from the lake, or of raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow.compute as pc

from models.encoder.config import EncoderConfig
from models.encoder.picture_store import PictureStore, read_pictures
from models.evaluation.ranking import pixel_vectors
from moonlake.arrays import Bools, Float32s, Int64s, UInt8s
from moonlake.embeddings.contents import Content
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake

Represent = Callable[[Sequence[Content]], Float32s]
"""Unit vectors of contents, float32 [N, D], row by row; a row of zeros for a content that has none."""

PIXEL_SIDE = 16
CONTENTS_PER_CALL = 8_192
"""Contents whose decoded pictures are held at a time; each time is a scan of `product_images`."""


class EmbedsPixels(Protocol):
    """The part of `models.inference.Embedder` that is needed here."""

    @property
    def config(self) -> EncoderConfig:
        """The encoder's configuration, of which the image size is read."""
        ...

    def embed_pixels(
        self, texts: Sequence[str | None], image_rows: Sequence[Int64s], pixels: UInt8s
    ) -> tuple[Float32s, Bools]:
        """Vectors, and which rows have one."""
        ...


@dataclass(frozen=True, slots=True)
class DecodedContents:
    """Contents whose pictures were read and decoded once: for many encoders of one image size.

    Attributes:
        row: of each content in `pictures`, by content_id.
    """

    row: Mapping[str, int]
    pictures: PictureStore

    @classmethod
    def read(cls, lake: Lake, contents: Sequence[Content], image_size: tuple[int, int]) -> DecodedContents:
        """The contents of any number of tasks (`Trials.contents`), with their pictures as uint8 of one size."""
        distinct = {content.content_id: content for content in contents}
        pictures = read_pictures(lake, [content.image_ids for content in distinct.values()], image_size)
        return cls({content_id: row for row, content_id in enumerate(distinct)}, pictures)

    def vectors(self, embedder: EmbedsPixels) -> Represent:
        """Vectors made now, by an embedder of this image size. Raises KeyError for a content that was not read."""
        store = self.pictures

        def represent(contents: Sequence[Content]) -> Float32s:
            rows = np.array([self.row[content.content_id] for content in contents], np.int64)
            spans = zip(store.starts[rows], store.counts[rows], strict=True)
            images = [store.rows[start : start + count] for start, count in spans]
            return embedder.embed_pixels([content.text for content in contents], images, store.pixels)[0]

        return represent


def embedder_vectors(lake: Lake, embedder: EmbedsPixels) -> Represent:
    """Vectors made now, by an embedder, of pictures that are read and decoded on the way."""

    def represent(contents: Sequence[Content]) -> Float32s:
        parts = []
        for at in range(0, len(contents), CONTENTS_PER_CALL):
            some = contents[at : at + CONTENTS_PER_CALL]
            parts.append(DecodedContents.read(lake, some, embedder.config.image_size).vectors(embedder)(some))
        return np.concatenate(parts)

    return represent


def lake_vectors(lake: Lake, space_id: str) -> Represent:
    """Vectors that the lake holds of one space. Raises NotFound when it holds none of a content."""

    def represent(contents: Sequence[Content]) -> Float32s:
        rows = lake.read("embeddings", ["content_id", "vector"], where=pc.field("space_id") == space_id)
        row = {name: at for at, name in enumerate(rows["content_id"].to_pylist())}
        if missing := {content.content_id for content in contents} - row.keys():
            raise NotFound(f"{len(missing)} contents have no vector in space {space_id}: run embed_contents")
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        return np.asarray(vectors[[row[content.content_id] for content in contents]], np.float32)

    return represent


def pixel_baseline(lake: Lake) -> Represent:
    """Raw pixels of the first readable picture, small and centred: what any encoder has to beat."""

    def represent(contents: Sequence[Content]) -> Float32s:
        size = (PIXEL_SIDE, PIXEL_SIDE)
        store = read_pictures(lake, [content.image_ids for content in contents], size)
        grey = np.full((*size, 3), 128, np.uint8)
        firsts = zip(store.starts, store.counts, strict=True)
        return pixel_vectors(store.pixels[store.rows[start]] if count else grey for start, count in firsts)

    return represent


def cut(vectors: Float32s, dimension: int) -> Float32s:
    """float32 [N, dimension]: the first numbers of each vector, of unit norm again; zeros stay zeros.

    Raises: InputError: the vectors are shorter.
    """
    if not 1 <= dimension <= vectors.shape[1]:
        raise InputError(f"prefix of {dimension}: expected 1 to {vectors.shape[1]}, the length of the vectors")
    first = vectors[:, :dimension].astype(np.float32)
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    return np.divide(first, norms, out=np.zeros_like(first), where=norms > 0)
