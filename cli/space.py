"""`moonlake space`: which embedding spaces there are, what makes them, and which use runs on which."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.compute as pc
import typer

from moonlake.embeddings import releases, spaces
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.embeddings.spaces import Space

space_app = typer.Typer(no_args_is_help=True, help="Embedding spaces.")

NameOrId = Annotated[str, typer.Argument(help="Space by name, id or beginning of an id; 'live' ranks now.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LINE = "{:<24}  {:<12}  {:<9}  {:>8}  {:>9}  {:<16}  {}"


@space_app.command("list")
def list_spaces(as_json: Json = False) -> None:
    """Every space: status, coverage, the latest event that its encoder saw, and what runs on it."""
    lake = Lake(Settings.from_environment())
    used = _used(lake)
    if as_json:
        found = [_plain(one) | {"runs": used.get(one.space_id, [])} for one in spaces.spaces(lake)]
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(LINE.format("name", "id", "status", "numbers", "coverage", "trained until", "runs").rstrip())
    for one in spaces.spaces(lake):
        until = f"{one.trained_until:%Y-%m-%d %H:%M}" if one.trained_until else "on nothing"
        runs = ", ".join(used.get(one.space_id, []))
        row = (one.name, one.space_id[:12], one.status, one.dimension, f"{one.coverage:.2%}", until, runs)
        typer.echo(LINE.format(*row).rstrip())


@space_app.command()
def show(space: NameOrId, as_json: Json = False) -> None:
    """All that is known of a space: what makes its vectors, its life so far, the click models that read it."""
    lake = Lake(Settings.from_environment())
    one = releases.find(lake, space)
    read = lake.read("model_versions", ["name", "model_id", "created_at"], where=pc.field("space_id") == one.space_id)
    past = lake.read(
        "embedding_spaces", ["status", "coverage", "event_timestamp"], where=pc.field("space_id") == one.space_id
    )
    found = _plain(one) | {
        "runs": _used(lake).get(one.space_id, []),
        "ctr_models": read.sort_by("created_at").drop_columns("created_at").to_pylist(),
        "life": past.sort_by("event_timestamp").to_pylist(),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            _echo_lines(name, [f"{key}: {of_key}" for key, of_key in value.items()])
        elif name == "life":
            _echo_lines(name, [f"{at['event_timestamp']}  {at['status']}, {at['coverage']:.2%}" for at in value])
        elif name == "ctr_models":
            _echo_lines(name, [f"{model['name']} ({model['model_id'][:12]})" for model in value])
        else:
            typer.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


@space_app.command()
def diff(first: NameOrId, second: NameOrId) -> None:
    """What two spaces differ in; of the definition, a single difference is enough that their vectors never meet."""
    lake = Lake(Settings.from_environment())
    one, other = (_plain(releases.find(lake, name)) for name in (first, second))
    for part in ("definition", "metrics"):
        one |= {f"{part}: {name}": value for name, value in one.pop(part).items()}
        other |= {f"{part}: {name}": value for name, value in other.pop(part).items()}
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    for name in names:
        typer.echo(f"{name}\n  {one.get(name)}\n  {other.get(name)}")
    if not names:
        typer.echo(f"{first} and {second} are one space")


@space_app.command()
def retire(space: NameOrId) -> None:
    """Take a space out of use; its vectors stay in the lake. A space that something runs on is refused."""
    typer.echo(str(releases.retire(Lake(Settings.from_environment()), space, written_at=datetime.now(UTC))))


def _used(lake: Lake) -> dict[str, list[str]]:
    """Uses by the id of the space that they run on."""
    found: dict[str, list[str]] = {}
    for use, one in releases.running(lake).items():
        found.setdefault(one.space_id, []).append(use)
    return found


def _plain(space: Space) -> dict[str, Any]:
    """A space as plain values."""
    values = asdict(space) | {"aliases": list(space.aliases)}
    return values | {name: str(values[name]) for name in ("trained_until", "event_timestamp") if values[name]}


def _echo_lines(name: str, lines: list[str]) -> None:
    typer.echo(f"{name}:{'' if lines else ' none'}")
    for line in lines:
        typer.echo(f"  {line}")
