"""`moonlake check`: do tables keep their contracts, and does an embedding space pass its gates."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.check_consistency import consistency
from moonlake.errors import ContractError
from moonlake.maintenance.data_docs import SAMPLE_ROWS
from moonlake.settings import Settings

check_app = typer.Typer(
    no_args_is_help=True, help="Whether tables, embedding spaces and served features are as they should be."
)
check_app.command()(consistency)

USE = "ctr_ranking"


@check_app.command()
def tables(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tables of the lake; default: all that were written.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to look at in each table, at most.")] = SAMPLE_ROWS,
) -> None:
    """Hold a sample of each table's rows against its contract; fails when a rule is broken."""
    from moonlake.lake.lake import Lake
    from moonlake.maintenance.data_docs import check_rows, pages, sample_rows
    from moonlake.schema.tables import TABLES

    settings = Settings.from_environment()
    lake = Lake(settings)
    bad = []
    for name in names or [name for name in TABLES if lake.exists(name)]:
        found = sample_rows(lake, name, rows)
        broken = check_rows(settings.home, name, found)
        said = ", ".join(f"{rule} ({count})" for rule, count in broken.items())
        typer.echo(f"{name}: {len(found):,} rows, {f'broken: {said}' if said else 'all keep the contract'}")
        bad += [name] if broken else []
    typer.echo(f"open {pages(settings.home)} in a browser")
    if bad:
        raise ContractError(f"{len(bad)} of the tables hold rows that break their contract: {', '.join(bad)}")


@check_app.command()
def space(
    name: Annotated[str, typer.Argument(help="Embedding space by name or id, or 'live'.")],
    use: Annotated[str, typer.Option(help="What it would be released for: compared with what runs there.")] = USE,
) -> None:
    """Run the gates of an embedding space, keep what came of them; fails when a gate does."""
    from moonlake.embeddings import releases
    from moonlake.lake.lake import Lake
    from workflows.releases import check_space, require_passed

    settings = Settings.from_environment()
    check = check_space(settings, releases.find(Lake(settings), name), compared_with=use)
    for gate in check.gates:
        word = {True: "passed", False: "FAILED", None: "-"}[gate.passed]
        typer.echo(f"{word:<7} {gate}")
    require_passed(settings, check)
