"""`moonlake check`: do tables keep their contracts, and does an embedding space pass its gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.check_consistency import consistency
from cli.options import Json, Output, give
from moonlake.errors import ContractError
from moonlake.maintenance.data_docs import SAMPLE_ROWS
from moonlake.schema.tables import CTR_RANKING
from moonlake.settings import Settings

check_app = typer.Typer(
    no_args_is_help=True, help="Whether tables, embedding spaces and served features are as they should be."
)
check_app.command()(consistency)


@check_app.command()
def tables(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tables of the lake; default: all that were written.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to look at in each table, at most.")] = SAMPLE_ROWS,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Hold a sample of each table's rows against its contract; fails when a rule is broken."""
    from moonlake.lake.lake import Lake
    from moonlake.maintenance.data_docs import check_rows, pages, sample_rows
    from moonlake.schema.tables import TABLES

    settings = Settings.from_environment()
    lake = Lake(settings)
    tables: list[dict[str, Any]] = []
    for name in names or [name for name in TABLES if lake.exists(name)]:
        found = sample_rows(lake, name, rows)
        tables.append({"table": name, "rows": len(found), "broken": check_rows(settings, name, found)})
    page = pages(settings)
    give({"tables": tables, "page": page}, _table_lines(tables, page), as_json=as_json, output=output)
    if bad := [one["table"] for one in tables if one["broken"]]:
        raise ContractError(f"{len(bad)} of the tables hold rows that break their contract: {', '.join(bad)}")


@check_app.command()
def space(
    name: Annotated[str, typer.Argument(help="Embedding space by name or id, or 'live'.")],
    use: Annotated[
        str, typer.Option(help="What it would be released for: compared with what runs there.")
    ] = CTR_RANKING,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Run the gates of an embedding space, keep what came of them; fails when a gate does."""
    from moonlake.embeddings import releases
    from moonlake.lake.lake import Lake
    from workflows.releases import check_space, require_passed

    settings = Settings.from_environment()
    check = check_space(settings, releases.find(Lake(settings), name), compared_with=use)
    words = {True: "passed", False: "FAILED", None: "-"}
    lines = [f"{words[gate.passed]:<7} {gate}" for gate in check.gates]
    give(check.as_json(), lines, as_json=as_json, output=output)
    require_passed(settings, check)


def _table_lines(tables: Sequence[Mapping[str, Any]], page: Path) -> Iterator[str]:
    for one in tables:
        said = ", ".join(f"{rule} ({count})" for rule, count in one["broken"].items())
        yield f"{one['table']}: {one['rows']:,} rows, {f'broken: {said}' if said else 'all keep the contract'}"
    yield f"open {page} in a browser"
