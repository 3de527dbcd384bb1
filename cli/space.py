"""`moonlake space`: which embedding spaces there are, what makes them, and which use runs on which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.compute as pc
import typer

from cli.options import Json, Output, give
from moonlake.embeddings import releases, spaces
from moonlake.lake.lake import Lake
from moonlake.reports import plain
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.embeddings.spaces import Space

space_app = typer.Typer(no_args_is_help=True, help="Embedding spaces.")

NameOrId = Annotated[str, typer.Argument(help="Space by name, id or beginning of an id; 'live' ranks now.")]
LINE = "{:<24}  {:<12}  {:<9}  {:>8}  {:>9}  {:<16}  {}"


@space_app.command("list")
def list_spaces(as_json: Json = False, output: Output = None) -> None:
    """Every space: status, coverage, the latest event that its encoder saw, and what runs on it."""
    lake = Lake(Settings.from_environment())
    used = _used(lake)
    known = spaces.spaces(lake)
    found = [asdict(one) | {"runs": used.get(one.space_id, [])} for one in known]
    give(found, _table(known, used), as_json=as_json, output=output)


@space_app.command()
def show(space: NameOrId, as_json: Json = False, output: Output = None) -> None:
    """All that is known of a space: what makes its vectors, its life so far, the click models that read it."""
    lake = Lake(Settings.from_environment())
    one = releases.find(lake, space)
    read = lake.read("model_versions", ["name", "model_id", "created_at"], where=pc.field("space_id") == one.space_id)
    past = lake.read(
        "embedding_spaces", ["status", "coverage", "event_timestamp"], where=pc.field("space_id") == one.space_id
    )
    found = asdict(one) | {
        "runs": _used(lake).get(one.space_id, []),
        "ctr_models": read.sort_by("created_at").drop_columns("created_at").to_pylist(),
        "life": past.sort_by("event_timestamp").to_pylist(),
    }
    give(found, _facts(found), as_json=as_json, output=output)


@space_app.command()
def diff(first: NameOrId, second: NameOrId, as_json: Json = False, output: Output = None) -> None:
    """Say in what two spaces differ; of the definition, one difference is enough that their vectors never meet."""
    lake = Lake(Settings.from_environment())
    one, other = (plain(releases.find(lake, name)) for name in (first, second))
    for part in ("definition", "metrics"):
        one |= {f"{part}: {name}": value for name, value in one.pop(part).items()}
        other |= {f"{part}: {name}": value for name, value in other.pop(part).items()}
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    found = {name: {"first": one.get(name), "second": other.get(name)} for name in names}
    lines = [f"{name}\n  {sides['first']}\n  {sides['second']}" for name, sides in found.items()]
    give(found, lines or [f"{first} and {second} are one space"], as_json=as_json, output=output)


@space_app.command()
def retire(space: NameOrId, as_json: Json = False, output: Output = None) -> None:
    """Take a space out of use; its vectors stay in the lake. A space that something runs on is refused."""
    retired = releases.retire(Lake(Settings.from_environment()), space, written_at=datetime.now(UTC))
    give(retired, [str(retired)], as_json=as_json, output=output)


def _table(known: Sequence[Space], used: Mapping[str, list[str]]) -> Iterator[str]:
    yield LINE.format("name", "id", "status", "numbers", "coverage", "trained until", "runs").rstrip()
    for one in known:
        until = f"{one.trained_until:%Y-%m-%d %H:%M}" if one.trained_until else "on nothing"
        runs = ", ".join(used.get(one.space_id, []))
        row = (", ".join(one.names), one.space_id[:12], one.status, one.dimension, f"{one.coverage:.2%}", until, runs)
        yield LINE.format(*row).rstrip()


def _facts(found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _part(name, [f"{key}: {of_key}" for key, of_key in value.items()])
        elif name == "life":
            yield from _part(name, [f"{at['event_timestamp']}  {at['status']}, {at['coverage']:.2%}" for at in value])
        elif name == "ctr_models":
            yield from _part(name, [f"{model['name']} ({model['model_id'][:12]})" for model in value])
        else:
            yield f"{name}: {', '.join(value) if isinstance(value, list | tuple) else value}"


def _part(name: str, lines: list[str]) -> Iterator[str]:
    yield f"{name}:{'' if lines else ' none'}"
    for line in lines:
        yield f"  {line}"


def _used(lake: Lake) -> dict[str, list[str]]:
    """Uses by the id of the space that they run on."""
    found: dict[str, list[str]] = {}
    for use, one in releases.running(lake).items():
        found.setdefault(one.space_id, []).append(use)
    return found
