"""`moonlake source`: write a source as files in the own-files form, to be looked at or ingested later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.reports import plain
from moonlake.settings import Settings
from sources.registry import SourceName, stage

if TYPE_CHECKING:
    from sources.own_files.staging import SourceInfo

source_app = typer.Typer(no_args_is_help=True, help="Sources in the own-files form (docs/own_files.md).")

Negatives = Annotated[int, typer.Option(help="Impressions sampled as not clicked for each click.", min=0)]


@source_app.command()
def marketplace(
    preset: Annotated[str, typer.Argument(help="Frozen preset.")] = "demo",
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Simulate a marketplace."""
    _report(_stage(SourceName.MARKETPLACE, preset=preset), as_json=as_json, output=output)


@source_app.command()
def myntra(
    data: Annotated[Path, typer.Argument(help="Folder with styles.csv and images.zip or images/.")],
    products: Annotated[int, typer.Option(help="Products to take.")] = 3000,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take a sample of the Myntra fashion catalogue; behaviour is simulated on it."""
    _report(_stage(SourceName.MYNTRA, data=data, products=products), as_json=as_json, output=output)


@source_app.command()
def files(
    data: Annotated[Path, typer.Argument(help="Folder that holds products, images, impressions, ...")],
    name: Annotated[str, typer.Option(help="Name of the source.")] = "files",
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take your own files."""
    _report(_stage(SourceName.FILES, data=data, name=name), as_json=as_json, output=output)


@source_app.command()
def taobao(
    data: Annotated[Path, typer.Argument(help="Folder with UserBehavior.csv.")],
    negatives: Negatives = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take the Taobao UserBehavior log (docs/behaviour_logs.md)."""
    _report(_stage(SourceName.TAOBAO, data=data, negatives=negatives), as_json=as_json, output=output)


@source_app.command()
def rees46(
    data: Annotated[Path, typer.Argument(help="Folder with 2019-Oct.csv or other months.")],
    negatives: Negatives = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take months of the REES46 multi-category store (docs/behaviour_logs.md)."""
    _report(_stage(SourceName.REES46, data=data, negatives=negatives), as_json=as_json, output=output)


@source_app.command()
def otto(
    data: Annotated[Path, typer.Argument(help="Folder with train.jsonl.")],
    negatives: Negatives = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take the OTTO sessions (docs/behaviour_logs.md)."""
    _report(_stage(SourceName.OTTO, data=data, negatives=negatives), as_json=as_json, output=output)


@source_app.command()
def esci(
    data: Annotated[Path, typer.Argument(help="Folder with products.jsonl.gz and judgments.csv.")],
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take Amazon's judged queries and their products (docs/esci.md)."""
    _report(_stage(SourceName.ESCI, data=data), as_json=as_json, output=output)


@source_app.command(name=SourceName.OPEN_BANDIT)
def open_bandit(
    data: Annotated[Path, typer.Argument(help="Folder with random/men/men.csv, random_men.csv, or other logs.")],
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Take the impressions of ZOZO's Open Bandit data (docs/open_bandit.md)."""
    _report(_stage(SourceName.OPEN_BANDIT, data=data), as_json=as_json, output=output)


@source_app.command()
def arrivals(
    preset: Annotated[str, typer.Argument(help="Preset whose merchants list the products.")] = "demo",
    count: Annotated[int, typer.Option(help="New products.")] = 5,
    day: Annotated[int, typer.Option(help="Days after the end of the preset's window.")] = 1,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Simulate products that arrive after the window of a preset."""
    from sources.simulator.marketplace import stage_arrivals

    folder = stage_arrivals(preset, Settings.from_environment(), count=count, day=day)
    _report(folder, as_json=as_json, output=output)


def _stage(source: SourceName, **options: Any) -> Path:
    unstated = {"preset": "", "data": None, "products": 0}
    return stage(Settings.from_environment(), source, **{**unstated, **options}, progress=progress_on())


def _report(folder: Path, *, as_json: bool, output: Path | None) -> None:
    from sources.own_files.staging import SourceInfo

    info = SourceInfo.read(folder)
    give({"folder": folder} | plain(info), _lines(folder, info), as_json=as_json, output=output)


def _lines(folder: Path, info: SourceInfo) -> Iterator[str]:
    yield f"{folder}{' (simulated)' if info.simulated else ''}"
    for kind, staged in info.staged.items():
        refused = info.refused[kind]
        yield f"  {kind:<12} {staged:>9,}" + (f"   refused {refused:,}" if refused else "")
    for rule, count in info.repaired.items():
        yield f"  taken for null: {rule} {count:,}"
    for kind, names in info.ignored.items():
        yield f"  ignored in {kind}: {', '.join(names)}"
