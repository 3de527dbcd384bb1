"""`moonlake backfill`: vectors for all contents in a space: how many are missing, embed them, how far it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.progress import progress_on
from moonlake.settings import Settings

backfill_app = typer.Typer(no_args_is_help=True, help="Vectors for all contents in an embedding space.")

NameOrId = Annotated[str, typer.Argument(help="Space by name, id or beginning of an id; 'live' ranks now.")]
STALLED_SECONDS = 300


@backfill_app.command()
def plan(
    space: NameOrId,
    hour_price: Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs.")] = None,
) -> None:
    """The number of contents without a vector, and the time and cost of embedding them; nothing is written."""
    from moonlake.spark.session import session
    from spark_jobs.embed_contents import survey

    settings = Settings.from_environment()
    with session(settings, "backfill_plan") as spark:
        found = survey(spark, settings, space)
    typer.echo(f"embedding space {found.space}")
    typer.echo(f"  {found.contents:,} distinct contents in {found.rows:,} rows of products and queries")
    typer.echo(f"  {found.missing:,} without a vector, to be embedded")
    if found.kept:
        typer.echo(f"  {found.kept:,} embedded by a backfill that is under way, and not in the lake yet")
    typer.echo(f"  {found.refused:,} refused before: nothing in them can be read")
    if found.rate is None:
        typer.echo("nothing is to be done")
        return
    typer.echo(f"  {found.rate:,.0f} contents/s on this machine, measured on some of them")
    typer.echo(f"  about {_spell(found.seconds)} in all, and {found.vector_bytes / 1e6:,.1f} MB of vectors")
    if hour_price is not None:
        typer.echo(f"  about {hour_price * found.seconds / 3600:,.2f} at {hour_price:g} an hour")


@backfill_app.command()
def run(space: NameOrId) -> None:
    """Embed what is missing. Give the command again after a kill, or on another terminal to share the work."""
    from moonlake.spark.session import session
    from spark_jobs import embed_contents

    settings = Settings.from_environment()
    with session(settings, "backfill") as spark:
        found = embed_contents.run(spark, settings, space, written_at=datetime.now(UTC), progress=progress_on())
    typer.echo(f"{found.written:,} vectors written, {found.rejected:,} contents refused; {found.space}")
    typer.echo(f"coverage {found.space.coverage:.2%}")


@backfill_app.command()
def status(space: NameOrId) -> None:
    """The progress of a backfill, from the files of its workers."""
    from moonlake.embeddings import releases
    from moonlake.embeddings.backfill import Backfill
    from moonlake.lake.lake import Lake

    settings = Settings.from_environment()
    found = releases.find(Lake(settings), space)
    backfill = Backfill(settings.home, found.space_id)
    typer.echo(f"embedding space {found}: coverage {found.coverage:.2%} when it was last counted")
    under_way = backfill.current()
    if under_way is None:
        typer.echo("no backfill is under way")
        return
    progress = backfill.progress(under_way)
    typer.echo(str(progress))
    idle = time.time() - progress.last
    if idle > STALLED_SECONDS:
        typer.echo(f"nothing came in for {_spell(idle)}: moonlake backfill run {found.name} goes on with it")


def _spell(seconds: float) -> str:
    """A span for people: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
