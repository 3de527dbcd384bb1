"""Image-search recall of an encoder on the lake: the query picture, the whole pool, and what was bought after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.pictures import try_pixels
from models.retrieval import CUTOFFS, HitRate, hit_rates, pixel_vectors, ranks
from moonlake.contents import Content, read_contents, read_images
from moonlake.errors import InputError, NotFound
from moonlake.lake import Lake

Floats = NDArray[np.float32]
Represent = Callable[[Sequence[Content]], Floats]
"""Unit vectors of contents, float32 [N, D], row by row; a row of zeros for a content that has none."""

PIXELS = "pixels"
PIXEL_SIDE = 16
CONTENTS_PER_CALL = 512


class EmbedsReadable(Protocol):
    """The part of `models.inference.Embedder` that is needed here."""

    def embed_readable(
        self, texts: Sequence[str | None], images: Sequence[Sequence[bytes]]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Vectors, and which rows have one."""
        ...


@dataclass(frozen=True, slots=True)
class Trials:
    """What is measured on: purchases after an image query.

    Attributes:
        queries: content of each distinct query.
        pool: content of each product that was live at the end of the window.
        products: product_id of each row of the pool.
        query_rows, positives: int64 [purchases], rows of `queries` and of `pool`.
        left_out: purchases without a measure: the product was gone by then, or the picture is of the catalogue.
    """

    queries: list[Content]
    pool: list[Content]
    products: list[str]
    query_rows: NDArray[np.int64]
    positives: NDArray[np.int64]
    left_out: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Image-search recall.

    Attributes:
        seen: the window holds rows from before `trained_until`: the figure flatters.
    """

    hit_rates: list[HitRate]
    purchases: int
    queries: int
    pool: int
    left_out: int
    start: datetime
    end: datetime
    seen: bool = False

    def metrics(self) -> dict[str, float]:
        """The figures by name, as they stand with an artifact or a space."""
        return {f"image_recall_hit_{rate.cutoff}": rate.value for rate in self.hit_rates}

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self) | {"start": self.start.isoformat(), "end": self.end.isoformat()}


def evaluate_encoder(
    lake: Lake,
    represent: Represent,
    start: datetime,
    end: datetime,
    *,
    trained_until: datetime | None,
    allow_seen: bool = False,
) -> Recall:
    """Recall on the purchases of [start, end), each counted once, ties against us.

    Args:
        represent: `embedder_vectors`, `lake_vectors` or `pixel_baseline`, bound to what they read.
        trained_until: latest event that the encoder saw.
        allow_seen: measure on rows from before it all the same; the answer is labelled.

    Raises: InputError: the window begins before `trained_until`, or holds nothing to measure on.
    """
    seen = trained_until is not None and start <= trained_until
    if seen and not allow_seen:
        raise InputError(
            f"the encoder was trained until {trained_until}, the evaluation starts {start}: "
            "start later, or ask for seen rows by name"
        )
    trials = read_trials(lake, start, end)
    if not len(trials.positives):
        raise InputError(
            f"no purchase after an image query in [{start}, {end}) that can be measured on "
            f"({trials.left_out} left out, {len(trials.pool)} products live)"
        )
    queries, pool = represent(trials.queries), represent(trials.pool)
    place = ranks(queries[trials.query_rows], pool, trials.positives, deepest=max(CUTOFFS))
    place[~queries[trials.query_rows].any(1)] = max(CUTOFFS) + 1  # a query without a vector finds nothing
    rates = hit_rates(place, trials.query_rows)
    return Recall(rates, len(place), len(queries), len(pool), trials.left_out, start, end, seen)


def read_trials(lake: Lake, start: datetime, end: datetime) -> Trials:
    """The purchases of [start, end) after an image query, and the products live at its end."""
    live = live_products(lake, end)
    contents = read_contents(lake, set(live.values()))
    pool_row = {product: row for row, product in enumerate(live)}
    catalogue = {image for content in contents.values() for image in content.image_ids}
    queries = lake.read("queries", ["query_id", "content_id", "image_ids"], where=pc.field("modality") == "image")
    query = {row["query_id"]: Content(row["content_id"], None, tuple(row["image_ids"])) for row in queries.to_pylist()}
    bought = lake.read(
        "behaviors",
        ["behavior_id", "product_id", "query_id"],
        where=(pc.field("action") == "purchase")
        & (pc.field("event_timestamp") >= start)
        & (pc.field("event_timestamp") < end),
    ).sort_by("behavior_id")
    rows = [row for row in bought.to_pylist() if row["query_id"] in query]
    kept = [
        (query[row["query_id"]], pool_row[row["product_id"]])
        for row in rows
        if row["product_id"] in pool_row and not catalogue & set(query[row["query_id"]].image_ids)
    ]
    distinct = {content.content_id: content for content, _ in kept}
    query_row = {content_id: row for row, content_id in enumerate(distinct)}
    return Trials(
        list(distinct.values()),
        [contents[content_id] for content_id in live.values()],
        list(live),
        np.array([query_row[content.content_id] for content, _ in kept], np.int64),
        np.array([positive for _, positive in kept], np.int64),
        len(rows) - len(kept),
    )


def live_products(lake: Lake, at: datetime) -> dict[str, str]:
    """content_id of each product that is on sale just before `at`, by product_id in order."""
    rows = lake.read(
        "products",
        ["product_id", "content_id", "deleted", "event_timestamp", "created_at"],
        where=pc.field("event_timestamp") < at,
    ).sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    state = {row["product_id"]: row for row in rows.to_pylist()}
    return {name: row["content_id"] for name, row in sorted(state.items()) if not row["deleted"]}


def embedder_vectors(lake: Lake, embedder: EmbedsReadable) -> Represent:
    """Vectors made now, by an embedder."""

    def represent(contents: Sequence[Content]) -> Floats:
        parts = []
        for at in range(0, len(contents), CONTENTS_PER_CALL):
            some = contents[at : at + CONTENTS_PER_CALL]
            parts.append(embedder.embed_readable([content.text for content in some], _files(lake, some))[0])
        return np.concatenate(parts)

    return represent


def lake_vectors(lake: Lake, space_id: str) -> Represent:
    """Vectors that the lake holds of one space. Raises NotFound when it holds none of a content."""

    def represent(contents: Sequence[Content]) -> Floats:
        rows = lake.read("embeddings", ["content_id", "vector"], where=pc.field("space_id") == space_id)
        names = rows["content_id"].to_pylist()
        if missing := {content.content_id for content in contents} - set(names):
            raise NotFound(f"{len(missing)} contents have no vector in space {space_id}: run embed_contents")
        vectors = np.stack(rows["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
        row = {name: at for at, name in enumerate(names)}
        return vectors[[row[content.content_id] for content in contents]]

    return represent


def pixel_baseline(lake: Lake) -> Represent:
    """Raw pixels of the first readable picture, small and centred: what any encoder has to beat."""

    def represent(contents: Sequence[Content]) -> Floats:
        size = (PIXEL_SIDE, PIXEL_SIDE)
        grey = np.full((*size, 3), 128, np.uint8)
        pictures = []
        for files in _files(lake, contents):
            decoded = (try_pixels(file, size) for file in files)
            pictures.append(next((one for one in decoded if one is not None), grey))
        return pixel_vectors(pictures)

    return represent


def _files(lake: Lake, contents: Sequence[Content]) -> list[list[bytes]]:
    found = read_images(lake, {image for content in contents for image in content.image_ids})
    return [[found[image] for image in content.image_ids if image in found] for content in contents]
