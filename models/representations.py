"""Vectors of contents to measure: made now by an embedder, read from the lake, or of raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.pictures import try_pixels
from models.retrieval import pixel_vectors
from moonlake.contents import Content, read_images
from moonlake.errors import InputError, NotFound
from moonlake.lake import Lake

Floats = NDArray[np.float32]
Represent = Callable[[Sequence[Content]], Floats]
"""Unit vectors of contents, float32 [N, D], row by row; a row of zeros for a content that has none."""
Files = Callable[[Sequence[Content]], list[list[bytes]]]
"""The image files of contents, row by row, those that there are."""

PIXEL_SIDE = 16
CONTENTS_PER_CALL = 2_048


class EmbedsReadable(Protocol):
    """The part of `models.inference.Embedder` that is needed here."""

    def embed_readable(
        self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Vectors, and which rows have one."""
        ...


def lake_files(lake: Lake) -> Files:
    """Files read from the lake at every call: little memory, a scan of `product_images` each time."""

    def files(contents: Sequence[Content]) -> list[list[bytes]]:
        return _of_contents(contents, read_images(lake, {image for one in contents for image in one.image_ids}))

    return files


def kept_files(lake: Lake, contents: Sequence[Content]) -> Files:
    """The files of these contents, read now and kept in memory: for many encoders on the same trials."""
    found = read_images(lake, {image for one in contents for image in one.image_ids})
    return lambda some: _of_contents(some, found)


def embedder_vectors(files: Files, embedder: EmbedsReadable) -> Represent:
    """Vectors made now, by an embedder."""

    def represent(contents: Sequence[Content]) -> Floats:
        parts = []
        for at in range(0, len(contents), CONTENTS_PER_CALL):
            some = contents[at : at + CONTENTS_PER_CALL]
            parts.append(embedder.embed_readable([content.text for content in some], files(some))[0])
        return np.concatenate(parts)

    return represent


def lake_vectors(lake: Lake, space_id: str) -> Represent:
    """Vectors that the lake holds of one space. Raises NotFound when it holds none of a content."""

    def represent(contents: Sequence[Content]) -> Floats:
        rows = lake.read("embeddings", ["content_id", "vector"], where=pc.field("space_id") == space_id)
        row = {name: at for at, name in enumerate(rows["content_id"].to_pylist())}
        if missing := {content.content_id for content in contents} - row.keys():
            raise NotFound(f"{len(missing)} contents have no vector in space {space_id}: run embed_contents")
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        return np.asarray(vectors[[row[content.content_id] for content in contents]], np.float32)

    return represent


def pixel_baseline(files: Files) -> Represent:
    """Raw pixels of the first readable picture, small and centred: what any encoder has to beat."""

    def represent(contents: Sequence[Content]) -> Floats:
        size = (PIXEL_SIDE, PIXEL_SIDE)
        grey = np.full((*size, 3), 128, np.uint8)
        parts = []
        for at in range(0, len(contents), CONTENTS_PER_CALL):
            pictures = []
            for row in files(contents[at : at + CONTENTS_PER_CALL]):
                decoded = (try_pixels(file, size) for file in row)
                pictures.append(next((one for one in decoded if one is not None), grey))
            parts.append(pixel_vectors(pictures))
        return np.concatenate(parts)

    return represent


def cut(vectors: Floats, dimension: int) -> Floats:
    """float32 [N, dimension]: the first numbers of each vector, of unit norm again; zeros stay zeros.

    Raises: InputError: the vectors are shorter.
    """
    if not 1 <= dimension <= vectors.shape[1]:
        raise InputError(f"prefix of {dimension}: expected 1 to {vectors.shape[1]}, the length of the vectors")
    first = vectors[:, :dimension].astype(np.float32)
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    return np.divide(first, norms, out=np.zeros_like(first), where=norms > 0)


def _of_contents(contents: Sequence[Content], found: dict[str, bytes]) -> list[list[bytes]]:
    return [[found[image] for image in content.image_ids if image in found] for content in contents]
