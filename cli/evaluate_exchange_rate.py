"""`moonlake evaluate exchange-rate`: what a gain in an intermediate metric of the encoder buys in CTR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.errors import InputError
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.evaluate_encoder import Task
from workflows.exchange_rate import ExchangeReport, Target, measure_exchange_rate

if TYPE_CHECKING:
    from models.evaluation.exchange_rate import Exchange, ExchangeRates, Predictor

BLANK = "(blank: noise)"


def exchange_rate(
    spaces: Annotated[list[str], typer.Argument(help="Embedding spaces by name or id, oldest first; two or more.")],
    training_set: Annotated[str, typer.Option("--on", help="Training set with the impressions to test on.")],
    start: Annotated[str, typer.Option(help="First moment of the retrieval trials, with a time zone.")],
    end: Annotated[str, typer.Option(help="First moment after them; the pool is what was live then.")],
    task: Annotated[
        list[Task] | None, typer.Option(help="Intermediate metrics; default: all three of behaviour.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="CTR models by name or pattern, such as 'cube-*'; default: all of a space.")
    ] = None,
    target: Annotated[Target, typer.Option(help="What is bought.")] = Target.AUC,
    plot: Annotated[Path | None, typer.Option(help="Draw metrics against AUC there, an SVG file.")] = None,
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """The AUC that a gain in an intermediate metric buys, over embedding spaces with the CTR model held fixed.

    The CTR models are those that `evaluate ctr` has recorded for each space: one or more runs that differ in their seed
    alone. They are tested on the rows after their training window.
    """
    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot {plot}: expected a name that ends in .svg, which is what can be drawn")
    found = measure_exchange_rate(
        Settings.from_environment(),
        spaces,
        training_set,
        (parse_moment(start), parse_moment(end)),
        tasks=task or (),
        models=models or ["*"],
        target=target,
        allow_seen=allow_seen,
        progress=progress_on(),
    )
    give(found.as_json(), _lines(found), as_json=as_json, output=output)
    if plot is not None:
        from workflows.exchange_rate_plot import draw

        plot.write_text(draw(found.rates, simulated=bool(found.simulated)), encoding="utf-8")


def _lines(found: ExchangeReport) -> Iterator[str]:
    """Labels, sizes, and the rates."""
    if found.simulated:
        yield f"NOTE: behaviour is simulated ({', '.join(found.simulated)})"
    if found.seen:
        yield f"NOTE: measured on rows that training may have seen ({', '.join(found.seen)})"
    for one in found.subjects:
        for name, model in one.runs.items():
            for label in model.lineage.labels:
                yield f"NOTE: {name}: {label}"
    for task, size in found.trials.items():
        yield f"{task}: {size.trials:,} trials of {size.queries:,} queries"
    yield f"{found.impressions:,} impressions of {found.users:,} users, {found.clicked:,} clicked"
    yield from _rate_lines(found.rates)


def _rate_lines(found: ExchangeRates) -> Iterator[str]:
    """Spaces, pairs and predictors, and what may be said of them."""
    name = found.target.upper()
    for space in found.spaces:
        yield f"{space.name}: {name} {space.target:.4f}, {space.runs} run{'s' if space.runs > 1 else ''}"
        for metric, figure in space.metrics.items():
            yield f"  {metric:<24} {figure:.4f}"
    for metric in dict.fromkeys(pair.metric for pair in found.pairs):
        yield f"{metric}: what it moved, what {name} gained, and {name} for each +0.01"
        for pair in found.pairs:
            if pair.metric == metric:
                yield _pair(pair)
    if found.predictors:
        yield f"over {len(found.spaces)} spaces, best predictor first: {name} for each +0.01"
    for predictor in found.predictors:
        yield _predictor(predictor)
    yield from found.verdict


def _pair(pair: Exchange) -> str:
    rate = BLANK if pair.rate is None else f"{pair.rate:+.5f}"
    names = f"{pair.before} -> {pair.after}"
    return f"  {names:<28} {pair.moved:+.4f}  {pair.gained:+.4f}  {rate}"


def _predictor(one: Predictor) -> str:
    line = f"({one.blank})" if one.slope is None else f"{one.slope:+.5f}"
    return (
        f"  {one.metric:<24} {line}  r {one.pearson:+.3f}  Spearman {one.spearman:+.2f}  "
        f"Kendall {one.kendall:+.2f}  best in {one.best_in:.0%}"
    )
