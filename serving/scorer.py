"""Online ranking: the candidates of one request, scored as a row of a training set would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.ctr.model import CtrModel
from moonlake.embeddings import releases
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.schema.tables import CTR_RANKING, USES
from moonlake.settings import Settings

QUERIES_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate: the model's click probability for it."""

    product_id: str
    score: float


class FeatureReader(Protocol):
    """The source of a request's features; `serving.online_features.OnlineFeatures` reads Feast."""

    def read(self, user_id: str, product_ids: Sequence[str]) -> pa.Table:
        """user_id, product_id and the features of the model, one row for each product, in their order."""


class Scorer:
    """Ranks candidates with a click model, online features, and vectors from a snapshot."""

    def __init__(self, model: CtrModel, snapshot: Snapshot | None, features: FeatureReader, lake: Lake) -> None:
        """Raises: SpaceMismatch: the model reads another space than the snapshot holds."""
        model.require_snapshot(snapshot)
        self.model, self.snapshot, self.features, self.lake = model, snapshot, features, lake
        self._content_of_query = lru_cache(QUERIES_REMEMBERED)(self._read_query)

    @classmethod
    def open(
        cls, settings: Settings, model: Path, snapshot: Path | None, *, service: str = USES[CTR_RANKING]
    ) -> Scorer:
        """The scorer of a model artifact and a snapshot folder, reading a feature service through Feast."""
        from moonlake.feast_delta.store import feature_store  # Feast takes seconds to import
        from serving.online_features import OnlineFeatures

        opened = Snapshot.open(snapshot) if snapshot else None
        return cls(CtrModel.open(model), opened, OnlineFeatures(feature_store(settings), service), Lake(settings))

    @classmethod
    def live(cls, settings: Settings) -> Scorer:
        """The scorer of what is released for CTR ranking. Raises NotFound if nothing is."""
        lake = Lake(settings)
        release = releases.current_release(lake, CTR_RANKING)
        models = lake.read("model_versions", ["artifact"], where=pc.field("model_id") == release.model_id).to_pylist()
        if not models:
            raise NotFound(
                f"the release of {CTR_RANKING} names CTR model {release.model_id}, which is not in model_versions"
            )
        snapshot = Path(release.snapshot) if release.snapshot else None
        return cls.open(
            settings, Path(models[-1]["artifact"]), snapshot, service=release.feature_service or USES[CTR_RANKING]
        )

    def rank(self, user_id: str, query: str | None, product_ids: Sequence[str], now: datetime) -> list[Ranked]:
        """The candidates by descending click probability; equal ones keep their order.

        Args: query: a query_id of the lake, or the content id of a query with a vector; None for no query.
        Raises: NotFound: the query is neither.   InputError: `now` has no time zone.
        """
        rows = self.rows(user_id, query, product_ids, now)
        scores = self.model.predict(rows, self.snapshot)
        order = np.argsort(-scores, kind="stable")
        return [Ranked(product_ids[place], float(scores[place])) for place in order]

    def rows(self, user_id: str, query: str | None, product_ids: Sequence[str], now: datetime) -> pa.Table:
        """The request as rows of a training set, one for each candidate, in their order."""
        if now.tzinfo is None:
            raise InputError(f"the time of a request needs a time zone, found {now}")
        query_id, query_content = self._resolve(query)
        products = self.snapshot.products if self.snapshot else {}
        stated = {
            "query_id": pa.array([query_id] * len(product_ids), pa.string()),
            "content_id": pa.array([products.get(one) for one in product_ids], pa.string()),
            "query_content_id": pa.array([query_content] * len(product_ids), pa.string()),
            "event_timestamp": pa.array([now] * len(product_ids), pa.timestamp("us", "UTC")),
        }
        found = self.features.read(user_id, product_ids)
        return pa.table({**dict(zip(found.column_names, found.columns, strict=True)), **stated})

    def _resolve(self, query: str | None) -> tuple[str | None, str | None]:
        """query_id and query_content_id; a query that is named by its content has no id."""
        if query is None:
            return None, None
        if self.snapshot is not None and self.snapshot.rows_of(pa.array([query]))[0] >= 0:
            return None, query
        return query, self._content_of_query(query)

    def _read_query(self, query_id: str) -> str:
        rows = self.lake.read("queries", ["content_id"], where=pc.field("query_id") == query_id).to_pylist()
        if not rows:
            raise NotFound(f"no query {query_id!r}: it is no query_id of the lake, and no content with a vector")
        return str(rows[-1]["content_id"])
