"""`moonlake training-set`: build, show, verify and compare point-in-time training sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from moonlake.errors import InputError, MoonlakeError
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
    **stated: Any,
) -> None:
    """Join the label rows of a window with their features as of each of them."""
    from moonlake.training_sets import build
    from moonlake.training_sets.manifest import describe

    settings = Settings.from_environment()
    if from_manifest is not None:
        if given := [option.flags[0] for option in options() if stated[option.field]]:
            raise InputError(f"--from-manifest states everything: leave {', '.join(given)} out")
        _replay(settings, name, from_manifest)
        return
    if not stated["start"] or not stated["end"]:
        raise InputError("state the window with --start and --end, or a manifest with --from-manifest")
    report = build.run(settings, TrainingSetSpec.from_options(name, stated), written_at=datetime.now(UTC))
    state = "built" if report.built else "unchanged"
    typer.echo(f"{report.training_set.folder} ({state})")
    _echo(describe(report.training_set.manifest))


@training_set_app.command()
def show(
    name: Name,
    manifest: Annotated[bool, typer.Option("--manifest", help="Print the whole manifest.")] = False,
) -> None:
    """Say what a training set was made of."""
    from moonlake.training_sets.manifest import describe
    from moonlake.training_sets.training_set import TrainingSet
    from moonlake.training_sets.verify import reproducible

    settings = Settings.from_environment()
    found = TrainingSet.open(settings.training_sets / name).manifest
    if manifest:
        typer.echo(found.as_json(), nl=False)
    else:
        _echo({**describe(found), "reproducible": reproducible(settings, found.table_versions)})


@training_set_app.command("list")
def list_() -> None:
    """Every training set of the home: rows, window, and until when it can be built again."""
    from moonlake.maintenance.kept_versions import live_training_sets
    from moonlake.training_sets.verify import reproducible

    settings = Settings.from_environment()
    for folder, found in live_training_sets(settings):
        window = f"[{found.start.isoformat()}, {found.end.isoformat()})"
        until = reproducible(settings, found.table_versions)
        typer.echo(f"{folder.name}: {found.rows:,} rows of {window}, reproducible {until}")


@training_set_app.command()
def verify(
    name: Name,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again too, and compare every byte.")] = False,
) -> None:
    """Hold files, table versions and space against the manifest; exit 1 with a line for each thing that is wrong."""
    from moonlake.training_sets.build import replay
    from moonlake.training_sets.training_set import TrainingSet
    from moonlake.training_sets.verify import verify as verification_of

    settings = Settings.from_environment()
    folder = settings.training_sets / name
    verification = verification_of(settings, folder)
    problems = list(verification.problems)
    if rebuild and not problems:
        again = folder.with_name(f".{name}.rebuilt")
        try:
            report = replay(settings, TrainingSet.open(folder).manifest, again, written_at=None)
            typer.echo(", ".join(["built again: every byte is the same", *report.warnings]))
        except MoonlakeError as error:
            problems.append(str(error))
        finally:
            shutil.rmtree(again, ignore_errors=True)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    until = verification.reproducible_until
    kept = until.isoformat(timespec="seconds") if until else "its tables move on and are vacuumed"
    typer.echo(f"{folder}: as its manifest says; reproducible until {kept}")


@training_set_app.command()
def diff(
    a: Annotated[str, typer.Argument(help="Name of a training set.")],
    b: Annotated[str, typer.Argument(help="Name of another one.")],
) -> None:
    """Say how training set B differs from A: inputs, columns, rows by label key, changed values by column."""
    from moonlake.training_sets.diff import diff as difference_of
    from moonlake.training_sets.training_set import TrainingSet

    folder = Settings.from_environment().training_sets
    found = difference_of(TrainingSet.open(folder / a), TrainingSet.open(folder / b))
    for line in (*found.inputs, *(f"column {line}" for line in found.columns)):
        typer.echo(line)
    typer.echo(f"rows in both {found.in_both}, only in {a} {found.only_in_a}, only in {b} {found.only_in_b}")
    for column, count in found.changed.items():
        typer.echo(f"changed in {column}: {count} rows")
    if found.same_rows:
        typer.echo("the rows are the same")


def _replay(settings: Settings, name: str, manifest: str) -> None:
    from moonlake.training_sets.build import replay
    from moonlake.training_sets.manifest import Manifest
    from moonlake.training_sets.training_set import TrainingSet

    if Path(manifest).is_file():
        found = Manifest.from_json(Path(manifest).read_text())
    else:
        found = TrainingSet.open(settings.training_sets / manifest).manifest
    report = replay(settings, found, settings.training_sets / name, written_at=datetime.now(UTC))
    typer.echo(f"{report.training_set.folder}: {len(report.training_set)} rows, every byte as in the manifest")
    for warning in report.warnings:
        typer.echo(f"note: {warning}", err=True)


def _echo(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        typer.echo(f"  {name}: {value}")
