"""The decoded images of many contents in one array, read from the lake and decoded in parallel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.encoder.available_memory import available_bytes
from models.encoder.pictures import try_pixels
from moonlake.arrays import Bools, Int64s, UInt8s
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake

SHARE_OF_MEMORY = 0.3
"""Share of the free memory that decoded images may take; more of them lie in a file that is mapped into memory."""
FILES_AT_ONCE = 512


@dataclass(frozen=True)
class PictureStore:
    """The images of contents, in the order of each.

    Attributes:
        pixels: uint8 [N, H, W, 3]: each distinct image once.
        starts: int64 [C]: where the images of a content begin in `rows`.
        counts: int64 [C]: how many it has.
        rows: int64 [R]: rows of `pixels`.
        fingerprint: hash of the images' ids and the size that they were brought to.
    """

    pixels: UInt8s
    starts: Int64s
    counts: Int64s
    rows: Int64s
    fingerprint: str

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def rows_of(self, contents: Int64s, inside: Bools) -> Int64s:
        """int64 [n]: rows of `pixels` of some images of contents [V], those that are true in `inside` [V, K]."""
        places = self.starts[contents][:, None] + np.arange(inside.shape[1])
        return self.rows[places[inside]]

    def of(self, contents: Int64s) -> PictureStore:
        """The images of some contents, numbered anew; the pixels stay where they are."""
        said = stable_hash(f"{self.fingerprint} {contents.tolist()}")
        return PictureStore(self.pixels, self.starts[contents], self.counts[contents], self.rows, said)


def read_pictures(
    lake: Lake, image_ids: Sequence[Sequence[str]], image_size: tuple[int, int], workers: int = 2
) -> PictureStore:
    """The images of contents, those that the lake has and that can be decoded.

    Files are read and decoded a few hundred at a time. Beyond a share of the free memory the pixels lie in a file.
    What breaks first as catalogues grow: about 100 bytes of ids an image here (10 GB at 100 million), after the
    contents themselves, which are Python objects.

    Args: image_ids: [C], of each content.
    """
    wanted = sorted({name for row in image_ids for name in row})
    return _store(image_ids, wanted, _files(lake, wanted), image_size, workers)


def decode_files(
    image_ids: Sequence[Sequence[str]], files: Mapping[str, bytes], image_size: tuple[int, int], workers: int = 2
) -> PictureStore:
    """The same of image files by id."""
    wanted = sorted({name for row in image_ids for name in row if name in files})
    return _store(image_ids, wanted, ((name, files[name]) for name in wanted), image_size, workers)


def spans(starts: Int64s, counts: Int64s) -> Int64s:
    """int64 [sum of counts]: the places from each start on, `counts` of them, one span after the other.

    >>> spans(np.array([4, 0]), np.array([2, 3])).tolist()
    [4, 5, 0, 1, 2]
    """
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def _files(lake: Lake, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    if not wanted or not lake.exists("product_images"):
        return
    where = pc.field("image_id").isin(pa.array(wanted, pa.string()))
    images = lake.dataset("product_images")
    for batch in images.to_batches(["image_id", "image_bytes"], filter=where, batch_size=FILES_AT_ONCE):
        yield from zip(batch["image_id"].to_pylist(), batch["image_bytes"].to_pylist(), strict=True)


def _store(
    image_ids: Sequence[Sequence[str]],
    wanted: Sequence[str],
    files: Iterable[tuple[str, bytes]],
    image_size: tuple[int, int],
    workers: int,
) -> PictureStore:
    place = {name: at for at, name in enumerate(wanted)}
    pixels = _room(len(wanted), image_size)
    decoded = np.zeros(len(wanted), bool)

    def decode(file: tuple[str, bytes]) -> None:
        found = try_pixels(file[1], image_size)
        if found is not None:
            pixels[place[file[0]]], decoded[place[file[0]]] = found, True

    with ThreadPoolExecutor(workers, "decode") as threads:
        coming = iter(files)
        while some := list(islice(coming, FILES_AT_ONCE)):  # never all files at once
            list(threads.map(decode, some))
    rows = [[place[name] for name in row if name in place and decoded[place[name]]] for row in image_ids]
    counts = np.array([len(row) for row in rows], np.int64)
    return PictureStore(
        pixels=pixels,
        starts=np.cumsum(counts) - counts,
        counts=counts,
        rows=np.array([at for row in rows for at in row], np.int64),
        fingerprint=stable_hash(repr((image_size, image_ids, decoded.tolist()))),
    )


def _room(count: int, image_size: tuple[int, int]) -> UInt8s:
    """uint8 [count, H, W, 3], in memory or, where that is short, in a file without a name."""
    shape = (count, *image_size, 3)
    if np.prod(shape) <= SHARE_OF_MEMORY * available_bytes():
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="moonlake-pixels-") as file:
        os.truncate(file.fileno(), int(np.prod(shape)))
        return np.memmap(file, np.uint8, "r+", shape=shape)
