"""`moonlake erase`: a product or a user out of everything, with the proof that nothing is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, Output, give
from moonlake.reports import plain
from moonlake.settings import Settings

if TYPE_CHECKING:
    from spark_jobs.erase_subjects import Erasure

erase_app = typer.Typer(no_args_is_help=True, help="Products and users out of everything.")

Ids = Annotated[list[str], typer.Argument(help="Ids of what is to go.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")]


@erase_app.command()
def product(ids: Ids, dry_run: DryRun = False, as_json: Json = False, output: Output = None) -> None:
    """Erase products; exit 1 where one is still found afterwards."""
    _erase("product", ids, dry_run, as_json=as_json, output=output)


@erase_app.command()
def user(ids: Ids, dry_run: DryRun = False, as_json: Json = False, output: Output = None) -> None:
    """Erase users; exit 1 where one is still found afterwards."""
    _erase("user", ids, dry_run, as_json=as_json, output=output)


@erase_app.command()
def check(
    subject: Annotated[str, typer.Argument(help="product or user.")],
    ids: Annotated[list[str], typer.Argument(help="Ids that are looked for.")],
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Open every file and look for products or users; exit 1 where one is found."""
    from workflows import erase

    found = erase.check(Settings.from_environment(), subject, ids)
    give(_report(found), _search_lines(found), as_json=as_json, output=output)
    _fail_where_left(found)


def _erase(subject: str, ids: Sequence[str], dry_run: bool, *, as_json: bool, output: Path | None) -> None:
    from workflows import erase

    settings = Settings.from_environment()
    if dry_run:
        planned = erase.plan(settings, subject, ids)
        give(_report(planned), _plan_lines(planned), as_json=as_json, output=output)
        return
    erasure = erase.erase(settings, subject, ids, written_at=datetime.now(UTC))
    lines = [f"removed {count:,} from {store}" for store, count in erasure.removed.items()]
    lines += [f"training set {name} held them and was deleted: build it again" for name in erasure.training_sets]
    give(_report(erasure), [*lines, *_search_lines(erasure)], as_json=as_json, output=output)
    _fail_where_left(erasure)


def _report(erasure: Erasure) -> dict[str, Any]:
    left = [searched.store for searched in erasure.left]
    return plain(erasure) | {"left_in": left, "models": erasure.models}


def _plan_lines(planned: Erasure) -> Iterator[str]:
    for store, count in planned.removed.items():
        yield f"would remove or change {count:,} rows of {store}"
    for searched in planned.searched:
        for path in searched.found:
            yield f"named in {searched.store}: {path}"


def _search_lines(erasure: Erasure) -> Iterator[str]:
    for searched in erasure.searched:
        found = f"found in {len(searched.found)} files" if searched.found else "nothing found"
        yield f"searched {searched.store}: {searched.files:,} files, {searched.rows:,} rows: {found}"
    for path in erasure.models:
        yield f"{path}: this model learnt from them and knows their ids; weights cannot unlearn: train it again"
    if not erasure.left:
        yield "nothing is left outside trained models" if erasure.models else "nothing is left"


def _fail_where_left(erasure: Erasure) -> None:
    """Raise Exit with code 1 unless nothing is left, with a line on stderr for each file that names them."""
    for searched in erasure.left:
        for path, rows in searched.found.items():
            what = "cannot be read" if rows < 0 else f"names them in {rows:,} rows"
            typer.echo(f"{searched.store}: {path} {what}", err=True)
    if erasure.left:
        raise typer.Exit(1)
