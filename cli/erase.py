"""`moonlake erase`: a product or a user out of everything, with the proof that nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.maintenance.erasure import Subject
    from spark_jobs.erase_subjects import Erasure

erase_app = typer.Typer(no_args_is_help=True, help="Products and users out of everything.")

Ids = Annotated[list[str], typer.Argument(help="Ids of what is to go.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")]


@erase_app.command()
def product(ids: Ids, dry_run: DryRun = False) -> None:
    """Erase products; exit 1 where one is still found afterwards."""
    _erase("product", ids, dry_run)


@erase_app.command()
def user(ids: Ids, dry_run: DryRun = False) -> None:
    """Erase users; exit 1 where one is still found afterwards."""
    _erase("user", ids, dry_run)


@erase_app.command()
def check(
    subject: Annotated[str, typer.Argument(help="product or user.")],
    ids: Annotated[list[str], typer.Argument(help="Ids that are looked for.")],
) -> None:
    """Open every file and look for products or users; exit 1 where one is found."""
    from moonlake.maintenance.erasure import subject_of
    from spark_jobs import erase_subjects

    _show_search(erase_subjects.check(Settings.from_environment(), subject_of(subject), ids))


def _erase(subject: Subject, ids: Sequence[str], dry_run: bool) -> None:
    from moonlake.spark.session import session
    from spark_jobs import erase_subjects

    settings = Settings.from_environment()
    if dry_run:
        planned = erase_subjects.plan(settings, subject, ids)
        for store, count in planned.removed.items():
            typer.echo(f"would remove or change {count:,} rows of {store}")
        for searched in planned.searched:
            for path in searched.found:
                typer.echo(f"named in {searched.store}: {path}")
        return
    with session(settings, "erase_subjects") as spark:
        erasure = erase_subjects.run(spark, settings, subject, ids, written_at=datetime.now(UTC))
    for store, count in erasure.removed.items():
        typer.echo(f"removed {count:,} from {store}")
    for name in erasure.training_sets:
        typer.echo(f"training set {name} held them and was deleted: build it again")
    _show_search(erasure)


def _show_search(erasure: Erasure) -> None:
    """Print what was searched and found; exit 1 where something is left."""
    for searched in erasure.searched:
        found = f"found in {len(searched.found)} files" if searched.found else "nothing found"
        typer.echo(f"searched {searched.store}: {searched.files:,} files, {searched.rows:,} rows: {found}")
    for searched in erasure.left:
        for path, rows in searched.found.items():
            what = "cannot be read" if rows < 0 else f"names them in {rows:,} rows"
            typer.echo(f"{searched.store}: {path} {what}", err=True)
    for path in erasure.models:
        typer.echo(f"{path}: this model learnt from them and knows their ids; weights cannot unlearn: train it again")
    if erasure.left:
        raise typer.Exit(1)
    typer.echo("nothing is left outside trained models" if erasure.models else "nothing is left")
