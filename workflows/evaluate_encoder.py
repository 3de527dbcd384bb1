"""Retrieval by an embedding space: of what users bought, of products of one kind, of what was judged for a query."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from moonlake.arrays import Float32s, Int64s
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.encoder_figures import (
    AttributeFigures,
    Ceiling,
    JudgedEvaluation,
    PrefixRecall,
    PurchaseFigures,
    TrialFigures,
)

if TYPE_CHECKING:
    from models.evaluation.purchase_trials import Task as TrialTask
    from models.evaluation.purchase_trials import Trials
    from models.evaluation.representations import Represent

BM25 = "bm25"
"""The subject of judged queries where there is no encoder."""


class Task(StrEnum):
    """A retrieval task: its queries, and the products that count as right."""

    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"
    PRODUCT_TO_PRODUCT = "product_to_product"
    ATTRIBUTES = "attributes"
    JUDGED = "judged"


TRIALS_OF: dict[Task, tuple[TrialTask, ...]] = {
    Task.IMAGE_SEARCH: ("image_search",),
    Task.TEXT_SEARCH: ("text_search",),
    Task.PRODUCT_TO_PRODUCT: ("product_search", "bought_next"),
}
"""The trials of each task that is measured on purchases."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An embedding space or a baseline that is measured: its name, its vectors, the latest event that training saw."""

    name: str
    represent: Represent
    trained_until: datetime | None


def evaluate_purchases(
    settings: Settings,
    space: str,
    window: tuple[datetime, datetime],
    task: Task = Task.IMAGE_SEARCH,
    *,
    prefix: int | None = None,
    ceiling: str | None = None,
    allow_seen: bool = False,
) -> PurchaseFigures:
    """Recall of what users bought in a window, with intervals.

    Args:
        space: by name or id; "live"; "pixels".
        prefix: measure the first numbers of the vectors too.
        ceiling: a simulated source, of which the true latents are measured too.
        allow_seen: measure on rows that training may have seen.

    Raises:
        InputError: nothing was bought in the window, or training may have seen it.
        NotFound: no such space, or no such truth.
    """
    from models.evaluation.recall import require_unseen

    if task not in TRIALS_OF:
        raise InputError(f"task {task} is not measured on purchases: expected one of {', '.join(TRIALS_OF)}")
    lake = Lake(settings)
    subject = subject_of(lake, space)
    seen = require_unseen(window[0], subject.trained_until, allow_seen=allow_seen)
    measurable = measurable_trials(lake, window, [task])
    simulated = sorted(simulated_sources(settings, lake, window))
    truth = None if ceiling is None else settings.truth_of(ceiling)
    found = {one.task: _measured(lake, subject.represent, one, prefix, truth, seen=seen) for one in measurable}
    return PurchaseFigures(subject.name, simulated, seen, found)


def measurable_trials(lake: Lake, window: tuple[datetime, datetime], tasks: Sequence[Task]) -> list[Trials]:
    """The trials of tasks in a window, but for those sets that have none. Raises InputError where all have none."""
    from models.evaluation.purchase_trials import read_trials
    from models.evaluation.recall import require_trials

    every = [read_trials(lake, *window, name) for task in tasks for name in TRIALS_OF[task]]
    measurable = [trials for trials in every if len(trials.positives)]
    if not measurable:
        require_trials(every[0])
    return measurable


def evaluate_attribute(
    settings: Settings,
    space: str,
    attribute: str,
    at: datetime,
    *,
    asking: Collection[str] | None = None,
    pictures_only: bool = False,
    fresh_pictures: bool = False,
    prefix: int | None = None,
) -> AttributeFigures:
    """Precision of products of the same kind, with intervals.

    Args:
        attribute: a column of `products`, or a name in its attributes.
        at: the products live just before it are asked for.
        asking: products that ask and cannot be found; None: every one asks, and is left out of its own answer.
        pictures_only, fresh_pictures: as in `models.evaluation.attributes.read_attribute_trials`.
    """
    from models.evaluation.attributes import measure_attribute, read_attribute_trials
    from models.evaluation.geometry import geometry
    from models.evaluation.representations import cut

    lake = Lake(settings)
    trials = read_attribute_trials(
        lake, attribute, at, test=asking, pictures_only=pictures_only, fresh_pictures=fresh_pictures
    )
    subject = subject_of(lake, space, embed_now=pictures_only)
    queries, pool = subject.represent(trials.queries), subject.represent(trials.pool)
    short = None
    if prefix is not None:
        short = measure_attribute(trials, cut(queries, prefix), cut(pool, prefix))
    return AttributeFigures(subject.name, measure_attribute(trials, queries, pool), geometry(pool), prefix, short)


def evaluate_judged(settings: Settings, space: str, at: datetime, *, prefix: int | None = None) -> JudgedEvaluation:
    """nDCG on the judged queries of the lake, with intervals; of BM25 alone where `space` is "bm25"."""
    from models.evaluation.judged import evaluate_judged as evaluate
    from models.evaluation.representations import cut

    lake = Lake(settings)
    if space == BM25:
        return JudgedEvaluation(space, evaluate(lake, None, at))
    represent = subject_of(lake, space).represent
    short = None
    if prefix is not None:
        first = evaluate(lake, lambda contents: cut(represent(contents), prefix), at)
        short = JudgedEvaluation(f"{space}, first {prefix} numbers of each vector", first)
    return JudgedEvaluation(space, evaluate(lake, represent, at), short)


def subject_of(lake: Lake, space: str, *, embed_now: bool = False) -> Subject:
    """A space or the pixel baseline, ready to be measured.

    Args: embed_now: for contents that the lake does not have, such as pictures without their title.
    """
    from models.evaluation.recall import PIXELS
    from models.evaluation.representations import embedder_vectors, lake_vectors, pixel_baseline
    from moonlake.embeddings.releases import find

    if space == PIXELS:
        return Subject(space, pixel_baseline(lake), None)
    found = find(lake, space)
    if found.status != "building" and not embed_now:
        return Subject(space, lake_vectors(lake, found.space_id), found.trained_until)
    from models.inference import Embedder

    return Subject(space, embedder_vectors(lake, Embedder.open(found.artifact)), found.trained_until)


def products_that_ask(
    lake: Lake, at: datetime, *, share: float | None = None, listed: Path | None = None, seed: int = 0
) -> frozenset[str] | None:
    """The products of a file, one product_id a line, or a share of the live ones by hash; None for all.

    Raises:
        InputError: both were given.
        NotFound: no such file.
    """
    from models.evaluation.attributes import in_test
    from models.evaluation.purchase_trials import live_products

    if share is not None and listed is not None:
        raise InputError("--test-share and --test-products: expected one of them, they say the same thing")
    if listed is not None:
        if not listed.is_file():
            raise NotFound(f"--test-products {listed}: there is no such file")
        return frozenset(listed.read_text(encoding="utf-8").split())
    if share is None:
        return None
    products = list(live_products(lake, at))
    return frozenset(name for name, asks in zip(products, in_test(products, share, seed=seed), strict=True) if asks)


def simulated_sources(settings: Settings, lake: Lake, window: tuple[datetime, datetime]) -> set[str]:
    """Sources of the window's behaviour that are simulated, as far as their stages still lie there."""
    import pyarrow.compute as pc

    from sources.own_files.staging import SourceInfo, stage_path

    start, end = window
    inside = (pc.field("event_timestamp") >= start) & (pc.field("event_timestamp") < end)
    names = pc.unique(lake.read("behaviors", ["source"], where=inside)["source"]).to_pylist()
    folders = {name: stage_path(settings, name) for name in names}
    return {name for name, folder in folders.items() if folder.is_dir() and SourceInfo.read(folder).simulated}


def _measured(
    lake: Lake, represent: Represent, trials: Trials, prefix: int | None, truth: Path | None, *, seen: bool
) -> TrialFigures:
    """Figures of one set of trials."""
    from models.evaluation.geometry import geometry
    from models.evaluation.recall import places_of, recall_of, vectors_of

    queries, pool = vectors_of(trials, represent)
    places = places_of(trials, queries, pool)
    distinct = list({content.content_id: row for row, content in enumerate(trials.pool)}.values())
    return TrialFigures(
        recall_of(trials, places, seen=seen),
        geometry(pool[distinct], pairs=(queries[trials.query_rows], pool[trials.positives])),
        None if prefix is None else _prefix(trials, (queries, pool), places, prefix, seen=seen),
        None if truth is None else _ceiling(lake, trials, places, truth),
    )


def _prefix(
    trials: Trials, vectors: tuple[Float32s, Float32s], places: Int64s, prefix: int, *, seen: bool
) -> PrefixRecall:
    """The same trials with the first numbers of each vector, and the difference that it makes."""
    from models.evaluation.bootstrap import paired_difference
    from models.evaluation.ranking import CUTOFFS
    from models.evaluation.recall import places_of, recall_of
    from models.evaluation.representations import cut

    short = places_of(trials, *(cut(side, prefix) for side in vectors))
    lost = [paired_difference(short, places, trials.query_rows, k, weights=trials.weights) for k in CUTOFFS]
    return PrefixRecall(prefix, recall_of(trials, short, seen=seen), lost)


def _ceiling(lake: Lake, trials: Trials, places: Int64s, truth: Path) -> Ceiling:
    """The place of a model between raw pixels and the truth of the simulation."""
    from models.evaluation.bootstrap import gap_closed
    from models.evaluation.ranking import CUTOFFS
    from models.evaluation.recall import places_of, recall_of, vectors_of
    from models.evaluation.representations import pixel_baseline
    from workflows.ceilings import open_latents

    latents = open_latents(lake, truth)
    high = places_of(trials, *vectors_of(trials, latents))
    low = places_of(trials, *vectors_of(trials, pixel_baseline(lake)))
    closed = [gap_closed(places, low, high, trials.query_rows, k, weights=trials.weights) for k in CUTOFFS]
    return Ceiling(recall_of(trials, low), recall_of(trials, high), closed)
