"""The root of the `moonlake` command: its commands, where each one is, and how errors look.

A command's file is imported when the command is asked for, and a room (models, sources, spark_jobs, ...) inside the
command that uses it, so that `moonlake --help` and `moonlake doctor` answer at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from moonlake.errors import MoonlakeError


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
    "demo": Entry("cli.demo:demo", "Run everything on one source: lake, encoder, features, CTR models, report."),
    "doctor": Entry("cli.doctor:doctor", "Check what moonlake needs on this machine, and say what to do."),
    "stage": Entry("cli.source:stage_app", "Lay a source down in the own-files form."),
    "ingest": Entry("cli.ingest:ingest", "Bring a source into the lake; what is bad is kept with its reason."),
    "features": Entry("cli.features:features_app", "Register feature definitions; fill and read the online store."),
    "training-set": Entry("cli.training_set:training_set_app", "Build, verify and compare training sets."),
    "consistency": Entry("cli.consistency:consistency", "Hold what was served online against what training sees."),
    "train": Entry("cli.train_evaluate:train_app", "Train an encoder or a click model."),
    "evaluate": Entry("cli.train_evaluate:evaluate_app", "Measure an encoder or click models on later rows."),
    "exchange-rate": Entry(
        "cli.exchange_rate:exchange_rate", "Say how much AUC a gain in an intermediate metric buys, space by space."
    ),
    "products": Entry("cli.product:products_app", "Hand in new products; take them in at once; see how long it takes."),
    "spaces": Entry("cli.space:spaces_app", "List, show, compare and retire embedding spaces."),
    "backfill": Entry("cli.backfill:backfill_app", "Embed what has no vector in a space; plan it, see how far it is."),
    "quality": Entry("cli.check:quality_app", "Hold tables against contracts, and embedding spaces against gates."),
    "release": Entry("cli.release:release_app", "Switch a use to a click model and its embedding space, and back."),
    "lake": Entry("cli.lake:lake_app", "Compact and vacuum the lake; keep what manifests name."),
    "erase": Entry("cli.erase:erase_app", "Erase products or users everywhere, and prove it."),
    "job": Entry("cli.job:job", "Run a job of spark_jobs by name.", hands_on=True),
    "airflow": Entry("cli.airflow:airflow", "Run Airflow with moonlake's DAGs.", hands_on=True),
}


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
    cls=Root, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
)


@app.callback()
def moonlake(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """A feature store for multimodal product representations in e-commerce search advertising."""


def main() -> None:
    """Run the command line of this process."""
    # Threads of torch that wait by spinning take the cores from Spark and from each other: on two loaded cores two
    # epochs of a click model took 87 s, and 14 s with threads that sleep. Read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is drawn by our own commands, not by libraries inside them
    app()


if __name__ == "__main__":
    main()
