"""The reference pages of docs, made from the code: commands, tables and settings.

python tools/reference.py            # writes docs/reference/{commands,tables,settings}.md
python tools/reference.py --check    # exit 1 where a page is not what it would write
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.main import get_command

from cli.app import COMMANDS, EXIT_CODES, app
from moonlake.schema.contract import Column, Table
from moonlake.schema.tables import TABLES
from moonlake.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
MADE = "Made by `python tools/reference.py` from the code."


def commands() -> str:
    """The page of commands: usage, arguments and options of each one."""
    root: Any = get_command(app)
    context = root.make_context("moonlake", ["doctor"])
    parts = ["# Commands", MADE, f"{EXIT_CODES} `moonlake --help` lists the same."]
    for name, entry in COMMANDS.items():
        command = root.get_command(context, name)
        if not getattr(command, "commands", None):
            parts += _command(f"moonlake {name}", command)
            continue
        parts += [f"## moonlake {name}", entry.line]
        for part, each in command.commands.items():
            parts += _command(f"moonlake {name} {part}", each, "###")
    parts += ["## Jobs", "`moonlake job NAME` runs one; `moonlake job NAME --help` has its options.", _jobs()]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any, level: str = "##") -> Iterator[str]:
    yield f"{level} {name}"
    yield inspect.cleandoc(command.help or "").replace("\f", "")
    words = [one for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    if words:
        rows = [f"| `{_words(one)}` | {_cell(getattr(one, 'help', '') or '')} |" for one in words]
        yield "\n".join(["| | |", "|---|---|", *rows])


def _words(parameter: Any) -> str:
    """An argument or option as it is typed."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _jobs() -> str:
    files = [path for path in sorted((ROOT / "spark_jobs").glob("*.py")) if path.name != "__init__.py"]
    lines = [(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0] for path in files]
    rows = [f"| `{path.stem}` | {_cell(line)} |" for path, line in zip(files, lines, strict=True)]
    return "\n".join(["| job | |", "|---|---|", *rows])


def tables() -> str:
    """The page of tables: the contract of each one."""
    about = "All times are UTC with microseconds. `moonlake/schema/tables.py` is where the contracts are written."
    parts = ["# Tables", MADE, about]
    for table in TABLES.values():
        parts += _table(table)
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield f"## {table.name}"
    yield _cell(table.grain)
    facts = {
        "key": ", ".join(table.key),
        "event time": table.event_time,
        "writer": table.writer,
        "writing": table.writing,
        "clustered by": ", ".join(table.cluster_by),
    }
    yield "\n".join(f"- {name}: `{value}`" for name, value in facts.items() if value)
    rows = [f"| `{one.name}` | `{one.type}` | {_bounds(one)} | {_cell(one.meaning)} |" for one in table]
    yield "\n".join(["| column | type | values | meaning |", "|---|---|---|---|", *rows])
    if table.rules:
        yield "\n".join(f"- rule `{rule.name}`: {rule.meaning}" for rule in table.rules)


def _bounds(column: Column) -> str:
    """Bounds of the column's values, in one cell."""
    said = ["may be null"] if column.nullable else []
    said += [column.unit] if column.unit else []
    said += [f"shape {column.shape}"] if column.shape else []
    if column.values:
        said.append(", ".join(column.values))
    if column.minimum is not None or column.maximum is not None:
        low, high = ("" if bound is None else f"{bound:g}" for bound in (column.minimum, column.maximum))
        said.append(f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}")
    if column.max_length is not None:
        said.append(f"length up to {column.max_length:,}")
    return _cell("; ".join(said))


def settings() -> str:
    """The page of settings: the variable of each field."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(name)} | {_cell(field.description or '')} |"
        for name, field in Settings.model_fields.items()
    ]
    about = "What varies by environment. A variable of that prefix that is not in the list is an error."
    return (
        "\n\n".join(
            ["# Settings", MADE, about, "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])]
        )
        + "\n"
    )


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    return "" if field.default_factory is not None or field.default is None else f"`{field.default}`"


def _cell(text: str) -> str:
    """The text in one line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main(argv: Sequence[str]) -> int:
    """Exit code."""
    pages = {"commands.md": commands(), "tables.md": tables(), "settings.md": settings()}
    if "--check" in argv:
        stale = [
            name for name, text in pages.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
        ]
        sys.stderr.writelines(f"docs/reference/{name} is not made of the code as it is\n" for name in stale)
        return int(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
