"""`moonlake ingest`: a source into the lake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.settings import Settings
from sources.registry import SourceName
from workflows.ingest import ingest as ingest_source

if TYPE_CHECKING:
    from moonlake.lake.lake import WriteReport
    from sources.own_files.staging import SourceInfo

COUNTS = {
    "rows_in": "in",
    "written": "written",
    "rejected": "rejected",
    "duplicates": "duplicates",
    "unchanged": "unchanged",
    "version": "version",
}
"""Counts of a write report, and the heads of their columns."""


def ingest(
    source: Annotated[SourceName, typer.Option(help="Where the rows come from.")] = SourceName.MARKETPLACE,
    preset: Annotated[str, typer.Option(help="Preset of the simulated marketplace.")] = "demo",
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or of your own files.")] = None,
    products: Annotated[int, typer.Option(help="Products to take of the Myntra catalogue.")] = 3000,
    name: Annotated[str, typer.Option(help="Name of the source that your own files become.")] = "files",
    negatives: Annotated[
        int, typer.Option(help="Of a behaviour log: impressions sampled as not clicked for each click.", min=0)
    ] = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Bring a source into the lake: what is good is written, the rest stands in `rejects` with the rule it broke."""
    options = {"preset": preset, "data": data, "products": products, "name": name, "negatives": negatives}
    done = ingest_source(
        Settings.from_environment(), source, options, written_at=datetime.now(UTC), progress=progress_on()
    )
    give(done, report_lines(done.tables, done.source), as_json=as_json, output=output)


def report_lines(reports: Sequence[WriteReport], info: SourceInfo) -> Iterator[str]:
    """The counts of every table, and the rules by which rows were rejected and cells taken for null."""
    counts = [[f"{report.as_dict()[name]:,}" for name in COUNTS] for report in reports]
    heads = ["table", *COUNTS.values()]
    yield from _columns([heads, *([one.table, *row] for one, row in zip(reports, counts, strict=True))], left=1)
    rules = [("rejected", report.table, rule, f"{n:,}") for report in reports for rule, n in report.by_rule.items()]
    rules += [("taken for null", "", rule, f"{count:,}") for rule, count in info.repaired.items()]
    if rules:
        yield from _columns([("outcome", "table", "rule", "rows"), *rules], left=3)
    if info.simulated:
        yield f"simulated: {info.kind}"


def _columns(rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """Rows as lines of even columns; the first ones are set to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
