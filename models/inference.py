"""Content in, vectors out: the one toolchain that jobs, serving and evaluation share.

A content is embedded once in a call, and so is a picture, whatever contents it stands in. Files are decoded by several
threads while the block of rows before is computed; prompts of about the same length go through the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from models.artifacts import Artifact
from models.encoder.backbone import ImageFeatures
from models.encoder.config import EncoderArtifact, EncoderConfig, read_encoder_artifact
from models.encoder.encoder import Encoder, to_float
from models.encoder.factory import load_encoder
from models.encoder.pictures import try_pixels
from models.encoder.precision import Precision, computing_dtype
from moonlake.arrays import Bools, Float32s, Int64s, UInt8s
from moonlake.embeddings.spaces import SpaceDefinition
from moonlake.errors import InputError
from moonlake.hashing import stable_hash

Key = TypeVar("Key", bound=Hashable)
Reader: TypeAlias = Callable[[Sequence[Key]], list[UInt8s | None]]
Features: TypeAlias = Mapping[Key, ImageFeatures | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what an embedder holds in memory at a time.

    Attributes:
        rows: rows of a block, of which the prompts are sorted by length.
        pixel_bytes: decoded pictures of a block; those of two blocks are held.
        batch_pixels: pixels of the pictures that go through the tower together: as many as stay in a core's cache.
        batch_tokens: places of the prompts that go through the language model together, padding included.
        feature_bytes: features of pictures that were seen, kept for rows to come.
    """

    rows: int = 512
    pixel_bytes: int = 64 << 20
    batch_pixels: int = 64 * 64 * 64
    batch_tokens: int = 4096
    feature_bytes: int = 256 << 20


class Embedder:
    """An encoder, opened to embed.

    It computes in float32 unless asked otherwise: a vector then depends on the machine that made it by rounding only.

    Attributes:
        encoder: the model, on the device where it computes.
        config: what the encoder is.
    """

    def __init__(
        self,
        encoder: Encoder,
        described: EncoderArtifact | None = None,
        *,
        precision: Precision = "float32",
        limits: Limits | None = None,
    ) -> None:
        self.encoder = encoder.eval()
        self.config: EncoderConfig = encoder.config
        self._described = described
        self._device = encoder.head.weight.device
        self._dtype = computing_dtype(precision, self._device)
        self._limits = limits or Limits()
        self._pixels = self.config.image_height * self.config.image_width
        self._features_kept = self._limits.feature_bytes // (4 * encoder.backbone.feature_size)
        self._decoders = ThreadPoolExecutor(max(1, torch.get_num_threads()), "decode")
        self._ahead = ThreadPoolExecutor(1, "block")

    @classmethod
    def open(cls, artifact_folder: Path | str, *, precision: Precision = "float32") -> Embedder:
        """The embedder of an artifact folder, on the GPU if there is one.

        Args: precision: "auto" is bfloat16 where the hardware has it. Such vectors are near those of the space, but not
            the ones that another machine makes: they are for evaluation, not for the lake.

        Raises: NotFound, InputError: no encoder artifact there, or one that was changed.
        """
        described = read_encoder_artifact(artifact_folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_encoder(described.config, Path(artifact_folder)).to(device), described, precision=precision)

    @classmethod
    def of(cls, encoder: Encoder, *, precision: Precision = "float32", limits: Limits | None = None) -> Embedder:
        """The embedder of an encoder in memory, which has no embedding space; it is put into evaluation mode."""
        return cls(encoder, precision=precision, limits=limits)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.config.dimension

    @property
    def artifact(self) -> Artifact:
        """The contents of the artifact's JSON file. Raises InputError for an encoder that was never saved."""
        return self._require_artifact().artifact

    @property
    def space(self) -> SpaceDefinition:
        """The embedding space of the vectors. Raises InputError for an encoder that was never saved."""
        return self._require_artifact().space

    def embed(self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]) -> Float32s:
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

    def embed_readable(self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]) -> tuple[Float32s, Bools]:
        """float32 [N, D] as `embed`, and bool [N]: false (and a row of zeros) where nothing could be read."""
        files: dict[str, bytes] = {}
        keys: list[tuple[str, ...]] = []
        for row in images:
            names = tuple(stable_hash(file) for file in row[: self.config.max_images])
            files.update(zip(names, row, strict=False))
            keys.append(names)

        def decode(wanted: Sequence[str]) -> list[UInt8s | None]:
            return list(self._decoders.map(lambda name: try_pixels(files[name], self.config.image_size), wanted))

        return self._embed(texts, keys, decode)

    def embed_pixels(
        self, texts: Sequence[str | None], image_rows: Sequence[Int64s], pixels: UInt8s
    ) -> tuple[Float32s, Bools]:
        """As `embed_readable`, of pictures that were decoded before.

        Args:
            image_rows: [N], rows of `pixels` of each text.
            pixels: uint8 [images, H, W, 3] of the encoder's image size; a memory map will do.
        """
        keys = [tuple(rows[: self.config.max_images].tolist()) for rows in image_rows]
        return self._embed(texts, keys, lambda wanted: list(pixels[np.array(wanted, int)]))

    def _embed(
        self, texts: Sequence[str | None], images: Sequence[tuple[Key, ...]], read: Reader[Key]
    ) -> tuple[Float32s, Bools]:
        """Vectors of rows and whether they can be read; pictures go by keys that are equal where the pictures are."""
        if len(texts) != len(images):
            raise ValueError(f"{len(texts)} texts and {len(images)} rows of images: expected as many")
        numbers: dict[tuple[str, tuple[Key, ...]], int] = {}
        rows = zip(texts, images, strict=True)
        content = np.array([numbers.setdefault((text or "", keys), len(numbers)) for text, keys in rows], int)
        contents = list(numbers)
        vectors, readable = np.zeros((len(contents), self.dimension), np.float32), np.zeros(len(contents), bool)
        most_images = self._limits.pixel_bytes // (3 * self._pixels)
        blocks = _blocks([keys for _, keys in contents], self._limits.rows, most_images)
        needs = [list(dict.fromkeys(key for _, keys in contents[block] for key in keys)) for block in blocks]
        for block, features in zip(blocks, self._features_of_blocks(needs, read), strict=True):
            seen = [[found for key in keys if (found := features[key]) is not None] for _, keys in contents[block]]
            vectors[block], readable[block] = self._vectors([text for text, _ in contents[block]], seen)
        rounded = vectors.astype(self.config.storage_type).astype(np.float32)
        return rounded[content], readable[content]

    def _features_of_blocks(self, needs: Sequence[Sequence[Key]], read: Reader[Key]) -> Iterator[Features[Key]]:
        """For each block the features of the pictures that it needs, None for one that cannot be read.

        The pictures of a block are read while the one before is computed, but for those that were kept.
        """
        known: dict[Key, ImageFeatures | None] = {}
        wanted = needs[0] if needs else []
        reading: Future[list[UInt8s | None]] = self._ahead.submit(read, wanted)
        for need, following in pairwise([*needs, []]):
            pixels = reading.result()
            near = known.keys() | set(wanted)
            later = [key for key in following if key not in near]
            reading = self._ahead.submit(read, later)
            found = {key: known[key] for key in need if key in known} | self._features(wanted, pixels)
            if forgotten := [key for key in need if key not in found]:
                found |= self._features(forgotten, read(forgotten))
            yield found
            known |= found
            for key in list(known)[: max(0, len(known) - self._features_kept)]:
                del known[key]
            wanted = later

    @torch.inference_mode()
    def _features(self, keys: Sequence[Key], pixels: Sequence[UInt8s | None]) -> dict[Key, ImageFeatures | None]:
        found: dict[Key, ImageFeatures | None] = dict.fromkeys(keys)
        good = [(key, one) for key, one in zip(keys, pixels, strict=True) if one is not None]
        size = max(1, self._limits.batch_pixels // self._pixels)
        for at in range(0, len(good), size):
            some = good[at : at + size]
            images = torch.from_numpy(np.stack([one for _, one in some])).to(self._device)
            with self._computing():
                features = self.encoder.image_features(to_float(images))
            found.update({key: features[number] for number, (key, _) in enumerate(some)})
        return found

    @torch.inference_mode()
    def _vectors(self, texts: Sequence[str], seen: Sequence[Sequence[ImageFeatures]]) -> tuple[Float32s, Bools]:
        """float32 [n, D] and bool [n], of texts and the features of their pictures."""
        words = self.encoder.words(texts)
        lengths = np.array(self.encoder.prompt_lengths(words, [len(row) for row in seen]))
        readable = np.array([bool(text) or bool(row) for text, row in zip(texts, seen, strict=True)], bool)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        no_images = torch.zeros((0, *self.config.image_size, 3), dtype=torch.uint8)
        for rows in _batches(lengths, np.flatnonzero(readable), self._limits.batch_tokens):
            prompts = self.encoder.prompts([words[row] for row in rows], [len(seen[row]) for row in rows], no_images)
            pictures = [one for row in rows for one in seen[row]]
            with self._computing():
                found = self.encoder(prompts, ImageFeatures.stacked(pictures) if pictures else None)
            vectors[rows] = found.float().cpu().numpy()
        return vectors, readable

    def _computing(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _require_artifact(self) -> EncoderArtifact:
        if self._described is None:
            raise InputError("this encoder was never saved as an artifact, so it has no embedding space: save it first")
        return self._described


@cache
def shared_embedder(artifact_folder: str, threads: int) -> Embedder:
    """The one embedder of an artifact in this process, which computes on `threads` CPU threads from now on."""
    torch.set_num_threads(threads)
    return Embedder.open(artifact_folder)


def _blocks(images: Sequence[Sequence[object]], most_rows: int, most_images: int) -> list[slice]:
    """Rows in their order, cut so that a block has few enough rows and pictures; a single row may have more of them."""
    starts, held = [0], 0
    for at, row in enumerate(images):
        if at > starts[-1] and (held + len(row) > most_images or at - starts[-1] == most_rows):
            starts.append(at)
            held = 0
        held += len(row)
    return [slice(*bounds) for bounds in pairwise([*starts, len(images)])] if images else []


def _batches(lengths: Int64s, rows: Int64s, most_tokens: int) -> Iterator[Int64s]:
    """Rows in batches of prompts that are about equally long, so that little is padded."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end - start + 1) * lengths[ordered[end]] > most_tokens:
            yield ordered[start:end]
            start = end
