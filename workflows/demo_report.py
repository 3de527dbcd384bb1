"""The report: one self-contained page with what a run measured, and pictures of what it found."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.evaluation.purchase_trials import Trials, read_trials
from models.evaluation.ranking import nearest
from models.evaluation.representations import lake_vectors
from moonlake.arrays import Int64s
from moonlake.embeddings.contents import Content, read_images
from moonlake.embeddings.images import inspect
from moonlake.errors import ImageRefused
from moonlake.files import atomic_write
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES

GALLERY_QUERIES = 8
GALLERY_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture to look at: a data URI (None where the content has no readable image), and words about it."""

    image: str | None
    title: str
    note: str
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """An image query and its nearest products, nearest first."""

    query: Shown
    neighbours: list[Shown]


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Figures of a run, as its steps measured them.

    Attributes:
        recall: what `models.evaluation.recall.Recall.as_json` says, by subject.
        models: what `models.evaluation.click_metrics.ClickMetrics.as_json` says, by model.
        gains: interval of a model's AUC and GAUC over the baseline, by model and metric.
        check: gates of the release (name, passed, said), and why a failure was waived.
        ranking: the candidates that one user was shown, best first.
        steps: title and seconds of each step.
        writes: the write reports of the ingest.
    """

    source: str
    source_kind: str
    simulated: bool
    window: tuple[datetime, datetime, datetime, datetime]
    recall: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    gains: Mapping[str, Mapping[str, Sequence[float]]]
    user: Mapping[str, Any]
    ranking: Sequence[Shown]
    check: Mapping[str, Any]
    steps: Sequence[tuple[str, float]]
    writes: Sequence[Mapping[str, Any]]


def write_report(path: Path, lake: Lake, space_id: str, facts: ReportFacts) -> None:
    """Write the page. It names no other file: pictures and styles are inside it."""
    _, t1, _, end = facts.window
    rows = {name: len(lake.dataset(name).to_table(columns=[])) if lake.exists(name) else 0 for name in TABLES}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    text = page.get_template("report.html.j2").render(
        facts=facts,
        gallery=gallery(lake, space_id, t1, end),
        rows={name: count for name, count in rows.items() if count},
        grains={name: table.grain for name, table in TABLES.items()},
        space_id=space_id,
    )
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def gallery(lake: Lake, space_id: str, start: datetime, end: datetime) -> list[GalleryRow]:
    """Image queries of [start, end), evenly over the window and not chosen by how well they did, with neighbours."""
    trials = read_trials(lake, start, end)
    chosen = np.unique(np.linspace(0, len(trials.queries) - 1, GALLERY_QUERIES).round().astype(int))
    queries = [trials.queries[row] for row in chosen]
    represent = lake_vectors(lake, space_id)
    found = nearest(represent(queries), represent(trials.pool), GALLERY_NEIGHBOURS)
    bought = _bought(trials)
    return [
        GalleryRow(
            show(lake, query, "image query", ""),
            [
                show(lake, trials.pool[place], trials.products[place], f"{score:.2f}", chosen=place in bought[row])
                for place, score in zip(places, scores, strict=True)
            ],
        )
        for row, query, places, scores in zip(chosen, queries, found.rows, found.scores, strict=True)
    ]


def show(lake: Lake, content: Content, title: str, note: str, *, chosen: bool = False) -> Shown:
    """The first readable picture of a content with words about it."""
    files = read_images(lake, content.image_ids)
    images = (_data_uri(files[image_id]) for image_id in content.image_ids if image_id in files)
    return Shown(next((uri for uri in images if uri), None), content.text or title, note, chosen)


def product_contents(lake: Lake, product_ids: Sequence[str]) -> dict[str, str]:
    """content_id of the latest state of each product."""
    states = lake.read(
        "products",
        ["product_id", "content_id", "event_timestamp", "created_at"],
        where=pc.field("product_id").isin(list(product_ids)),
    ).sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    return dict(zip(states["product_id"].to_pylist(), states["content_id"].to_pylist(), strict=True))


def _bought(trials: Trials) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {row: set() for row in range(len(trials.queries))}
    pairs: Int64s = np.stack([trials.query_rows, trials.positives], axis=1)
    for query, place in pairs.tolist():
        found[query].add(place)
    return found


def _data_uri(image_bytes: bytes) -> str | None:
    try:
        form = inspect(image_bytes).format.lower()
    except ImageRefused:
        return None
    return f"data:image/{form};base64,{base64.b64encode(image_bytes).decode()}"
