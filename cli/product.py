"""`moonlake product`: submit new and changed products, process them as they come, and see how long it takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, Output, give
from moonlake.lake.lake import Lake
from moonlake.names import require_name
from moonlake.reports import plain
from moonlake.settings import Settings

if TYPE_CHECKING:
    from workflows.product_intake import Intake

product_app = typer.Typer(no_args_is_help=True, help="New and changed products.")


@product_app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Folder with products.jsonl, .csv or .parquet, and images.")],
    source: Annotated[str, typer.Option(help="Name of whoever submits them.")] = "product-add",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until all are processed.")] = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Submit products, in the form of docs/own_files.md; a stream (`moonlake product watch`) takes them in."""
    from workflows.product_intake import submit_folder, wait_for

    lake = Lake(Settings.from_environment())
    submitted = submit_folder(lake, folder, source=require_name("source", source), clock=lambda: datetime.now(UTC))
    if not as_json:  # at once, as the wait may be long
        typer.echo(f"{len(submitted.event_ids):,} records submitted, {submitted.refused:,} refused (table rejects)")
    found = wait_for(lake, submitted.event_ids, seconds=wait) if wait else None
    lines = [] if found is None else [f"processed: {_outcomes(found)}"]
    if found is not None and found.waiting:
        lines.append(f"{found.waiting:,} still waiting after {wait:g} s: is `moonlake product watch` running?")
    give(plain(submitted) | {"intake": found}, lines, as_json=as_json, output=output)
    if found is not None and found.waiting:
        raise typer.Exit(1)


@product_app.command()
def delete(
    product_ids: Annotated[list[str], typer.Argument(help="Products that are no longer sold.")],
    source: Annotated[str, typer.Option(help="Name of whoever submits them.")] = "product-delete",
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Submit that products are off sale from now; what was true before stays (`moonlake erase` takes that too)."""
    from workflows.product_intake import submit_deletes

    lake = Lake(Settings.from_environment())
    report = submit_deletes(lake, product_ids, source=require_name("source", source), now=datetime.now(UTC))
    line = f"{report.written:,} records submitted, {report.rejected:,} refused (table rejects)"
    give(report, [line], as_json=as_json, output=output)


@product_app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Take in what there is, and end.")] = False,
) -> None:
    """Take records in as they come, until stopped; after a kill the same command goes on."""
    from moonlake.spark.lake import SparkLake
    from spark_jobs import stream_products

    settings = Settings.from_environment()
    with stream_products.stream_session(settings) as spark:
        stream_products.run(SparkLake(spark, settings), clock=lambda: datetime.now(UTC), once=once, say=typer.echo)


@product_app.command()
def status(
    hours: Annotated[float, typer.Option(min=0, help="Look back so far.")] = 24,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Counts of recent records by outcome, of records that wait, and the time from submission until servable."""
    from workflows.product_intake import intake_since

    found = intake_since(Lake(Settings.from_environment()), datetime.now(UTC) - timedelta(hours=hours))
    lines = [f"records of the last {hours:g} hours: {_outcomes(found)}; {found.waiting:,} waiting"]
    if times := found.seconds_to_servable:
        lines.append("product to servable: " + ", ".join(f"{name} {value:.2f} s" for name, value in times.items()))
    give(found, lines, as_json=as_json, output=output)


def _outcomes(found: Intake) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in found.outcomes.items()) or "none"
