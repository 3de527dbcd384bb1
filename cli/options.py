"""Options of every command that reports, `--json` and `--output`, and the one way to give a report out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.reports import as_json as json_of

Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else on stdout.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", dir_okay=False, help="Write the report into a file too, as JSON."),
]


def give(report: Any, lines: Iterable[str], *, as_json: bool, output: Path | None) -> None:
    """Print a report: its lines, or its JSON; and write its JSON where a file is named.

    Args:
        report: dataclasses, dicts, lists and what stands in them; see `moonlake.reports.plain`.
        lines: the same for people; read only where they are printed.
    """
    text = json_of(report, indent=2)
    if output is not None:
        try:
            output.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output {output}: {error.strerror or error}") from None
    if as_json:
        typer.echo(text)
        return
    for line in lines:
        typer.echo(line)
