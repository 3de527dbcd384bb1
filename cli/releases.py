"""`moonlake release`: what CTR ranking runs on, switched and looked back on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import NotFound, SpaceMismatch
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.lake import Lake
    from moonlake.spaces import Release

USE = "ctr_ranking"
SERVICE = "ctr_ranking_v1"


def release(
    model: Annotated[str | None, typer.Argument(help="Click model, by name or id; none: list the releases.")] = None,
    service: Annotated[str, typer.Option(help="Feature service that the model reads.")] = SERVICE,
) -> None:
    """Switch CTR ranking to a click model and the embedding space that it reads, in one commit.

    A roll-back is a switch to the earlier model.
    """
    from moonlake import spaces
    from moonlake.lake import Lake
    from moonlake.snapshots import write_snapshot

    settings = Settings.from_environment()
    lake = Lake(settings)
    if model is not None:
        chosen = find_model(lake, model)
        if chosen["space_id"] is None:
            raise SpaceMismatch(
                f"CTR model {chosen['name']} reads IDs only: a release names the space that its model reads"
            )
        folder = settings.snapshots / chosen["space_id"]
        spaces.release(
            lake,
            USE,
            chosen["space_id"],
            model_id=chosen["model_id"],
            feature_service=service,
            snapshot=str(write_snapshot(lake, chosen["space_id"], folder).folder),
            written_at=datetime.now(UTC),
        )
    for one in spaces.history(lake, USE):
        typer.echo(_line(lake, one))


def find_model(lake: Lake, name_or_id: str) -> dict[str, Any]:
    """The row of `model_versions` of that id, or the latest of that name. Raises NotFound, with the names there are."""
    rows = lake.read("model_versions").sort_by("created_at").to_pylist()
    found = [row for row in rows if name_or_id in (row["model_id"], row["name"])]
    if not found:
        names = ", ".join(sorted({row["name"] for row in rows})) or "none: train and evaluate one"
        raise NotFound(f"no CTR model {name_or_id!r} in model_versions; there are {names}")
    return found[-1]


def _line(lake: Lake, one: Release) -> str:
    from moonlake import spaces

    model = find_model(lake, str(one.model_id))["name"] if one.model_id else "no model"
    return f"{one.event_timestamp:%Y-%m-%d %H:%M:%S}  {one.use}  {model} on space {spaces.find(lake, one.space_id)}"
