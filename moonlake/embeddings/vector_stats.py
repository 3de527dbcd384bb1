"""Statistics of the vectors of an embedding space, computed batch by batch: the gates of a release read them.

Rows are taken as they lie in the lake: null, of another length, NaN. Each content that there is costs 18 bytes of
memory; vectors are held one batch at a time, and for a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Bools, Float32s, Float64s, UInt64s
from moonlake.embeddings.content_index import ContentIndex, words_of
from moonlake.embeddings.contents import unreadable_contents
from moonlake.embeddings.spaces import Space
from moonlake.lake.lake import Lake

BATCH_ROWS = 16_384
HASHES_KEPT = 1 << 20
"""Distinct vectors that are told apart one by one; of more, an even share of this many at least half."""

EQUALLY_NEAR = 1e-7
"""Inner products of unit vectors that lie this close are told apart by rounding alone."""


@dataclass(frozen=True, slots=True)
class ContentsNow:
    """The contents that the lake has now and that can be read.

    Attributes:
        of_product: bool [N], parallel to the index: a product has it, now or before.
    """

    index: ContentIndex
    of_product: Bools

    def __len__(self) -> int:
        return len(self.of_product)

    def ids(self, rows: slice) -> list[str]:
        """Some of the content ids, in order."""
        part = self.index.part(rows)
        return [f"{high:016x}{low:016x}" for high, low in zip(part.high.tolist(), part.low.tolist(), strict=True)]

    def known(self, content_ids: Sequence[str]) -> list[str]:
        """The given ids that are among the contents, in the given order."""
        rows = self.index.rows_of(pa.array(content_ids, pa.string()))
        return [name for name, row in zip(content_ids, rows, strict=True) if row >= 0]

    def sample(self, count: int, start: str) -> list[str]:
        """`count` ids that follow each other, from `start` on: ids are hashes, so any stretch of them is a sample."""
        first = int(np.searchsorted(self.index.high, np.uint64(int(start[:16], 16))))
        first = max(0, min(first, len(self) - count))
        return self.ids(slice(first, first + count))


@dataclass(frozen=True, slots=True)
class SpaceFigures:
    """Statistics of the vectors of one space.

    Attributes:
        contents: that the lake has now, less those of which nothing can be read.   covered: those with a row.
        strange_ids: rows whose content_id is malformed, or stood in another row before.
        misshapen: rows without a vector, or with one of another length.   not_finite, zero: of the other rows.
        norm_error: largest |norm - 1| of the rows that are none of these; None without any.
        duplicate_share: of the same rows, how many could go without a vector being lost.
        recent, earlier: products that were given a vector at last and before.
        drift: length of the difference between their mean vectors; None where one side is empty.
    """

    rows: int
    contents: int
    covered: int
    strange_ids: int
    misshapen: int
    not_finite: int
    zero: int
    norm_error: float | None
    duplicate_share: float | None
    recent: int
    earlier: int
    drift: float | None


def contents_now(lake: Lake, space_id: str) -> ContentsNow:
    """The contents of products and queries, less those that were refused in this space as unreadable."""
    left_out = pa.array(unreadable_contents(lake, space_id), pa.string())
    products, queries = (_words(_scan(lake, name, ["content_id"])) for name in ("products", "queries"))
    out = words_of(left_out)[:2]
    high, low = (np.concatenate(parts) for parts in zip(products, queries, out, strict=True))
    kind = np.repeat(np.array([1, 0, 2], np.int8), [len(products[0]), len(queries[0]), len(left_out)])
    order = np.lexsort((-kind, low, high))  # of one content: refused first, then product
    high, low, kind = high[order], low[order], kind[order]
    first = np.ones(len(high), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    kept = first & (kind != 2)
    return ContentsNow(ContentIndex(high[kept], low[kept]), kind[kept] == 1)


def recent_since(lake: Lake, space: Space, hours: float) -> datetime | None:
    """The moment from which vectors count as recent: so long before the last write; None where none is older."""
    times = [pc.min_max(one["created_at"]).as_py() for one in _scan(lake, "embeddings", ["created_at"], _of(space))]
    known = [(one["min"], one["max"]) for one in times if one["max"] is not None]
    if not known:
        return None
    since = max(last for _, last in known) - timedelta(hours=hours)
    return since if min(first for first, _ in known) <= since else None


def read_figures(lake: Lake, space: Space, contents: ContentsNow, since: datetime | None) -> SpaceFigures:
    """The figures of a space as it lies in the lake now; `since` as `recent_since` gives it."""
    batches = _scan(lake, "embeddings", ["content_id", "vector", "created_at"], _of(space))
    return measure(batches, contents, space.dimension, since)


def measure(
    batches: Iterable[pa.RecordBatch], contents: ContentsNow, dimension: int, since: datetime | None
) -> SpaceFigures:
    """The figures of rows of one space, whatever they hold.

    Args:
        batches: columns content_id, vector, created_at.
        since: a row that was written later than this counts as recent; None: none does.
    """
    rows = misshapen = not_finite = zero = strange = 0
    seen = np.zeros(len(contents), bool)
    norm_error: float | None = None
    distinct, usable = DistinctCount(), 0
    sums, counts = np.zeros((2, dimension)), np.zeros(2, int)  # earlier, recent
    for batch in batches:
        rows += batch.num_rows
        places = contents.index.rows_of(batch["content_id"])
        fresh = np.unique(places[(places >= 0) & ~seen[places]]) if len(seen) else places[:0]
        malformed = ~words_of(batch["content_id"])[2]
        strange += int(malformed.sum() + (places >= 0).sum()) - len(fresh)
        seen[fresh] = True
        vectors, shaped = _vectors(batch["vector"], dimension)
        misshapen += batch.num_rows - int(shaped.sum())
        finite = np.isfinite(vectors).all(1)
        not_finite += len(vectors) - int(finite.sum())
        good = vectors[finite].astype(np.float64)
        norms = np.linalg.norm(good, axis=1)
        zero += int((norms == 0).sum())
        used = norms > 0
        if used.any():
            norm_error = max(norm_error or 0.0, float(np.abs(norms[used] - 1).max()))
        usable += int(used.sum())
        distinct.add(vectors[finite][used])
        product = np.append(contents.of_product, False)[places[shaped][finite]]
        late = _later(batch["created_at"], since)[shaped][finite]
        for at, chosen in enumerate((product & ~late, product & late)):
            sums[at] += good[chosen].sum(0)
            counts[at] += int(chosen.sum())
    apart = sums[1] / counts[1] - sums[0] / counts[0] if counts.all() else None
    return SpaceFigures(
        rows,
        len(contents),
        int(seen.sum()),
        strange,
        misshapen,
        not_finite,
        zero,
        norm_error,
        max(0.0, 1 - distinct.count / usable) if usable else None,
        int(counts[1]),
        int(counts[0]),
        None if apart is None else float(np.linalg.norm(apart)),
    )


class DistinctCount:
    """A count of distinct rows by their hashes: exact up to `kept`, an estimate above."""

    def __init__(self, kept: int = HASHES_KEPT) -> None:
        self._most = kept
        self._halvings = 0
        self._hashes = np.zeros(0, np.uint64)

    @property
    def count(self) -> int:
        """Distinct rows so far."""
        return len(self._hashes) << self._halvings

    def add(self, vectors: Float32s) -> None:
        """Take rows [n, D] into account."""
        bits = (vectors + np.float32(0)).view(np.uint32).astype(np.uint64)  # 0 is added so that -0 is 0
        multipliers = np.random.default_rng(vectors.shape[1]).integers(2**64, size=vectors.shape[1], dtype=np.uint64)
        summed = (bits + np.uint64(1)) * (multipliers | np.uint64(1))
        hashes = ContentIndex(summed.sum(1, dtype=np.uint64), summed[:, 0]).drawn(0, 1)[:, 0]
        self._hashes = np.union1d(self._hashes, self._chosen(hashes))
        while len(self._hashes) > self._most:
            self._halvings += 1
            self._hashes = self._chosen(self._hashes)

    def _chosen(self, hashes: UInt64s) -> UInt64s:
        return hashes[hashes < np.uint64(2 ** (64 - self._halvings) - 1)]


def sample_vectors(lake: Lake, space: Space, content_ids: Sequence[str]) -> tuple[Float32s, Bools]:
    """float32 [n, D] of contents, zeros where a vector is missing or cannot be used, and bool [n]: which have a row."""
    vectors, there = np.zeros((len(content_ids), space.dimension), np.float32), np.zeros(len(content_ids), bool)
    if not content_ids:
        return vectors, there
    row = {name: at for at, name in enumerate(content_ids)}
    wanted = pc.field("content_id").isin(pa.array(list(row), pa.string()))
    # The table is clustered by these two: files outside the span are not read.
    span = (pc.field("content_id") >= min(row)) & (pc.field("content_id") <= max(row))
    where = _of(space) & span & wanted
    for batch in _scan(lake, "embeddings", ["content_id", "vector"], where):
        places = np.array([row[name] for name in batch["content_id"].to_pylist()], int)
        there[places] = True
        found, shaped = _vectors(batch["vector"], space.dimension)
        vectors[places[shaped]] = np.where(np.isfinite(found).all(1, keepdims=True), found, 0)
    return vectors, there


def recent_ids(lake: Lake, space: Space, count: int, since: datetime | None) -> list[str]:
    """`count` contents at most of those that count as recent."""
    if since is None:
        return []
    late = _of(space) & (pc.field("created_at") > since)
    rows = lake.dataset("embeddings").head(count, columns=["content_id"], filter=late)
    return [str(name) for name in rows["content_id"].to_pylist()]


def neighbour_overlap(first: Float32s, second: Float32s, count: int) -> float:
    """Share of the `count` nearest neighbours that contents have in common in two spaces, less what chance gives.

    1 where all are the same, 0 where they are as chance has them. Each space is searched by itself: vectors of the two
    never meet. Of neighbours that are equally near, each is one with the probability of an even draw, so that vectors
    that are all the same come out as chance does, whichever of them a search names.

    Args: first, second: float32 [n, D] and [n, E], the same contents in the same order; n > count + 1.
    """
    shared = 0.0
    for at in range(0, len(first), 1024):
        one, other = (_neighbours(vectors.astype(np.float64), at, at + 1024, count) for vectors in (first, second))
        shared += float((one * other).sum())
    share = shared / len(first) / count
    chance = count / (len(first) - 1)
    return (share - chance) / (1 - chance)


def _neighbours(vectors: Float64s, start: int, stop: int, count: int) -> Float64s:
    """[m, n]: how likely each row is among the `count` with the largest inner product to rows start:stop, not itself.

    1 or 0, but for those as near as the last one: they share the places that are left.
    """
    scores = vectors[start:stop] @ vectors.T
    scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
    last = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]
    nearer = scores > last + EQUALLY_NEAR
    tied = (scores >= last - EQUALLY_NEAR) & ~nearer
    places: Float64s = (count - nearer.sum(1, keepdims=True)) / tied.sum(1, keepdims=True)
    return nearer + tied * places


def _vectors(column: pa.Array, dimension: int) -> tuple[Float32s, Bools]:
    """float32 [m, D] of the rows of the right length (a null in one is NaN), and which of all rows they are."""
    right = pc.fill_null(pc.equal(pc.list_value_length(column), dimension), False)
    values = column.filter(right).flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float32).reshape(-1, dimension), right.to_numpy(zero_copy_only=False)


def _later(times: pa.Array, since: datetime | None) -> Bools:
    if since is None:
        return np.zeros(len(times), bool)
    later: Bools = pc.fill_null(pc.greater(times, since), True).to_numpy(zero_copy_only=False)
    return later


def _of(space: Space) -> pc.Expression:
    return pc.field("space_id") == space.space_id


def _words(batches: Iterable[pa.RecordBatch]) -> tuple[UInt64s, UInt64s]:
    """The well-formed ids of the batches as halves [N]."""
    parts = [(high[good], low[good]) for high, low, good in (words_of(one["content_id"]) for one in batches)]
    none = np.zeros(0, np.uint64)
    return np.concatenate([none, *(high for high, _ in parts)]), np.concatenate([none, *(low for _, low in parts)])


def _scan(lake: Lake, name: str, columns: list[str], where: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
    if lake.exists(name):
        yield from (
            lake.dataset(name)
            .scanner(columns, filter=where, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1)
            .to_batches()
        )
