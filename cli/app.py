"""The root of the `moonlake` command: its commands, where each one is, and how errors look.

A command's file is imported when the command is asked for, and a room (models, sources, spark_jobs, ...) inside the
command that uses it, so that `moonlake --help` and `moonlake doctor` answer at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from moonlake.errors import MoonlakeError, SettingsError

if TYPE_CHECKING:
    from moonlake.logs import Level


@dataclass(frozen=True, slots=True)
class Entry:
    """One command or group of commands.

    Attributes:
        where: "module:function", or "module:app" for a group.
        line: what it does, for `moonlake --help`.
        hands_on: true when its arguments belong to another program, --help among them.
    """

    where: str
    line: str
    hands_on: bool = False


COMMANDS = {
    "ingest": Entry("cli.ingest:ingest", "Bring a source into the lake; what is bad is kept with its reason."),
    "source": Entry("cli.source:source_app", "Write a source as files in the own-files form."),
    "train": Entry("cli.train:train_app", "Train an encoder or a click model."),
    "evaluate": Entry("cli.evaluate:evaluate_app", "Measure an encoder, click models, or what gains are worth."),
    "erase": Entry("cli.erase:erase_app", "Erase products or users everywhere, and prove it."),
    "demo": Entry("cli.demo:demo", "Run everything on one source: lake, encoder, features, CTR models, report."),
    "doctor": Entry("cli.doctor:doctor", "Check that this machine has all that moonlake needs, and say what to do."),
    "feature": Entry("cli.feature:feature_app", "Register feature definitions; fill and read the online store."),
    "training-set": Entry("cli.training_set:training_set_app", "Build, verify and compare training sets."),
    "space": Entry("cli.space:space_app", "List, show, compare and retire embedding spaces."),
    "product": Entry("cli.product:product_app", "Hand in new products; take them in at once; see how long it takes."),
    "release": Entry("cli.release:release_app", "Switch a use to a click model and its embedding space, and back."),
    "backfill": Entry("cli.backfill:backfill_app", "Embed contents without a vector in a space; plan it, follow it."),
    "lake": Entry("cli.lake:lake_app", "Compact and vacuum the lake; keep the versions that manifests name."),
    "check": Entry("cli.check:check_app", "Check tables, embedding spaces and served features."),
    "job": Entry("cli.job:job", "Run a job of spark_jobs by name.", hands_on=True),
    "airflow": Entry("cli.airflow:airflow", "Run Airflow with moonlake's DAGs.", hands_on=True),
}

OLD_NAMES: dict[str, tuple[str, ...]] = {
    "stage": ("source",),
    "features": ("feature",),
    "products": ("product",),
    "spaces": ("space",),
    "quality": ("check",),
    "consistency": ("check", "consistency"),
    "exchange-rate": ("evaluate", "exchange-rate"),
}
"""Commands of 0.1 and the words that they became in 0.2; they still run in 0.2, and are not listed."""

EXIT_CODES = "Exit codes: 0 done; 1 refused, or a check or gate failed; 2 a mistake in the words of the command."


class Root(TyperGroup):
    """The group that imports a command when it is asked for, and turns an error raised on purpose into one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        module, _, name = entry.where.partition(":")
        found = getattr(import_module(module), name)
        one = typer.Typer(rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            one.add_typer(found, name=cmd_name)
        else:
            context = {"allow_extra_args": True, "ignore_unknown_options": True} if entry.hands_on else {}
            one.command(cmd_name, context_settings=context, add_help_option=not entry.hands_on)(found)
        return get_group(one).commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if new := OLD_NAMES.get(args[0]):
            typer.echo(
                f"note: `moonlake {args[0]}` is `moonlake {' '.join(new)}` now; the old name ends with 0.2", err=True
            )
            args = [*new, *args[1:]]
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, [*COMMANDS, *OLD_NAMES], n=2)
            near = list(dict.fromkeys(" ".join(OLD_NAMES.get(one, (one,))) for one in near))
            meant = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
            ctx.fail(f"No such command {name!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.line) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MoonlakeError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moonlake {version('moonlake')}")
        raise typer.Exit


@app.callback()
def moonlake(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log more than MOONLAKE_LOG_LEVEL says.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Log warnings and errors alone.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A feature store for multimodal product representations in e-commerce search advertising."""
    from moonlake import logs

    logs.configure("debug" if verbose else "warning" if quiet else _log_level())
    context.with_resource(logs.context(command=context.invoked_subcommand))


def _log_level() -> Level:
    """The level that the settings name; the usual one where they are wrong, which the command itself will say."""
    from moonlake.settings import Settings

    try:
        return Settings.from_environment().log_level
    except SettingsError:
        return "info"


def main() -> None:
    """Run the command line of this process."""
    # Threads of torch that wait by spinning take the cores from Spark and from each other: on two loaded cores two
    # epochs of a click model took 87 s, and 14 s with threads that sleep. Read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is drawn by our own commands, not by libraries inside them
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # lines reach a file or a pipe as they come
    app(prog_name="moonlake")


if __name__ == "__main__":
    main()
