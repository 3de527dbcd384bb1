"""`moonlake demo`: the whole product once, from a catalogue to ranked candidates and a page to look at."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.settings import Settings
from sources.registry import SourceName
from workflows.demo import DEFAULT_PRESET, MYNTRA_PRODUCTS, DemoFigures, run_demo


def demo(
    source: Annotated[SourceName, typer.Option(help="Where the catalogue comes from.")] = SourceName.MARKETPLACE,
    preset: Annotated[str, typer.Option(help="Preset of the simulated marketplace.")] = DEFAULT_PRESET,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or of your own files.")] = None,
    products: Annotated[int, typer.Option(help="Products to take of the Myntra catalogue.")] = MYNTRA_PRODUCTS,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of the encoder; default: its configuration.")
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Run everything on one source: lake, encoder, features, CTR models, ranking, report. Unchanged steps are skipped.

    The preset `demo` fills MOONLAKE_HOME itself; another source gets a home of its own inside it, since two
    catalogues in one lake would speak of each other's products.
    """
    settings, started, console = Settings.from_environment(), time.monotonic(), Console(stderr=as_json)
    found = run_demo(
        settings,
        source,
        preset=preset,
        data=data,
        products=products,
        encoder_steps=steps,
        say=partial(console.print, markup=False, highlight=False, soft_wrap=True),
        progress=progress_on(console),
    )
    give(found, [], as_json=as_json, output=output)
    if not as_json:
        _show(found, console)
    seconds = time.monotonic() - started
    console.print(f"\nDone in {seconds:.0f} s. Open {found.report} in a browser.", soft_wrap=True)
    if found.home != settings.home:
        console.print(f"Other commands look there after: export MOONLAKE_HOME={found.home}", soft_wrap=True)


def _show(found: DemoFigures, console: Console) -> None:
    """The figures on the screen."""
    from models.evaluation.bootstrap import Estimate

    label = " [dim](behaviour is simulated)[/dim]" if found.simulated else ""
    grid = Grid(title=f"Image-search recall{label}", title_justify="left", box=None)
    for heading in ("vectors", "hit@1", "hit@10", "hit@50"):
        grid.add_column(heading, justify="left" if heading == "vectors" else "right")
    for name, subject in found.recall.items():
        grid.add_row(name, *(f"{rate['value']:.3f}" for rate in subject["hit_rates"]))
    console.print("\n", grid, sep="")
    grid = Grid(title=f"Click-through rate{label}", title_justify="left", box=None)
    for heading in ("model", "AUC", "gain [95%]", "GAUC", "gain [95%]", "log loss"):
        grid.add_column(heading, justify="left" if heading == "model" else "right")
    for name, model in found.models.items():
        of_name = found.gains.get(name, {})
        gains = [f"{Estimate(*of_name[metric]):+.4f}" if metric in of_name else "" for metric in ("auc", "gauc")]
        grid.add_row(
            name, f"{model['auc']:.4f}", gains[0], f"{model['gauc']:.4f}", gains[1], f"{model['log_loss']:.4f}"
        )
    console.print("\n", grid, sep="")
    user, best = found.served["request"]["user_id"], found.served["ranked"][0]
    console.print(
        f"\nUser {user} searched with a picture: of {found.served['candidates']} candidates "
        f"{best['product_id']} is first (click probability {best['score']:.3f})."
    )
