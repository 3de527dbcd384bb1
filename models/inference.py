"""Content in, vectors out: the one toolchain that jobs, serving and evaluation share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoder import Encoder, load_encoder
from models.encoder_config import EncoderArtifact, read_encoder_artifact
from models.pictures import try_pixels
from moonlake.errors import InputError

IMAGES_PER_BATCH = 64
TEXTS_PER_BATCH = 256


class Embedder:
    """An encoder artifact, opened to embed.

    It computes in float32 everywhere, so that a vector depends on the machine that made it by rounding only.

    Attributes:
        space: the embedding space of its vectors.
        artifact: what the artifact's JSON file says.
    """

    def __init__(self, encoder: Encoder, described: EncoderArtifact) -> None:
        self.encoder = encoder.eval()
        self.config = described.config
        self.artifact = described.artifact
        self.space = described.space

    @classmethod
    def open(cls, artifact_folder: Path | str) -> Embedder:
        """The embedder of an artifact folder, on the GPU if there is one.

        Raises: NotFound, InputError: no encoder artifact there, or one that was changed.
        """
        described = read_encoder_artifact(artifact_folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_encoder(described.config, Path(artifact_folder)).to(device), described)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.config.dimension

    def embed(self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]) -> NDArray[np.float32]:
        """float32 [N, D]: unit vectors, rounded to the storage type of the space.

        Args:
            texts: [N]; None or empty for no text.
            images: [N], the files of each row; one that cannot be decoded is left out.

        Raises: InputError: rows of which nothing can be read, by number. `embed_readable` leaves them out instead.
        """
        vectors, readable = self.embed_readable(texts, images)
        if not readable.all():
            rows = np.flatnonzero(~readable)[:10].tolist()
            count = len(texts) - int(readable.sum())
            raise InputError(f"{count} of {len(texts)} rows hold no text and no readable image: rows {rows}")
        return vectors

    def embed_readable(
        self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32 [N, D] as `embed`, and bool [N]: false (and a row of zeros) where nothing could be read."""
        if len(texts) != len(images):
            raise ValueError(f"{len(texts)} texts and {len(images)} rows of images: expected as many")
        pixels = self._decode(images)
        readable = np.array([bool(text) or len(rows) > 0 for text, rows in zip(texts, pixels, strict=True)], dtype=bool)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for rows in _buckets(texts, [len(found) for found in pixels], np.flatnonzero(readable)):
            batch = self.encoder.batch([texts[row] for row in rows], [pixels[row] for row in rows])
            with torch.inference_mode():
                vectors[rows] = self.encoder(batch).cpu().numpy()
        return vectors.astype(self.config.storage_type).astype(np.float32), readable

    def _decode(self, images: Sequence[Sequence[bytes]]) -> list[NDArray[np.uint8]]:
        """[N] of uint8 [n, H, W, 3]; a file that several rows share is decoded once."""
        known: dict[bytes, NDArray[np.uint8] | None] = {}
        for row in images:
            for file in row[: self.config.max_images]:
                if file not in known:
                    known[file] = try_pixels(file, self.config.image_size)
        empty = np.zeros((0, *self.config.image_size, 3), np.uint8)
        readable = [[known[file] for file in row[: self.config.max_images]] for row in images]
        return [np.stack(found) if (found := [one for one in row if one is not None]) else empty for row in readable]


@cache
def shared_embedder(artifact_folder: str, threads: int) -> Embedder:
    """The one embedder of an artifact in this process, which computes on `threads` CPU threads from now on."""
    torch.set_num_threads(threads)
    return Embedder.open(artifact_folder)


def _buckets(
    texts: Sequence[str | None], images: Sequence[int], rows: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of prompts that are about equally long, so that little is padded."""
    order = sorted(rows.tolist(), key=lambda row: (images[row], len(texts[row] or ""), row))
    batch: list[int] = []
    held = 0
    for row in order:
        if batch and (held + images[row] > IMAGES_PER_BATCH or len(batch) == TEXTS_PER_BATCH):
            yield np.array(batch)
            batch, held = [], 0
        batch.append(row)
        held += images[row]
    if batch:
        yield np.array(batch)
