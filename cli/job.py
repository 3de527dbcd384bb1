"""`moonlake job`: start a job of spark_jobs by its name, in this process."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Annotated

import typer

from moonlake.errors import NotFound


def job_names() -> list[str]:
    """The jobs that there are: the files of `spark_jobs`, which is not imported any further."""
    import spark_jobs

    return [module.name for module in pkgutil.iter_modules(spark_jobs.__path__) if not module.ispkg]


def job(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a file in spark_jobs; 'list' lists them.")],
) -> None:
    """Run a job in this process: moonlake job NAME [its own options; --help shows them]."""
    names = job_names()
    if name in ("list", "-h", "--help"):
        typer.echo("usage: moonlake job NAME [options of the job]\njobs: " + ", ".join(names))
        return
    if name not in names:
        raise NotFound(f"no job {name}; the jobs are {', '.join(names)}")
    import_module(f"spark_jobs.{name}").main(context.args)
