"""`moonlake doctor`: is everything there that moonlake needs, and if not, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from cli.options import Json, Output, give
from workflows.doctor import Finding, examine

COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(as_json: Json = False, output: Output = None) -> None:
    """Check Python, Java, packages, Delta's jars, ports, disk, memory and the lake; exit code 1 when one fails."""
    findings = list(examine())
    give(findings, _lines(findings), as_json=as_json, output=output)
    raise typer.Exit(int(any(finding.status == "fail" for finding in findings)))


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        status = typer.style(f"{finding.status:<4}", fg=COLORS[finding.status])
        yield f"{status}  {finding.subject:<20} {finding.message}"
