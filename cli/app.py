"""The root of the `moonlake` command: its groups, and how errors look.

Command files import only typer, moonlake's light modules and the standard library at their top; a room (models,
sources, spark_jobs, ...) is imported inside the command that uses it, so that `moonlake --help` is there at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.airflow import airflow
from cli.doctor import doctor
from cli.features import features_app, training_set_app
from cli.jobs import job
from moonlake.errors import MoonlakeError


class OneLineErrors(TyperGroup):
    """The command group that turns an error raised on purpose into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MoonlakeError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
)


@app.callback()
def moonlake(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """A feature store for multimodal product representations in e-commerce search advertising."""


app.add_typer(features_app, name="features")
app.add_typer(training_set_app, name="training-set")
app.command()(doctor)
# These two hand their arguments on, --help among them.
hands_on = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=hands_on, add_help_option=False)(job)
app.command(context_settings=hands_on, add_help_option=False)(airflow)


def main() -> None:
    """Run the command line of this process."""
    app()


if __name__ == "__main__":
    main()
