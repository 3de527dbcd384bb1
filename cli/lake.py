"""`moonlake ingest`: a source into the lake; and the staging of a source by its name."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from moonlake.errors import InputError
from moonlake.settings import Settings


class SourceName(StrEnum):
    """Where rows can come from."""

    MARKETPLACE = "marketplace"
    MYNTRA = "myntra"
    FILES = "files"


def ingest(
    source: Annotated[SourceName, typer.Option(help="Where the catalogue comes from.")] = SourceName.MARKETPLACE,
    preset: Annotated[str, typer.Option(help="Preset of the simulated marketplace.")] = "demo",
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or of your own files.")] = None,
    products: Annotated[int, typer.Option(help="Products to take of the Myntra catalogue.")] = 3000,
    name: Annotated[str, typer.Option(help="Name of the source that your own files become.")] = "files",
) -> None:
    """Bring a source into the lake: what is good is written, the rest stands in `rejects` with the rule it broke."""
    settings = Settings.from_environment()
    console = Console()
    folder = stage(settings, source, preset=preset, data=data, products=products, name=name, console=console)
    with console.status("Starting Spark ..."):
        from moonlake.spark import spark_session
        from spark_jobs import ingest_behaviors, ingest_catalogue

        spark = spark_session(settings, "ingest")
    now = datetime.now(UTC)
    reports = []
    try:
        for title, job in (("catalogue", ingest_catalogue), ("behaviour", ingest_behaviors)):
            with console.status(f"Ingesting the {title} ..."):
                reports += job.run(spark, settings, folder, written_at=now)
    finally:
        spark.stop()
    grid = Grid("table", "in", "written", "rejected", "duplicates", "unchanged", "version", box=None)
    for report in reports:
        grid.add_row(report.table, *(f"{value:,}" for value in report.as_dict().values() if isinstance(value, int)))
    console.print(grid)


def stage(
    settings: Settings,
    source: SourceName,
    *,
    preset: str,
    data: Path | None,
    products: int,
    console: Console,
    name: str = "files",
) -> Path:
    """The folder of the staged source; staged before from the same inputs, it is found again.

    Raises: InputError: no data folder where the source needs one, or one that cannot be read.
    """
    with console.status(f"Staging {source.value} ...") as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(f"Staging {source.value}: {what} {done:,}" + (f" of {total:,}" if total else ""))

        if source is SourceName.MARKETPLACE:
            from sources.marketplace import stage_marketplace

            return stage_marketplace(preset, settings, progress=progress)
        if data is None:
            raise InputError(f"--source {source.value} needs --data: the folder of the files")
        if source is SourceName.MYNTRA:
            from sources.myntra import stage_myntra

            return stage_myntra(data, settings, products=products, progress=progress)
        from sources.own_files import stage_own_files

        return stage_own_files(data, settings, name=name, progress=progress)
