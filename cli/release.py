"""`moonlake release`: what each use runs on, switched, switched back, and looked back on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from moonlake.errors import NotFound, SpaceMismatch
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.embeddings.releases import Release
    from moonlake.embeddings.spaces import Space
    from moonlake.lake.lake import Lake

release_app = typer.Typer(no_args_is_help=True, help="What each use runs on.")

USE = "ctr_ranking"
SERVICE = "ctr_ranking_v1"

Use = Annotated[str, typer.Option(help="ctr_ranking or similar_products.")]


@release_app.command()
def show(use: Use = USE) -> None:
    """Every release of a use, the latest last: it runs on that one now."""
    from moonlake.embeddings import releases
    from moonlake.lake.lake import Lake

    lake = Lake(Settings.from_environment())
    past = releases.history(lake, use)
    for one in past:
        typer.echo(_line(lake, one))
    if not past:
        typer.echo(f"nothing was released for {use}")


@release_app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Click model by name or id; for similar_products, the space.")],
    use: Use = USE,
    service: Annotated[str, typer.Option(help="Feature service that the click model reads.")] = SERVICE,
    minimum_gain: Annotated[
        float | None, typer.Option(help="AUC over IDs alone that the low end of its 95% interval must reach.")
    ] = None,
) -> None:
    """Switch a use to a click model and the embedding space that it reads, or to a space, in one commit.

    The gates come first: where one fails nothing is switched.
    """
    from cli.check import check_space, require_passed
    from moonlake.embeddings import releases
    from moonlake.embeddings.gates import GateLimits
    from moonlake.lake.lake import Lake

    settings = Settings.from_environment()
    lake = Lake(settings)
    limits = GateLimits() if minimum_gain is None else GateLimits(min_ctr_gain_auc=minimum_gain)
    if use != USE:
        space = releases.find(lake, name)
        require_passed(settings, check_space(settings, lake, space, compared_with=use, use=use, limits=limits))
        _switch(settings, lake, use, space.space_id)
        return
    model = find_model(lake, name)
    if model["space_id"] is None:
        raise SpaceMismatch(f"CTR model {model['name']} reads IDs only: a release names the space that its model reads")
    space, model_id = releases.find(lake, model["space_id"]), model["model_id"]
    require_passed(
        settings, check_space(settings, lake, space, compared_with=use, use=use, model_id=model_id, limits=limits)
    )
    _switch(settings, lake, use, space.space_id, model_id, service)


@release_app.command()
def rollback(use: Use = USE) -> None:
    """Switch a use back to what it ran on before, in one commit; given again, one release further back."""
    from moonlake.embeddings import releases
    from moonlake.lake.lake import Lake

    settings = Settings.from_environment()
    lake = Lake(settings)
    # No gates: it ran before, and a way back that can be refused is none.
    earlier = releases.before_current(lake, use)
    _switch(settings, lake, use, earlier.space_id, earlier.model_id, earlier.feature_service)
    _echo_missing(settings, lake, releases.find(lake, earlier.space_id))


def find_model(lake: Lake, name_or_id: str) -> dict[str, Any]:
    """The row of `model_versions` of that id, or the latest of that name. Raises NotFound, with the names there are."""
    rows = lake.read("model_versions").sort_by("created_at").to_pylist()
    found = [row for row in rows if name_or_id in (row["model_id"], row["name"])]
    if not found:
        names = ", ".join(sorted({row["name"] for row in rows})) or "none: train and evaluate one"
        raise NotFound(f"no CTR model {name_or_id!r} in model_versions; there are {names}")
    return found[-1]


def _switch(
    settings: Settings,
    lake: Lake,
    use: str,
    space_id: str,
    model_id: str | None = None,
    service: str | None = None,
) -> None:
    """Write the space's snapshot of now, then make the switch, and say what the use runs on."""
    from moonlake.embeddings import releases
    from moonlake.embeddings.snapshots import write_snapshot

    snapshot = write_snapshot(lake, space_id, settings.snapshots / space_id).folder
    parts = {"model_id": model_id, "feature_service": service, "snapshot": str(snapshot)}
    typer.echo(_line(lake, releases.release(lake, use, space_id, **parts, written_at=datetime.now(UTC))))


def _echo_missing(settings: Settings, lake: Lake, space: Space) -> None:
    """Say which products came in since a space was filled last, but for those of which nothing can be read."""
    from moonlake.embeddings.contents import CONTENT_UNREADABLE
    from moonlake.embeddings.snapshots import Snapshot

    snapshot = Snapshot.open(settings.snapshots / space.space_id)
    content_ids = np.array(list(snapshot.products.values()), str)
    missing = content_ids[snapshot.rows_of(pa.array(content_ids, pa.string())) < 0]
    of_space = (pc.field("table") == "embeddings") & (pc.field("rule") == CONTENT_UNREADABLE)
    refused = [json.loads(row) for row in lake.read("rejects", ["value"], where=of_space)["value"].to_pylist()]
    unreadable = [row["content_id"] for row in refused if row["space_id"] == space.space_id]
    if count := int((~np.isin(missing, unreadable)).sum()):
        typer.echo(
            f"{count:,} of {len(content_ids):,} products on sale have no vector in the space {space.name}: "
            f"moonlake backfill run {space.name} embeds them"
        )


def _line(lake: Lake, one: Release) -> str:
    from moonlake.embeddings import releases

    model = find_model(lake, str(one.model_id))["name"] if one.model_id else "no model"
    return f"{one.event_timestamp:%Y-%m-%d %H:%M:%S}  {one.use}  {model} on space {releases.find(lake, one.space_id)}"
