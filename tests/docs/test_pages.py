"""Every command of README and docs is one that the command line takes as it is written."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import ClickException, MissingParameter, NoArgsIsHelpError, NoSuchOption
from typer.core import TyperGroup
from typer.main import get_command

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/results/*.md",
    "docs/decisions/*.md",
)
VALUES = {
    "T0": "2026-01-01T00:00:00Z",
    "T1": "2026-02-15T00:00:00Z",
    "T2": "2026-02-24T00:00:00Z",
    "END": "2026-03-01",
    "space": "live",
    "seed": "0",
}
PROGRAMS = ("moonlake", "python", "torchrun", "make")
INLINE = re.compile(r"`((?:moonlake|python -m|make) [^`]+)`")
OTHERS = {"build"}
"""Modules that `python -m` runs and that are not ours."""


@dataclass(frozen=True)
class Written:
    """A command as a page writes it: where, its words, and whether a block of code holds it (or a line of prose)."""

    page: str
    line: int
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def lines_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of the page's code blocks, fenced or indented; a backslash at the end joins the next one."""
    fenced, ahead, start = False, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            start = start if ahead else number
            ahead += line.strip()
            if ahead.endswith("\\"):
                ahead = ahead[:-1]
                continue
            yield start, ahead
            ahead = ""


def commands_of(page: Path) -> Iterator[Written]:
    """The commands of a page, in its order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for number, line in lines_of_code(text):
        if line.split(" ")[0] in PROGRAMS:
            for variable, value in VALUES.items():
                line = line.replace(f"${variable}", value)
            yield Written(name, number, tuple(shlex.split(line, comments=True)), True)
    for number, line in enumerate(text.splitlines(), 1):
        for found in INLINE.findall(line):
            yield Written(name, number, tuple(word.split("|")[0] for word in shlex.split(found)), False)


def every_command() -> list[Written]:
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    return [one for page in pages for one in commands_of(page)]


def parse(words: tuple[str, ...], *, whole: bool) -> None:
    """Raise unless `moonlake` takes the words. Prose may leave arguments out, but not name other options."""
    from cli.app import app

    command: Any = get_command(app)
    context = command.make_context("moonlake", list(words), resilient_parsing=False)
    while isinstance(command, TyperGroup):
        left = [*context._protected_args, *context.args]
        if not left and not whole:
            return
        name, command, left = command.resolve_command(context, left)
        if name == "job" and left and left[0] not in ("list", "NAME"):
            require_options(ROOT / "spark_jobs" / f"{left[0]}.py", left[1:])
        try:
            context = command.make_context(name, left, parent=context, resilient_parsing=False)
        except typer.Exit:  # --help
            return
        except (MissingParameter, NoArgsIsHelpError):
            if whole:
                raise
            return


def require_options(module: Path, words: list[str]) -> None:
    """Raise unless the module's parser, as its source writes it, has every option of the words."""
    strings = {node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)}
    for word in words:
        if word.startswith("--") and word != "--help" and word.partition("=")[0] not in strings:
            raise NoSuchOption(word)


def require_module(words: list[str]) -> None:
    """Raise unless `python -m` finds the module, and it has the options."""
    module, *options = words
    if module in OTHERS:
        return
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__main__.py"
    if module == "cli.app":
        parse(tuple(options), whole=True)
    else:
        require_options(path, options)


def check(written: Written) -> None:
    """Raise unless the command is one that its program takes."""
    program, *rest = written.words
    match program:
        case "moonlake":
            parse(tuple(rest), whole=written.whole and "..." not in rest)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets)
        case "torchrun":
            require_module(rest[rest.index("-m") + 1 :])
        case _ if "-m" in rest:
            require_module(rest[rest.index("-m") + 1 :])
        case _:
            assert (ROOT / rest[0]).exists(), rest[0]


def test_pages_hold_commands() -> None:
    found = every_command()
    assert len({one.page for one in found}) > 10
    assert sum(one.whole for one in found) > 80


def test_every_command_of_the_pages_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for one in every_command():
        try:
            check(one)
        except (ClickException, AssertionError, OSError, ValueError) as error:
            wrong.append(f"{one}: {error.format_message() if isinstance(error, ClickException) else error}")
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    ["spaces list --colour", "release promote", "job compute_stats --sideways", "train encoder", "no-such-command"],
)
def test_a_command_that_is_not_taken_is_found(words: str) -> None:
    with pytest.raises(ClickException):
        parse(tuple(words.split()), whole=True)
