"""`moonlake training-set`: build, show, verify and compare point-in-time training sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from cli.options import Json, Output, give
from moonlake.errors import InputError
from moonlake.settings import Settings
from moonlake.training_sets.spec import TrainingSetSpec, options

training_set_app = typer.Typer(no_args_is_help=True, help="Point-in-time training sets.")

Name = Annotated[str, typer.Argument(help="Name of the training set: its folder.")]


def with_spec_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of TrainingSetSpec in place of its `**stated`."""
    own = signature(command, eval_str=True)
    parameters = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    for option in options():
        words: Any = list[str] | None if option.repeated else str | None
        annotation = Annotated[words, typer.Option(*option.flags, help=option.help)]
        parameters.append(Parameter(option.field, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


@training_set_app.command()
@with_spec_options
def build(
    name: Name,
    from_manifest: Annotated[
        str | None, typer.Option(help="Build again, byte for byte: a manifest.json or a training set's name.")
    ] = None,
    as_json: Json = False,
    output: Output = None,
    **stated: Any,
) -> None:
    """Join the label rows of a window with their features as of each of them."""
    from moonlake.training_sets import build
    from moonlake.training_sets.manifest import describe
    from workflows.training_sets import rebuild

    settings = Settings.from_environment()
    if from_manifest is not None:
        if given := [option.flags[0] for option in options() if stated[option.field]]:
            raise InputError(f"--from-manifest states everything: leave {', '.join(given)} out")
        report = rebuild(settings, name, from_manifest, written_at=datetime.now(UTC))
        lines = [f"{report.training_set.folder}: {len(report.training_set)} rows, every byte as in the manifest"]
    else:
        if not stated["start"] or not stated["end"]:
            raise InputError("state the window with --start and --end, or a manifest with --from-manifest")
        report = build.run(settings, TrainingSetSpec.from_options(name, stated), written_at=datetime.now(UTC))
        state = "built" if report.built else "unchanged"
        lines = [f"{report.training_set.folder} ({state})", *_facts(describe(report.training_set.manifest))]
    for warning in report.warnings:
        typer.echo(f"note: {warning}", err=True)
    found = {"folder": report.training_set.folder, "built": report.built, "warnings": report.warnings}
    give(found | describe(report.training_set.manifest), lines, as_json=as_json, output=output)


@training_set_app.command()
def show(
    name: Name,
    manifest: Annotated[bool, typer.Option("--manifest", help="Print the whole manifest.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Say what a training set was made of."""
    from moonlake.training_sets.manifest import describe
    from moonlake.training_sets.training_set import TrainingSet
    from moonlake.training_sets.verify import reproducible

    settings = Settings.from_environment()
    found = TrainingSet.open(settings.training_set(name)).manifest
    if manifest:
        give(json.loads(found.as_json()), [found.as_json().rstrip("\n")], as_json=as_json, output=output)
        return
    facts = describe(found) | {"reproducible": reproducible(settings, found.table_versions)}
    give(facts, _facts(facts), as_json=as_json, output=output)


@training_set_app.command("list")
def list_(as_json: Json = False, output: Output = None) -> None:
    """Every training set of the home: rows, window, and until when it can be built again."""
    from moonlake.maintenance.kept_versions import live_training_sets
    from moonlake.training_sets.verify import reproducible

    settings = Settings.from_environment()
    found: list[dict[str, Any]] = [
        {
            "name": folder.name,
            "training_set_id": manifest.training_set_id,
            "rows": manifest.rows,
            "start": manifest.spec.start,
            "end": manifest.spec.end,
            "reproducible": reproducible(settings, manifest.table_versions),
        }
        for folder, manifest in live_training_sets(settings)
    ]
    lines = (
        f"{one['name']}: {one['rows']:,} rows of [{one['start'].isoformat()}, {one['end'].isoformat()}), "
        f"reproducible {one['reproducible']}"
        for one in found
    )
    give(found, lines, as_json=as_json, output=output)


@training_set_app.command()
def verify(
    name: Name,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again too, and compare every byte.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Hold files, table versions and space against the manifest; exit 1 with a line for each thing that is wrong."""
    from workflows.training_sets import verify as verified

    found = verified(Settings.from_environment(), name, rebuild=rebuild)
    lines = list(found.problems)
    if not lines:
        until = found.reproducible_until
        kept = until.isoformat(timespec="seconds") if until else "its tables move on and are vacuumed"
        again = [", ".join(["built again: every byte is the same", *found.notes])] if rebuild else []
        lines = [*again, f"{found.folder}: as its manifest says; reproducible until {kept}"]
    give(found, lines, as_json=as_json, output=output)
    if found.problems:
        raise typer.Exit(1)


@training_set_app.command()
def diff(
    a: Annotated[str, typer.Argument(help="Name of a training set.")],
    b: Annotated[str, typer.Argument(help="Name of another one.")],
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Say how training set B differs from A: inputs, columns, rows by label key, changed values by column."""
    from moonlake.training_sets.diff import diff as difference_of
    from moonlake.training_sets.training_set import TrainingSet

    settings = Settings.from_environment()
    found = difference_of(TrainingSet.open(settings.training_set(a)), TrainingSet.open(settings.training_set(b)))
    lines = [*found.inputs, *(f"column {line}" for line in found.columns)]
    lines.append(f"rows in both {found.in_both}, only in {a} {found.only_in_a}, only in {b} {found.only_in_b}")
    lines += [f"changed in {column}: {count} rows" for column, count in found.changed.items()]
    lines += ["the rows are the same"] if found.same_rows else []
    give(found, lines, as_json=as_json, output=output)


def _facts(facts: Mapping[str, object]) -> Iterator[str]:
    for name, value in facts.items():
        yield f"  {name}: {value}"
