"""The part of the Python API that needs models: search and click probabilities, for `moonlake.open()` in a checkout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from moonlake.arrays import Float32s
from moonlake.embeddings import releases
from moonlake.embeddings.releases import Release
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.embeddings.spaces import Space
from moonlake.errors import NotFound
from moonlake.home import Scored
from moonlake.lake.lake import Lake
from moonlake.schema.tables import CTR_RANKING
from moonlake.settings import Settings

if TYPE_CHECKING:
    from models.inference import Embedder
    from serving.scorer import Scorer


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """The products on sale with a vector, as a snapshot of one space has them.

    Attributes:
        product_ids: P ids, in order.
        vectors: float32 [P, D].
    """

    versions: dict[str, int]
    product_ids: tuple[str, ...]
    vectors: Float32s

    @classmethod
    def of(cls, snapshot: Snapshot) -> Catalogue:
        """The products of a snapshot that have a vector in it."""
        products = sorted(snapshot.products.items())
        rows = snapshot.rows_of(pa.array([content for _, content in products], pa.string()))
        there = np.flatnonzero(rows >= 0)
        names = tuple(products[place][0] for place in there)
        return cls(snapshot.versions, names, np.asarray(snapshot.vectors[rows[there]], np.float32))


class Application:
    """Search and scoring in one home. Snapshots, encoders and the released model are opened once and kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.lake = settings, Lake(settings)
        self._catalogues: dict[str, Catalogue] = {}
        self._embedders: dict[str, Embedder] = {}
        self._scorer: tuple[Release, Scorer] | None = None

    def nearest(
        self, *, product: str | None, image: bytes | None, text: str | None, k: int, space: str
    ) -> list[Scored]:
        """The products on sale that are nearest to a product, or to a picture and a text, nearest first."""
        from models.evaluation.ranking import nearest

        found = releases.find(self.lake, space)
        pool = self._catalogue(found)
        if product is None:
            query = self._embedder(found).embed([text], [[image] if image else []])  # [1, D]
        elif product in pool.product_ids:
            query = pool.vectors[[pool.product_ids.index(product)]]  # [1, D]
        else:
            raise NotFound(f"product {product!r} is not on sale, or has no vector in the embedding space {found}")
        near = nearest(query, pool.vectors, k + 1)  # the product itself is among them
        hits = [
            Scored(pool.product_ids[row], float(score)) for row, score in zip(near.rows[0], near.scores[0], strict=True)
        ]
        return [hit for hit in hits if hit.product_id != product][:k]

    def score(self, user: str, candidates: Sequence[str], query: str | None, at: datetime) -> list[Scored]:
        """The candidates with the click probability of the released model, the greatest first."""
        from serving.scorer import Scorer

        current = releases.current_release(self.lake, CTR_RANKING)
        if self._scorer is None or self._scorer[0] != current:
            self._scorer = current, Scorer.live(self.settings)
        ranked = self._scorer[1].rank(user, query, candidates, at)
        return [Scored(one.product_id, one.score) for one in ranked]

    def _catalogue(self, space: Space) -> Catalogue:
        """The catalogue as the lake has it now; the snapshot of the space is written again where the lake moved on."""
        versions = {name: self.lake.version(name) for name in ("embeddings", "products")}
        kept = self._catalogues.get(space.space_id)
        if kept is None or kept.versions != versions:
            snapshot = write_snapshot(self.lake, space.space_id, self.settings.snapshot(space.space_id))
            kept = self._catalogues[space.space_id] = Catalogue.of(snapshot)
        return kept

    def _embedder(self, space: Space) -> Embedder:
        from models.inference import Embedder  # torch takes seconds to import

        if space.space_id not in self._embedders:
            self._embedders[space.space_id] = Embedder.open(Path(space.artifact))
        return self._embedders[space.space_id]
