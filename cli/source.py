"""`moonlake source`: lay a source down in the own-files form, to be looked at or ingested later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.progress import progress_on
from moonlake.settings import Settings
from sources.registry import SourceName, stage

source_app = typer.Typer(no_args_is_help=True, help="Sources in the own-files form (docs/own_files.md).")


@source_app.command()
def marketplace(preset: Annotated[str, typer.Argument(help="Frozen preset.")] = "demo") -> None:
    """Simulate a marketplace."""
    _stage(SourceName.MARKETPLACE, preset=preset)


@source_app.command()
def myntra(
    data: Annotated[Path, typer.Argument(help="Folder with styles.csv and images.zip or images/.")],
    products: Annotated[int, typer.Option(help="Products to take.")] = 3000,
) -> None:
    """Take a sample of the Myntra fashion catalogue; behaviour is simulated on it."""
    _stage(SourceName.MYNTRA, data=data, products=products)


@source_app.command()
def files(
    data: Annotated[Path, typer.Argument(help="Folder that holds products, images, impressions, ...")],
    name: Annotated[str, typer.Option(help="Name of the source.")] = "files",
) -> None:
    """Take your own files."""
    _stage(SourceName.FILES, data=data, name=name)


Negatives = Annotated[int, typer.Option(help="Impressions sampled as not clicked for each click.", min=0)]


@source_app.command()
def taobao(
    data: Annotated[Path, typer.Argument(help="Folder with UserBehavior.csv.")], negatives: Negatives = 0
) -> None:
    """Take the Taobao UserBehavior log (docs/behaviour_logs.md)."""
    _stage(SourceName.TAOBAO, data=data, negatives=negatives)


@source_app.command()
def rees46(
    data: Annotated[Path, typer.Argument(help="Folder with 2019-Oct.csv or other months.")], negatives: Negatives = 0
) -> None:
    """Take months of the REES46 multi-category store (docs/behaviour_logs.md)."""
    _stage(SourceName.REES46, data=data, negatives=negatives)


@source_app.command()
def otto(data: Annotated[Path, typer.Argument(help="Folder with train.jsonl.")], negatives: Negatives = 0) -> None:
    """Take the OTTO sessions (docs/behaviour_logs.md)."""
    _stage(SourceName.OTTO, data=data, negatives=negatives)


@source_app.command()
def esci(data: Annotated[Path, typer.Argument(help="Folder with products.jsonl.gz and judgments.csv.")]) -> None:
    """Take Amazon's judged queries and their products (docs/esci.md)."""
    _stage(SourceName.ESCI, data=data)


@source_app.command(name=SourceName.OPEN_BANDIT)
def open_bandit(
    data: Annotated[Path, typer.Argument(help="Folder with random/men/men.csv, random_men.csv, or other logs.")],
) -> None:
    """Take the impressions of ZOZO's Open Bandit data (docs/open_bandit.md)."""
    _stage(SourceName.OPEN_BANDIT, data=data)


@source_app.command()
def arrivals(
    preset: Annotated[str, typer.Argument(help="Preset whose merchants list the products.")] = "demo",
    count: Annotated[int, typer.Option(help="New products.")] = 5,
    day: Annotated[int, typer.Option(help="Days after the end of the preset's window.")] = 1,
) -> None:
    """Simulate products that arrive after the window of a preset."""
    from sources.simulator.marketplace import stage_arrivals

    _report(stage_arrivals(preset, Settings.from_environment(), count=count, day=day))


def _stage(
    source: SourceName,
    *,
    preset: str = "",
    data: Path | None = None,
    products: int = 0,
    name: str = "files",
    negatives: int = 0,
) -> None:

    folder = stage(
        Settings.from_environment(),
        source,
        preset=preset,
        data=data,
        products=products,
        name=name,
        negatives=negatives,
        progress=progress_on(),
    )
    _report(folder)


def _report(folder: Path) -> None:
    from sources.own_files.staging import SourceInfo

    info = SourceInfo.read(folder)
    typer.echo(f"{folder}{' (simulated)' if info.simulated else ''}")
    for kind, staged in info.staged.items():
        refused = info.refused[kind]
        typer.echo(f"  {kind:<12} {staged:>9,}" + (f"   refused {refused:,}" if refused else ""))
    for rule, count in info.repaired.items():
        typer.echo(f"  taken for null: {rule} {count:,}")
    for kind, names in info.ignored.items():
        typer.echo(f"  ignored in {kind}: {', '.join(names)}")
