"""`moonlake backfill`: vectors for all contents in a space: how many are missing, embed them, how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.reports import plain
from moonlake.settings import Settings
from workflows import backfill

if TYPE_CHECKING:
    from spark_jobs.embed_contents import Survey
    from workflows.backfill import BackfillStatus

backfill_app = typer.Typer(no_args_is_help=True, help="Vectors for all contents in an embedding space.")

NameOrId = Annotated[str, typer.Argument(help="Space by name, id or beginning of an id; 'live' ranks now.")]


@backfill_app.command()
def plan(
    space: NameOrId,
    hour_price: Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs.")] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """The number of contents without a vector, and the time and cost of embedding them; nothing is written."""
    found = backfill.plan(Settings.from_environment(), space)
    price = None if hour_price is None else hour_price * found.seconds / 3600
    figures = {"seconds": found.seconds, "vector_bytes": found.vector_bytes, "price": price}
    lines = list(_plan_lines(found))
    if price is not None and found.rate is not None:
        lines.append(f"  about {price:,.2f} at {hour_price:g} an hour")
    give(plain(found) | figures, lines, as_json=as_json, output=output)


@backfill_app.command()
def run(space: NameOrId, as_json: Json = False, output: Output = None) -> None:
    """Embed what is missing. Give the command again after a kill, or on another terminal to share the work."""
    now = datetime.now(UTC)
    found = backfill.run(Settings.from_environment(), space, written_at=now, progress=progress_on())
    lines = [
        f"{found.written:,} vectors written, {found.rejected:,} contents refused; {found.space}",
        f"coverage {found.space.coverage:.2%}",
    ]
    counts = {"written": found.written, "rejected": found.rejected}
    give(plain(found) | counts, lines, as_json=as_json, output=output)


@backfill_app.command()
def status(space: NameOrId, as_json: Json = False, output: Output = None) -> None:
    """The progress of a backfill, from the files of its workers."""
    found = backfill.status(Settings.from_environment(), space, now=datetime.now(UTC))
    give(found, _status_lines(found), as_json=as_json, output=output)


def _plan_lines(found: Survey) -> Iterator[str]:
    yield f"embedding space {found.space}"
    yield f"  {found.contents:,} distinct contents in {found.rows:,} rows of products and queries"
    yield f"  {found.missing:,} without a vector, to be embedded"
    if found.kept:
        yield f"  {found.kept:,} embedded by a backfill that is under way, and not in the lake yet"
    yield f"  {found.refused:,} refused before: nothing in them can be read"
    if found.rate is None:
        yield "nothing is to be done"
        return
    yield f"  {found.rate:,.0f} contents/s on this machine, measured on some of them"
    yield f"  about {_spell(found.seconds)} in all, and {found.vector_bytes / 1e6:,.1f} MB of vectors"


def _status_lines(found: BackfillStatus) -> Iterator[str]:
    yield f"embedding space {found.space}: coverage {found.space.coverage:.2%} when it was last counted"
    if found.progress is None:
        yield "no backfill is under way"
        return
    yield str(found.progress)
    if found.stalled:
        idle = _spell(found.idle_seconds)
        yield f"nothing came in for {idle}: moonlake backfill run {found.space.name} goes on with it"


def _spell(seconds: float) -> str:
    """A span for people: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
