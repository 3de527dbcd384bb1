"""`moonlake ingest`: a source into the lake; and the staging of a source by its name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from cli.progress import progress_on
from moonlake.settings import Settings
from sources.registry import BEHAVIOR_LOGS, SourceName, stage

if TYPE_CHECKING:
    from moonlake.lake.lake import WriteReport
    from sources.own_files.staging import SourceInfo


def ingest(
    source: Annotated[SourceName, typer.Option(help="Where the rows come from.")] = SourceName.MARKETPLACE,
    preset: Annotated[str, typer.Option(help="Preset of the simulated marketplace.")] = "demo",
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or of your own files.")] = None,
    products: Annotated[int, typer.Option(help="Products to take of the Myntra catalogue.")] = 3000,
    name: Annotated[str, typer.Option(help="Name of the source that your own files become.")] = "files",
    negatives: Annotated[
        int, typer.Option(help="Of a behaviour log: impressions sampled as not clicked for each click.", min=0)
    ] = 0,
) -> None:
    """Bring a source into the lake: what is good is written, the rest stands in `rejects` with the rule it broke."""
    settings = Settings.from_environment()
    console = Console()
    progress = progress_on(console)
    folder = stage(
        settings,
        source,
        preset=preset,
        data=data,
        products=products,
        name=name,
        negatives=negatives,
        progress=progress,
    )
    now = datetime.now(UTC)
    reports = []
    with ExitStack() as opened:
        with progress.step("Starting Spark"):
            from moonlake.spark.session import session
            from sources.own_files.staging import SourceInfo
            from spark_jobs import ingest_behaviors, ingest_catalogue, pack_behavior_sequences

            spark = opened.enter_context(session(settings, "ingest"))
        for title, job in (("catalogue", ingest_catalogue), ("behaviour", ingest_behaviors)):
            with progress.step(f"Ingesting the {title}"):
                reports += job.run(spark, settings, folder, written_at=now)
        if source in BEHAVIOR_LOGS:
            with progress.step("Packing the sequences"):
                reports.append(pack_behavior_sequences.run(spark, settings, written_at=now))
    show_reports(console, reports, SourceInfo.read(folder))


def show_reports(console: Console, reports: Sequence[WriteReport], info: SourceInfo) -> None:
    """Print what became of every row, and by which rule rows were rejected and cells taken for null."""
    grid = Grid("table", "in", "written", "rejected", "duplicates", "unchanged", "version", box=None)
    for report in reports:
        grid.add_row(report.table, *(f"{value:,}" for value in report.as_dict().values() if isinstance(value, int)))
    console.print(grid)
    rules = [("rejected", report.table, rule, count) for report in reports for rule, count in report.by_rule.items()]
    rules += [("taken for null", "", rule, count) for rule, count in info.repaired.items()]
    if rules:
        by_rule = Grid("what became of it", "table", "rule", "rows", box=None)
        for outcome, table, rule, count in rules:
            by_rule.add_row(outcome, table, rule, f"{count:,}")
        console.print(by_rule)
    if info.simulated:
        console.print(f"simulated: {info.kind}", soft_wrap=True)
