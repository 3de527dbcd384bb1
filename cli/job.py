"""`moonlake job`: start a job of spark_jobs by its name, in this process."""

from __future__ import annotations

import argparse
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from cli.options import give
from moonlake.errors import NotFound


def job_names() -> list[str]:
    """The names of the jobs: the files of `spark_jobs`, which is not imported any further."""
    import spark_jobs

    return [module.name for module in pkgutil.iter_modules(spark_jobs.__path__) if not module.ispkg]


def job(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a file in spark_jobs; 'list' lists them.")],
) -> None:
    """Run a job in this process: moonlake job NAME [its own options; --help shows them]."""
    names = job_names()
    if name in ("list", "-h", "--help"):
        _list(names, context.args)
        return
    if name not in names:
        raise NotFound(f"no job {name}; the jobs are {', '.join(names)}")
    import_module(f"spark_jobs.{name}").main(context.args)


def _list(names: list[str], words: list[str]) -> None:
    """Print the jobs; the words behind `list` are options of the list, and of a job behind its name."""
    parser = argparse.ArgumentParser("moonlake job list")
    parser.add_argument("--json", action="store_true", help="print the names as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the names into a file too, as JSON")
    asked = parser.parse_args(words)
    usage = "usage: moonlake job NAME [options of the job]"
    give(names, [usage, "jobs: " + ", ".join(names)], as_json=asked.json, output=asked.output)
