"""`moonlake evaluate encoder`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.evaluate_judged import BM25, evaluate_judged
from cli.printing import echo_estimate, echo_geometry, echo_rates, echo_segments
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment

if TYPE_CHECKING:
    from models.evaluation.attributes import AttributeTrials
    from models.evaluation.purchase_trials import Ints, Trials
    from models.evaluation.purchase_trials import Task as TrialTask
    from models.evaluation.representations import Floats, Represent


class Task(StrEnum):
    """What is asked, and what is right."""

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
ASKED_WITH: dict[TrialTask, str] = {
    "image_search": "purchases after {queries} image queries",
    "text_search": "purchases after {queries} text queries",
    "product_search": "purchases after {queries} queries of text and picture",
    "bought_next": "purchases within a day after one of {queries} other products",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: its name, its vectors, and the latest event that training saw."""

    name: str
    represent: Represent
    trained_until: datetime | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be said of purchases besides recall.

    Attributes:
        prefix: length of the first part of the vectors to measure too.
        truth: folder of a simulation's truth.
    """

    prefix: int | None
    segments: bool
    truth: Path | None
    allow_seen: bool


def evaluate_encoder(
    space: Annotated[str, typer.Argument(help="Embedding space by name or id; 'live'; or a baseline: pixels, bm25.")],
    end: Annotated[str, typer.Option(help="First moment after the test, with a time zone; the pool is what was live.")],
    start: Annotated[str | None, typer.Option(help="First moment of the test; attributes need none.")] = None,
    task: Annotated[Task, typer.Option(help="What is asked, and what is right.")] = Task.IMAGE_SEARCH,
    prefix: Annotated[int | None, typer.Option(min=1, help="Measure the first numbers of the vectors too.")] = None,
    segments: Annotated[bool, typer.Option(help="Show hit rates by age, category, merchant tier, popularity.")] = False,
    ceiling: Annotated[str | None, typer.Option(help="Simulated source: report the gap from pixels to truth.")] = None,
    attribute: Annotated[str, typer.Option(help="attributes: a column of products, or an attribute.")] = "category",
    test_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="attributes: this share of the products asks, the rest is found.")
    ] = None,
    test_products: Annotated[
        Path | None, typer.Option(help="attributes: the products that ask, a file of one product_id a line.")
    ] = None,
    pictures_only: Annotated[bool, typer.Option(help="attributes: ask with the pictures alone.")] = False,
    fresh_pictures: Annotated[
        bool, typer.Option(help="attributes: nothing asks with a picture that another product shows too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="attributes: of the share that asks.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there, as JSON.")] = None,
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
) -> None:
    """How well a space retrieves: hit rate and precision of what was bought, or of products of the same kind."""
    from models.evaluation.attributes import read_attribute_trials

    of_attributes = {"--test-share": test_share, "--test-products": test_products, "--pictures-only": pictures_only}
    of_attributes["--fresh-pictures"] = fresh_pictures
    _refuse(task, {"--segments": segments, "--ceiling": ceiling}, task in TRIALS_OF, "what was bought")
    _refuse(task, of_attributes, task is Task.ATTRIBUTES, "attributes")
    settings = Settings.from_environment()
    lake = Lake(settings)
    if task is Task.JUDGED:
        found = _judged(lake, space, parse_moment(end), prefix)
    elif task is Task.ATTRIBUTES:
        asking = _asking(lake, parse_moment(end), test_share, test_products, seed)
        how = {"pictures_only": pictures_only, "fresh_pictures": fresh_pictures}
        trials = read_attribute_trials(lake, attribute, parse_moment(end), test=asking, **how)
        found = _same_kind(_subject(lake, space, embed_now=pictures_only), trials, prefix)
    else:
        if start is None:
            raise InputError(f"--task {task}: expected --start, the first moment of the test")
        window = parse_moment(start), parse_moment(end)
        asked = Asked(prefix, segments, None if ceiling is None else settings.truth / ceiling, allow_seen)
        found = _bought(settings, _subject(lake, space), window, task, asked)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _refuse(task: Task, options: Mapping[str, object], fits: bool, belongs_to: str) -> None:
    """Raises: InputError: options were given that the task does not read."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given and not fits:
        raise InputError(f"--task {task} does not read {', '.join(given)}: of {belongs_to} alone")


def _judged(lake: Lake, space: str, at: datetime, prefix: int | None) -> dict[str, Any]:
    """Measure on judged queries, and print it."""
    from models.evaluation.representations import cut

    if space == BM25:
        return evaluate_judged(lake, space, None, at)
    represent = _subject(lake, space).represent
    found = evaluate_judged(lake, space, represent, at)
    if prefix is not None:
        name = f"{space}, first {prefix} numbers of each vector"
        found["prefix"] = evaluate_judged(lake, name, lambda contents: cut(represent(contents), prefix), at)
    return found


def _subject(lake: Lake, space: str, *, embed_now: bool = False) -> Subject:
    """What is measured; `embed_now` for contents that the lake does not have, such as pictures without their title."""
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


def _asking(lake: Lake, at: datetime, share: float | None, listed: Path | None, seed: int) -> frozenset[str] | None:
    """The products that ask: those of a file, a share by hash, or None for all."""
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


def _same_kind(subject: Subject, trials: AttributeTrials, prefix: int | None) -> dict[str, Any]:
    """Measure precision of one attribute, and print it."""
    from models.evaluation.attributes import measure_attribute
    from models.evaluation.geometry import geometry
    from models.evaluation.representations import cut

    queries, pool = subject.represent(trials.queries), subject.represent(trials.pool)
    whole, lies = measure_attribute(trials, queries, pool), geometry(pool)
    typer.echo(
        f"{subject.name}: {whole.queries:,} products ask, pool of {whole.pool:,}; right is the same {whole.attribute} "
        f"(by chance {whole.chance:.4f}); {whole.left_out:,} products have none"
    )
    echo_rates("P", whole.precisions)
    found = {"subject": subject.name, "precision": whole.as_json(), "geometry": lies.as_json()}
    if prefix is not None:
        short = measure_attribute(trials, cut(queries, prefix), cut(pool, prefix))
        typer.echo(f"  first {prefix} numbers of each vector:")
        echo_rates("P", short.precisions)
        found["prefix"] = {"dimension": prefix, "precision": short.as_json()}
    echo_geometry(lies)
    return found


def _bought(
    settings: Settings, subject: Subject, window: tuple[datetime, datetime], task: Task, asked: Asked
) -> dict[str, Any]:
    """Measure on what users bought in a window, and print it."""
    from models.evaluation.purchase_trials import read_trials
    from models.evaluation.recall import require_trials, require_unseen

    seen = require_unseen(window[0], subject.trained_until, allow_seen=asked.allow_seen)
    lake = Lake(settings)
    every = [read_trials(lake, *window, name) for name in TRIALS_OF[task]]
    measurable = [trials for trials in every if len(trials.positives)]
    if not measurable:
        require_trials(every[0])
    simulated = sorted(simulated_sources(settings, lake, window))
    if simulated:
        typer.echo(f"NOTE: behaviour is simulated ({', '.join(simulated)})")
    if seen:
        typer.echo("NOTE: measured on rows that training may have seen")
    found = {trials.task: _measured(lake, subject, trials, asked, seen=seen) for trials in measurable}
    return {"subject": subject.name, "simulated": simulated, "seen": seen, "tasks": found}


def _measured(lake: Lake, subject: Subject, trials: Trials, asked: Asked, *, seen: bool) -> dict[str, Any]:
    """Figures of one set of trials as JSON; printed on the way."""
    from models.evaluation.geometry import geometry
    from models.evaluation.recall import places_of, recall_of, vectors_of

    queries, pool = vectors_of(trials, subject.represent)
    places = places_of(trials, queries, pool)
    recall = recall_of(trials, places, seen=seen)
    distinct = list({content.content_id: row for row, content in enumerate(trials.pool)}.values())
    lies = geometry(pool[distinct], pairs=(queries[trials.query_rows], pool[trials.positives]))
    found: dict[str, Any] = {"recall": recall.as_json(), "geometry": lies.as_json()}
    what = ASKED_WITH[trials.task].format(queries=f"{recall.queries:,}")
    typer.echo(f"{subject.name}: {recall.purchases:,} {what}, pool of {recall.pool:,}; {recall.left_out:,} left out")
    echo_rates("hit", recall.hit_rates)
    echo_rates("P", recall.precisions, recall.precision_limits)
    if asked.prefix is not None:
        found["prefix"] = _prefix(trials, (queries, pool), places, asked.prefix, seen=seen)
    if asked.truth is not None:
        found["ceiling"] = _ceiling(lake, trials, places, asked.truth)
    if asked.segments:
        echo_segments(recall.segments)
    echo_geometry(lies)
    return found


def _prefix(trials: Trials, vectors: tuple[Floats, Floats], places: Ints, prefix: int, *, seen: bool) -> dict[str, Any]:
    """The same trials with the first numbers of each vector, and the difference that it makes."""
    from models.evaluation.bootstrap import paired_difference
    from models.evaluation.ranking import CUTOFFS
    from models.evaluation.recall import places_of, recall_of
    from models.evaluation.representations import cut

    short = places_of(trials, *(cut(side, prefix) for side in vectors))
    recall = recall_of(trials, short, seen=seen)
    lost = [paired_difference(short, places, trials.query_rows, k, weights=trials.weights) for k in CUTOFFS]
    typer.echo(f"  first {prefix} numbers of each vector:")
    echo_rates("hit", recall.hit_rates)
    for cutoff, one in zip(CUTOFFS, lost, strict=True):
        echo_estimate(f"minus whole, hit@{cutoff}", one)
    return {"dimension": prefix, "recall": recall.as_json(), "minus_whole": [one.as_json() for one in lost]}


def _ceiling(lake: Lake, trials: Trials, places: Ints, truth: Path) -> dict[str, Any]:
    """Where the model stands between raw pixels and the truth of the simulation."""
    from models.evaluation.bootstrap import gap_closed
    from models.evaluation.ranking import CUTOFFS
    from models.evaluation.recall import places_of, recall_of, vectors_of
    from models.evaluation.representations import pixel_baseline
    from workflows.ceilings import open_latents

    latents = open_latents(lake, truth)
    high = places_of(trials, *vectors_of(trials, latents))
    low = places_of(trials, *vectors_of(trials, pixel_baseline(lake)))
    closed = [gap_closed(places, low, high, trials.query_rows, k, weights=trials.weights) for k in CUTOFFS]
    floor, ceiling = recall_of(trials, low), recall_of(trials, high)
    typer.echo("  raw pixels:")
    echo_rates("hit", floor.hit_rates)
    typer.echo("  true latents of the simulation:")
    echo_rates("hit", ceiling.hit_rates)
    typer.echo("  gap closed, simulated: (model - pixels) / (true latents - pixels)")
    for cutoff, one in zip(CUTOFFS, closed, strict=True):
        echo_estimate(f"gap closed at {cutoff}", one)
    return {
        "simulated": True,
        "pixels": floor.as_json(),
        "true_latents": ceiling.as_json(),
        "gap_closed": [one.as_json() for one in closed],
    }


def simulated_sources(settings: Settings, lake: Lake, window: tuple[datetime, datetime]) -> set[str]:
    """Sources of the window's behaviour that are simulated, as far as their stages still lie there."""
    import pyarrow.compute as pc

    from sources.own_files.staging import SourceInfo, stage_path

    start, end = window
    inside = (pc.field("event_timestamp") >= start) & (pc.field("event_timestamp") < end)
    names = pc.unique(lake.read("behaviors", ["source"], where=inside)["source"]).to_pylist()
    folders = {name: stage_path(settings, name) for name in names}
    return {name for name, folder in folders.items() if folder.is_dir() and SourceInfo.read(folder).simulated}
