"""`moonlake lake`: compact and vacuum the tables, and say what is kept for whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from cli.options import Json, Output, give
from moonlake.reports import plain
from moonlake.settings import Settings

lake_app = typer.Typer(no_args_is_help=True, help="The lake's tables.")


@lake_app.command()
def maintain(
    retention_days: Annotated[float, typer.Option(min=0, help="Keep all versions of so many days.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a vacuum would remove; change nothing.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Compact every table, and remove files that no version needs that is named, served from or younger."""
    from moonlake.spark.session import session
    from spark_jobs import maintain_lake

    settings = Settings.from_environment()
    with nullcontext() if dry_run else session(settings, "maintain_lake") as spark:
        retention = timedelta(days=retention_days)
        done = maintain_lake.run(spark, settings, now=datetime.now(UTC), retention=retention)
    live = _kept(settings)
    lines = [*map(str, done), *_kept_lines(live)]
    give({"dry_run": dry_run, "tables": done, "kept": live}, lines, as_json=as_json, output=output)


@lake_app.command()
def kept(as_json: Json = False, output: Output = None) -> None:
    """Everything that names versions of tables, and until when it can be made again."""
    live = _kept(Settings.from_environment())
    give(live, _kept_lines(live), as_json=as_json, output=output)


def _kept(settings: Settings) -> list[dict[str, Any]]:
    from moonlake.maintenance.kept_versions import live_manifests
    from moonlake.training_sets.verify import reproducible

    return [plain(live) | {"reproducible": reproducible(settings, live.versions)} for live in live_manifests(settings)]


def _kept_lines(live: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (f"{one['name']}: reproducible {one['reproducible']}" for one in live)
