"""Rows of a training set as arrays, and batches of them as tensors.

Columns are read and encoded one by one, whole: ids become numbers, content ids become row pointers into the snapshot,
and behaviour lists become flat arrays with offsets. No vector is read until a batch is made (dynamic loading), so the
memory of a training set grows with its ids and not with the width of the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from models.ctr import cube
from models.ctr.id_hashing import hashed_rows
from moonlake.arrays import Bools, Float32s, Float64s, Int32s, Int64s
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import ContractError, SchemaMismatch
from moonlake.schema.tables import ACTIONS

PADDING, UNKNOWN = 0, 1
"""Numbers of ids that are no ids: an empty place in a list; an id that is null or was not seen in training."""
FIRST_ID = 2
GAP_BUCKETS = 32
"""Time from a behaviour to the impression: bucket k holds [2^k - 1, 2^(k+1) - 1) seconds."""
CONTEXTS = 2 * (1 + len(ACTIONS)) * GAP_BUCKETS
"""What a behaviour is to the target, as one number: whether it is on the same product, then what was done (place in
ACTIONS + 1, or 0), then the bucket of the gap."""
SAME_PRODUCT = CONTEXTS // 2
"""Contexts from here on are of behaviours on the target itself."""

TARGET_CONTENT, QUERY_CONTENT = "content_id", "query_content_id"
BEHAVIOR_PRODUCTS, BEHAVIOR_CONTENTS = "behavior_product_ids", "behavior_content_ids"
BEHAVIOR_QUERIES = "behavior_query_content_ids"
BEHAVIOR_ACTIONS, BEHAVIOR_TIMES = "behavior_actions", "behavior_times_us"

SEEN_ROWS = "hashed.safetensors"
"""File of an artifact: one bit for each row of a table of hashed ids, eight to a byte."""

ROWS_AT_ONCE = 2_048
"""Rows of a batch where the size changes nothing: in prediction, and in what trees read."""

ReadColumn = Callable[[str], pa.ChunkedArray]


class Batch(NamedTuple):
    """Impressions as a model reads them, with the last L behaviours, or the K of these that a search kept.

    Behaviours are in the order of time and end at the last place.
    """

    ids: Tensor  # int64 [B, I]
    dense: Tensor  # float32 [B, F]
    behavior_ids: Tensor  # int64 [B, K]; PADDING where there is no behaviour on a product
    behavior_contexts: Tensor  # int64 [B, K]
    content: cube.Content | None


@dataclass(frozen=True)
class EncodedRows:
    """n impressions with m behaviours in all; row pointers are -1 where a content has no vector, or none is read."""

    ids: Int32s  # [n, I]
    dense: Float32s  # [n, F]
    offsets: Int64s  # [n + 1]: behaviours of impression i are [offsets[i], offsets[i + 1]), oldest first
    behavior_ids: Int32s  # [m + 1], as the next two; the last element stands for an empty place
    behavior_contexts: Int32s
    behavior_rows: Int32s  # of a search the row of what was searched, of other actions that of the product
    target_rows: Int32s  # [n]
    query_rows: Int32s  # [n]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, chosen: Int64s, length: int, vectors: NDArray[Any] | None, nearest: int = 0) -> Batch:
        """The impressions `chosen` [B] with their last `length` behaviours, vectors gathered now if there are any.

        Args: nearest: keep so many of the behaviours, those whose content is most similar to the target's; 0 keeps all.
        """
        place = cube.last_places(self.offsets, chosen, length, empty=len(self.behavior_ids) - 1)  # [B, L]
        content = None
        if vectors is not None:
            rows = self.target_rows[chosen], self.query_rows[chosen], self.behavior_rows[place]  # [B], [B], [B, L]
            searched = is_search(self.behavior_contexts[place])  # [B, L]
            content = cube.read(vectors, *rows, searched, keep=nearest)
            if content.kept is not None:
                place = np.take_along_axis(place, content.kept.numpy(), 1)  # [B, K]
        return Batch(
            torch.from_numpy(self.ids[chosen]).long(),
            torch.from_numpy(self.dense[chosen]),
            torch.from_numpy(self.behavior_ids[place]).long(),
            torch.from_numpy(self.behavior_contexts[place]).long(),
            content,
        )

    def batches(
        self,
        length: int,
        vectors: NDArray[Any] | None,
        chosen: Int64s | None = None,
        nearest: int = 0,
    ) -> Iterator[Batch]:
        """All impressions, or the `chosen` [n] among them, in batches of at most ROWS_AT_ONCE; see `batch`."""
        places = np.arange(len(self)) if chosen is None else chosen
        for start in range(0, len(places), ROWS_AT_ONCE):
            yield self.batch(places[start : start + ROWS_AT_ONCE], length, vectors, nearest)


@dataclass(frozen=True)
class FeatureEncoder:
    """Columns to arrays, as fitted on training rows.

    Attributes:
        id_features, dense_features: columns that enter; `product_id` shares its vocabulary with the behaviours.
        vocabularies: known ids of each id feature; the k-th has number FIRST_ID + k, all others are UNKNOWN.
        centre, scale: [len(dense_features)], after the logarithm that counts and prices are taken of.
        hashed: for each id feature without a vocabulary, bool [rows]: which rows training saw often enough. An id in
            row k of these has number FIRST_ID + k, whether training saw it or another one there. In the other rows are
            ids that training did not see; nothing was learnt for them, so that they are UNKNOWN as well, which
            training teaches what a new id is worth (`CtrConfig.id_dropout`).
    """

    id_features: tuple[str, ...]
    dense_features: tuple[str, ...]
    vocabularies: dict[str, pa.Array]
    centre: Float32s
    scale: Float32s
    hashed: dict[str, Bools] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, read: ReadColumn, fitted: Bools, id_features: Sequence[str], dense_features: Sequence[str],
        *, min_count: int, hashed: Mapping[str, int] | None = None,
    ) -> FeatureEncoder:  # fmt: skip
        """The encoder of the rows where `fitted` [n] is true; an id seen less than `min_count` times is unknown.

        Args: hashed: rows of the table by name of each id feature that is to have no vocabulary.
        """
        rows = pa.array(fitted)
        vocabularies, seen_rows = {}, {}
        for name in id_features:
            seen = [read(name).cast(pa.string()).filter(rows)]
            if name == "product_id":
                seen.append(_elements(read(BEHAVIOR_PRODUCTS).filter(rows)))
            if hashed and name in hashed:
                seen_rows[name] = _seen_rows(seen, hashed[name], min_count)
            else:
                vocabularies[name] = _vocabulary(seen, min_count)
        columns = [_numbers(read(name), name)[fitted] for name in dense_features]
        stacked = np.stack(columns, axis=1) if columns else np.zeros((int(fitted.sum()), 0), np.float32)  # [n, F]
        present = ~np.isnan(stacked)
        count = np.maximum(present.sum(0), 1)
        centre = np.where(present, stacked, 0).sum(0) / count
        spread = np.sqrt(np.where(present, (stacked - centre) ** 2, 0).sum(0) / count)
        scale = np.where(spread > 1e-6 * (1 + np.abs(centre)), spread, 1)  # a constant column must not be blown up
        names = tuple(id_features), tuple(dense_features)
        return cls(*names, vocabularies, centre.astype(np.float32), scale.astype(np.float32), seen_rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of distinct codes of each id feature."""
        known = {**self.vocabularies, **self.hashed}
        return tuple(FIRST_ID + len(known[name]) for name in self.id_features)

    @property
    def dense_width(self) -> int:
        """F of a batch: each dense feature and whether it is there."""
        return 2 * len(self.dense_features)

    def encode(self, read: ReadColumn, snapshot: Snapshot | None) -> EncodedRows:
        """All rows of a table that is read column by column.

        Raises: SchemaMismatch: a column is missing or has another type.   ContractError: lists that are not parallel.
        """
        ids = np.stack([self._numbered(name, read(name)) for name in self.id_features], axis=1)
        products = read(BEHAVIOR_PRODUCTS)
        lengths = pc.fill_null(pc.list_value_length(products), 0).to_numpy().astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        each = _elements(products)
        behavior_ids = np.where(_is_null(each), PADDING, self._numbered("product_id", each))
        contexts = _contexts(read, each, lengths)
        if snapshot is None:
            target = query = np.full(len(ids), -1, np.int32)
            behavior_rows = np.full(offsets[-1], -1, np.int32)
        else:
            target = snapshot.rows_of(read(TARGET_CONTENT)).astype(np.int32)
            query = snapshot.rows_of(read(QUERY_CONTENT)).astype(np.int32)
            items, searches = (
                snapshot.rows_of(_flat(read(name), name, lengths)) for name in (BEHAVIOR_CONTENTS, BEHAVIOR_QUERIES)
            )
            behavior_rows = np.where(is_search(contexts), searches, items).astype(np.int32)
        return EncodedRows(
            ids=ids,
            dense=self._standardised(read, len(ids)),
            offsets=offsets,
            behavior_ids=np.append(behavior_ids, PADDING).astype(np.int32),
            behavior_contexts=np.append(contexts, 0).astype(np.int32),
            behavior_rows=np.append(behavior_rows, -1).astype(np.int32),
            target_rows=target,
            query_rows=query,
        )

    def save(self, folder: Path) -> None:
        """Write vocabularies and statistics into an artifact folder."""
        counts = np.array([len(known) for known in self.vocabularies.values()], np.int64)
        names = np.repeat(np.array(list(self.vocabularies), np.str_), counts)
        known = pa.chunked_array(list(self.vocabularies.values()), pa.string())
        pq.write_table(pa.table({"feature": pa.array(names, pa.string()), "id": known}), folder / "vocabulary.parquet")
        dense = {"features": self.dense_features, "centre": self.centre.tolist(), "scale": self.scale.tolist()}
        document: dict[str, Any] = {"id_features": self.id_features, "dense": dense}
        if self.hashed:
            document["hashed"] = {name: len(seen) for name, seen in self.hashed.items()}
            save_file({name: np.packbits(seen) for name, seen in self.hashed.items()}, folder / SEEN_ROWS)
        (folder / "features.json").write_text(json.dumps(document, indent=2) + "\n")

    @classmethod
    def open(cls, folder: Path) -> FeatureEncoder:
        """The encoder that `save` wrote."""
        document = json.loads((folder / "features.json").read_text())
        rows = pq.read_table(folder / "vocabulary.parquet")
        ids, dense, hashed = tuple(document["id_features"]), document["dense"], document.get("hashed", {})
        packed = load_file(folder / SEEN_ROWS) if hashed else {}
        return cls(
            id_features=ids,
            dense_features=tuple(dense["features"]),
            vocabularies={
                name: rows.filter(pc.field("feature") == name)["id"].combine_chunks()
                for name in ids
                if name not in hashed
            },
            centre=np.array(dense["centre"], np.float32),
            scale=np.array(dense["scale"], np.float32),
            hashed={name: np.unpackbits(packed[name], count=count).astype(bool) for name, count in hashed.items()},
        )

    def _numbered(self, name: str, column: pa.ChunkedArray) -> Int32s:
        if name in self.hashed:
            row_of, seen = hashed_rows(column.cast(pa.string()), len(self.hashed[name])), self.hashed[name]
            return np.where((row_of >= 0) & seen[row_of], FIRST_ID + row_of, UNKNOWN).astype(np.int32)
        found = pc.index_in(column.cast(pa.string()), self.vocabularies[name], skip_nulls=True)
        numbers: Int32s = found.fill_null(UNKNOWN - FIRST_ID).to_numpy().astype(np.int32) + FIRST_ID
        return numbers

    def _standardised(self, read: ReadColumn, count: int) -> Float32s:
        """float32 [n, F]: standardised values with 0 for null, then 1 where the value is there."""
        dense = np.zeros((count, self.dense_width), np.float32)
        for place, name in enumerate(self.dense_features):
            values = (_numbers(read(name), name) - self.centre[place]) / self.scale[place]
            dense[:, place] = np.nan_to_num(values, nan=0.0)
            dense[:, len(self.dense_features) + place] = ~np.isnan(values)
        return dense


def is_search(contexts: NDArray[Any]) -> Bools:
    """A mask of the CONTEXTS, of any shape, that are of searches."""
    return contexts % SAME_PRODUCT // GAP_BUCKETS == 1 + ACTIONS.index("search")


def column_reader(read: Callable[[list[str]], pa.Table]) -> ReadColumn:
    """A reader of one column, from a reader of several. Its error for a missing column is SchemaMismatch."""

    def column(name: str) -> pa.ChunkedArray:
        try:
            return read([name])[name]
        except KeyError:
            raise SchemaMismatch(f"rows have no column {name}, which the model reads") from None

    return column


def _contexts(read: ReadColumn, products: pa.ChunkedArray, lengths: Int64s) -> Int64s:
    """CONTEXTS of all behaviours, [m]."""
    targets = read("product_id").cast(pa.string()).take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    same = pc.fill_null(pc.equal(products, targets), False).to_numpy()
    actions = pc.index_in(_flat(read(BEHAVIOR_ACTIONS), BEHAVIOR_ACTIONS, lengths), pa.array(ACTIONS))
    times = _flat(read(BEHAVIOR_TIMES), BEHAVIOR_TIMES, lengths).to_numpy()
    seen_at = read("event_timestamp").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    seconds = np.maximum(np.repeat(seen_at, lengths) - times, 0) / 1e6
    buckets = np.minimum(np.log2(1 + seconds).astype(np.int64), GAP_BUCKETS - 1)
    done = actions.fill_null(-1).to_numpy() + 1
    contexts: Int64s = (same * (1 + len(ACTIONS)) + done) * GAP_BUCKETS + buckets
    return contexts


def _counts(columns: Iterable[pa.ChunkedArray]) -> pa.StructArray:
    """`values` and `counts` of the ids in all columns."""
    return pc.value_counts(pa.chunked_array([chunk for c in columns for chunk in _chunks(c)], pa.string()).drop_null())


def _seen_rows(columns: Iterable[pa.ChunkedArray], rows: int, min_count: int) -> Bools:
    """A mask, bool [rows], of the rows whose ids were seen at least `min_count` times in all."""
    counts = _counts(columns)
    row_of = hashed_rows(counts.field("values"), rows)
    return np.bincount(row_of, counts.field("counts").to_numpy(), minlength=rows) >= min_count


def _vocabulary(columns: Iterable[pa.ChunkedArray], min_count: int) -> pa.Array:
    """Ids seen at least `min_count` times, sorted, so that the order of rows changes nothing."""
    counts = _counts(columns)
    known = counts.filter(pc.greater_equal(counts.field("counts"), min_count)).field("values")
    return known.take(pc.array_sort_indices(known))


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _numbers(column: pa.ChunkedArray, name: str) -> Float64s:
    """float64 [n], NaN for null; whole numbers (counts, cents) as log(1 + x), since they span magnitudes."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaMismatch(f"dense feature {name} should be a number, found {kind}")
    values: Float64s = column.cast(pa.float64()).to_numpy()
    return np.sign(values) * np.log1p(np.abs(values)) if pa.types.is_integer(kind) else values


def _flat(column: pa.ChunkedArray, name: str, lengths: Int64s) -> pa.ChunkedArray:
    """The elements of all lists. Raises ContractError if a list is not as long as the one that it is parallel to."""
    found = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if (wrong := np.flatnonzero(found != lengths)).size:
        row = int(wrong[0])
        raise ContractError(
            f"row {row}: {name} holds {found[row]} behaviours, {BEHAVIOR_PRODUCTS} holds {lengths[row]}; build it again"
        )
    return _elements(column)


def _elements(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The elements of all lists. A missing string is "" in them, as Feast's online lists hold no null."""
    flat = pc.list_flatten(column)
    return pc.if_else(pc.equal(flat, ""), None, flat) if pa.types.is_string(flat.type) else flat


def _is_null(column: pa.ChunkedArray) -> Bools:
    nulls: Bools = pc.is_null(column).to_numpy()
    return nulls
