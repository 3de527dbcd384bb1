"""Vectors by content or product id, read from the lake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Bools, Float32s
from moonlake.embeddings.spaces import Space
from moonlake.errors import ContractError
from moonlake.lake.lake import Lake


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Vectors:
    """Vectors of one space, in the order of the ids that were asked for.

    Attributes:
        ids: N content or product ids.
        values: float32 [N, D], rows of unit L2 norm; NaN where nothing was found.
        found: bool [N].
    """

    space_id: str
    ids: tuple[str, ...]
    values: Float32s
    found: Bools

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        dimension = self.values.shape[1]
        return f"<vectors of space {self.space_id[:12]}: {self.found.sum()} of {len(self)} found, length {dimension}>"

    @property
    def missing(self) -> tuple[str, ...]:
        """The ids without a vector: unknown, off sale, or not embedded in this space yet."""
        return tuple(name for name, found in zip(self.ids, self.found, strict=True) if not found)


def vectors_of_contents(lake: Lake, space: Space, content_ids: Sequence[str]) -> Vectors:
    """The vectors of contents in a space."""
    return _vectors(lake, space, content_ids, pa.array(content_ids, pa.string()))


def vectors_of_products(lake: Lake, space: Space, product_ids: Sequence[str]) -> Vectors:
    """The vectors of what products are now in a space; a product that is off sale has none."""
    wanted = pa.array(product_ids, pa.string())
    columns = ["product_id", "content_id", "deleted", "event_timestamp", "created_at"]
    rows = lake.read("products", columns, where=pc.field("product_id").isin(wanted))
    rows = rows.sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    latest = {row["product_id"]: None if row["deleted"] else row["content_id"] for row in rows.to_pylist()}
    return _vectors(lake, space, product_ids, pa.array([latest.get(name) for name in product_ids], pa.string()))


def _vectors(lake: Lake, space: Space, ids: Sequence[str], content_ids: pa.Array) -> Vectors:
    """Args: content_ids: of each id, null for none."""
    wanted = (pc.field("space_id") == space.space_id) & pc.field("content_id").isin(content_ids.drop_null())
    rows = lake.read("embeddings", ["content_id", "vector"], where=wanted).combine_chunks()
    if len(rows) and pc.any(pc.not_equal(pc.list_value_length(rows["vector"]), space.dimension)).as_py():
        raise ContractError(f"table embeddings: a vector of space {space} has not its length, {space.dimension}")
    stored = pc.list_flatten(rows["vector"]).to_numpy().reshape(-1, space.dimension)  # [found, D]
    place = pc.index_in(content_ids, rows["content_id"], skip_nulls=True)
    found = place.is_valid().to_numpy(zero_copy_only=False)
    values = np.full((len(ids), space.dimension), np.nan, np.float32)
    values[found] = stored[place.drop_null().to_numpy()]
    return Vectors(space.space_id, tuple(ids), values, found)
