"""`moonlake ingest`: a source into the lake; and the staging of a source by its name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from moonlake.errors import InputError
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.lake import WriteReport
    from sources.staging import SourceInfo


class SourceName(StrEnum):
    """Where rows can come from."""

    MARKETPLACE = "marketplace"
    MYNTRA = "myntra"
    FILES = "files"
    TAOBAO = "taobao"
    REES46 = "rees46"
    OTTO = "otto"
    ESCI = "esci"
    OPEN_BANDIT = "open_bandit"


BEHAVIOR_LOGS = (SourceName.TAOBAO, SourceName.REES46, SourceName.OTTO)
"""Sources that are what people did and nothing to look at: no titles, no images, no impressions."""
WITHOUT_PICTURES = (*BEHAVIOR_LOGS, SourceName.ESCI, SourceName.OPEN_BANDIT)


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
    folder = stage(
        settings,
        source,
        preset=preset,
        data=data,
        products=products,
        name=name,
        negatives=negatives,
        console=console,
    )
    with console.status("Starting Spark ..."):
        from moonlake.spark import spark_session
        from sources.staging import SourceInfo
        from spark_jobs import ingest_behaviors, ingest_catalogue, pack_behavior_sequences

        spark = spark_session(settings, "ingest")
    now = datetime.now(UTC)
    reports = []
    try:
        for title, job in (("catalogue", ingest_catalogue), ("behaviour", ingest_behaviors)):
            with console.status(f"Ingesting the {title} ..."):
                reports += job.run(spark, settings, folder, written_at=now)
        if source in BEHAVIOR_LOGS:
            with console.status("Packing the sequences ..."):
                reports.append(pack_behavior_sequences.run(spark, settings, written_at=now))
    finally:
        spark.stop()
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


def stage(
    settings: Settings,
    source: SourceName,
    *,
    preset: str,
    data: Path | None,
    products: int,
    console: Console,
    name: str = "files",
    negatives: int = 0,
) -> Path:
    """The folder of the staged source; staged before from the same inputs, it is found again.

    Raises: InputError: no data folder where the source needs one, or one that cannot be read; negatives asked for a
        source that has impressions of its own.
    """
    if negatives and source not in BEHAVIOR_LOGS:
        raise InputError(f"--negatives {negatives}: only a log without impressions takes it, not {source.value}")
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
        if source in BEHAVIOR_LOGS:
            from sources.otto import stage_otto
            from sources.rees46 import stage_rees46
            from sources.taobao import stage_taobao

            stage_it = dict(zip(BEHAVIOR_LOGS, (stage_taobao, stage_rees46, stage_otto), strict=True))[source]
            return stage_it(data, settings, negatives=negatives, progress=progress)
        if source is SourceName.ESCI:
            from sources.esci import stage_esci

            return stage_esci(data, settings, progress=progress)
        if source is SourceName.OPEN_BANDIT:
            from sources.open_bandit import stage_open_bandit

            return stage_open_bandit(data, settings, progress=progress)
        from sources.own_files import stage_own_files

        return stage_own_files(data, settings, name=name, progress=progress)
