"""`moonlake evaluate encoder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.evaluate_judged import judged_lines
from cli.options import Json, Output, give
from cli.printing import estimate_line, geometry_lines, rate_lines, segment_lines
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.evaluate_encoder import (
    TRIALS_OF,
    Task,
    evaluate_attribute,
    evaluate_judged,
    evaluate_purchases,
    products_that_ask,
)

if TYPE_CHECKING:
    from workflows.encoder_figures import AttributeFigures, Ceiling, PurchaseFigures, TrialFigures

ASKED_WITH = {
    "image_search": "purchases after {queries} image queries",
    "text_search": "purchases after {queries} text queries",
    "product_search": "purchases after {queries} queries of text and picture",
    "bought_next": "purchases within a day after one of {queries} other products",
}


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
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Retrieval of a space: hit rate and precision of what was bought, or of products of the same kind."""
    of_attributes = {"--test-share": test_share, "--test-products": test_products, "--pictures-only": pictures_only}
    of_attributes["--fresh-pictures"] = fresh_pictures
    _refuse(task, {"--segments": segments, "--ceiling": ceiling}, task in TRIALS_OF, "what was bought")
    _refuse(task, of_attributes, task is Task.ATTRIBUTES, "attributes")
    settings, at = Settings.from_environment(), parse_moment(end)
    if task is Task.JUDGED:
        judged = evaluate_judged(settings, space, at, prefix=prefix)
        give(judged.as_json(), judged_lines(judged), as_json=as_json, output=output)
    elif task is Task.ATTRIBUTES:
        asking = products_that_ask(Lake(settings), at, share=test_share, listed=test_products, seed=seed)
        how = {"pictures_only": pictures_only, "fresh_pictures": fresh_pictures}
        alike = evaluate_attribute(settings, space, attribute, at, asking=asking, prefix=prefix, **how)
        give(alike.as_json(), _attribute_lines(alike), as_json=as_json, output=output)
    else:
        if start is None:
            raise InputError(f"--task {task}: expected --start, the first moment of the test")
        window = parse_moment(start), at
        bought = evaluate_purchases(
            settings, space, window, task, prefix=prefix, ceiling=ceiling, allow_seen=allow_seen
        )
        give(bought.as_json(), _purchase_lines(bought, segments), as_json=as_json, output=output)


def _refuse(task: Task, options: Mapping[str, object], fits: bool, belongs_to: str) -> None:
    """Raise InputError if options were given that the task does not read."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given and not fits:
        raise InputError(f"--task {task} does not read {', '.join(given)}: of {belongs_to} alone")


def _attribute_lines(found: AttributeFigures) -> Iterator[str]:
    """Precision of one attribute, and how the vectors lie."""
    whole = found.precision
    yield (
        f"{found.subject}: {whole.queries:,} products ask, pool of {whole.pool:,}; right is the same {whole.attribute} "
        f"(by chance {whole.chance:.4f}); {whole.left_out:,} products have none"
    )
    yield from rate_lines("P", whole.precisions)
    if found.prefix is not None:
        yield f"  first {found.prefix_dimension} numbers of each vector:"
        yield from rate_lines("P", found.prefix.precisions)
    yield from geometry_lines(found.geometry)


def _purchase_lines(found: PurchaseFigures, segments: bool) -> Iterator[str]:
    """Labels of the rows, and the figures of each set of trials."""
    if found.simulated:
        yield f"NOTE: behaviour is simulated ({', '.join(found.simulated)})"
    if found.seen:
        yield "NOTE: measured on rows that training may have seen"
    for task, figures in found.tasks.items():
        yield from _trial_lines(found.subject, task, figures, segments)


def _trial_lines(subject: str, task: str, found: TrialFigures, segments: bool) -> Iterator[str]:
    recall = found.recall
    asked = ASKED_WITH[task].format(queries=f"{recall.queries:,}")
    yield f"{subject}: {recall.purchases:,} {asked}, pool of {recall.pool:,}; {recall.left_out:,} left out"
    yield from rate_lines("hit", recall.hit_rates)
    yield from rate_lines("P", recall.precisions, recall.precision_limits)
    if found.prefix is not None:
        yield f"  first {found.prefix.dimension} numbers of each vector:"
        yield from rate_lines("hit", found.prefix.recall.hit_rates)
        for rate, one in zip(recall.hit_rates, found.prefix.minus_whole, strict=True):
            yield estimate_line(f"minus whole, hit@{rate.cutoff}", one)
    if found.ceiling is not None:
        yield from _ceiling_lines(found.ceiling)
    if segments:
        yield from segment_lines(recall.segments)
    yield from geometry_lines(found.geometry)


def _ceiling_lines(found: Ceiling) -> Iterator[str]:
    yield "  raw pixels:"
    yield from rate_lines("hit", found.pixels.hit_rates)
    yield "  true latents of the simulation:"
    yield from rate_lines("hit", found.true_latents.hit_rates)
    yield "  gap closed, simulated: (model - pixels) / (true latents - pixels)"
    for rate, one in zip(found.pixels.hit_rates, found.gap_closed, strict=True):
        yield estimate_line(f"gap closed at {rate.cutoff}", one)
