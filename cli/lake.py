"""`moonlake lake`: compact and vacuum the tables, and say what is kept for whom."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from moonlake.settings import Settings

lake_app = typer.Typer(no_args_is_help=True, help="The lake's tables.")


@lake_app.command()
def maintain(
    retention_days: Annotated[float, typer.Option(min=0, help="Keep all versions of so many days.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a vacuum would remove; change nothing.")] = False,
) -> None:
    """Compact every table, and remove files that no version needs that is named, served from or younger."""
    from moonlake.spark.session import session
    from spark_jobs import maintain_lake

    settings = Settings.from_environment()
    with nullcontext() if dry_run else session(settings, "maintain_lake") as spark:
        retention = timedelta(days=retention_days)
        for done in maintain_lake.run(spark, settings, now=datetime.now(UTC), retention=retention):
            typer.echo(str(done))
    _show_kept(settings)


@lake_app.command()
def kept() -> None:
    """Everything that names versions of tables, and until when it can be made again."""
    _show_kept(Settings.from_environment())


def _show_kept(settings: Settings) -> None:
    from moonlake.maintenance.kept_versions import live_manifests
    from moonlake.training_sets.verify import reproducible

    for live in live_manifests(settings):
        typer.echo(f"{live.name}: reproducible {reproducible(settings, live.versions)}")
