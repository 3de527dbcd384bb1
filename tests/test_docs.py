"""The pages of docs agree with the tree, every module and file that is named exists, and docstrings keep one style."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "moonlake", "models", "sources", "spark_jobs", "workflows", "cli", "serving", "dags", "feature_repo", "studies",
    "benchmarks", "tools",
)  # fmt: skip

MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})(?:\.(?!(?:py|md)\b)[A-Za-z_]\w+)+(?![\w/])")
FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)}|docs|tests)/[\w./-]*\.(?:py|md|sh|yaml|sql|ipynb|toml)\b")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".cfg", ".ipynb", ""}
OTHER_NAMES = {
    "tools/renames.py",
    "tests/tools/test_renames.py",
    "tests/tools/test_same_functions.py",
    "CHANGELOG.md",
    "requirements.lock",
    "tests/feast_universal/run.py",
    "tests/test_docs.py",
}
"""Files that name modules of 0.1 or of somebody else."""
NO_MODULES = {"moonlake.erased"}
"""A property of Delta tables."""
UNLIKE = re.compile(r"^(What|How|Those|Nothing, if)\b")


def texts() -> dict[str, str]:
    """The text files that git keeps, by path, but for fixtures and results."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / line for line in listed.splitlines() if line not in OTHER_NAMES and "fixtures/" not in line]
    kept = (path for path in paths if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size < 1 << 20)
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in kept}


def said(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text; of Python its comments and strings only, since mypy checks what is code."""
    if not name.endswith(".py"):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from enumerate(token.string.splitlines(), token.start[0])


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a module or package has: what it binds, and the modules of its folder."""
    own = path if path.suffix else path / "__init__.py"
    found = set[str]()
    for node in ast.walk(ast.parse(own.read_text(encoding="utf-8"))) if own.exists() else ():
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Constant(value=str(name)) if own.name == "__init__.py":  # names that are loaded when asked for
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.split(".")[0])
    return frozenset(found)


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that a module binds; what follows such a name is not looked at."""
    path = ROOT
    for part in dotted.split("."):
        if (path / part).is_dir():
            path = path / part
        elif (path / f"{part}.py").is_file():
            path = path / f"{part}.py"
        else:
            return part in names_in(path) or (part.startswith("__") and path != ROOT)
    return True


def test_the_file_map_is_made_of_the_files_as_they_are() -> None:
    done = subprocess.run([sys.executable, "tools/file_map.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "python tools/file_map.py writes docs/file_map.md anew"


@pytest.mark.parametrize(
    ("dotted", "there"),
    [
        ("moonlake.schema.tables", True),
        ("moonlake.errors.InputError", True),
        ("moonlake.lake.lake.Lake.read", True),
        ("moonlake.tables", False),
        ("models.trials", False),
        ("moonlake.errors.NoSuchError", False),
    ],
)
def test_a_dotted_name_is_looked_up_in_the_tree(dotted: str, there: bool) -> None:
    assert exists(dotted) is there


def test_every_module_and_file_that_is_named_exists() -> None:
    missing = []
    for name, text in texts().items():
        for number, line in said(name, text):
            named = [found for found in MODULE.findall(line) if found not in NO_MODULES]
            missing += [f"{name}:{number}: {found}" for found in named if not exists(found)]
            missing += [f"{name}:{number}: {found}" for found in FILE.findall(line) if not (ROOT / found).exists()]
    assert missing == []


def test_docstrings_begin_with_a_noun_or_with_what_a_check_raises() -> None:
    unlike = []
    for path in sorted(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").split("\n")[0]
                if UNLIKE.match(first):
                    unlike.append(f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {first}")
    assert unlike == []


def test_the_changelog_has_the_table_of_names_that_the_rewrite_follows() -> None:
    table = subprocess.run([sys.executable, "tools/renames.py", "--table"], cwd=ROOT, capture_output=True, text=True)
    assert table.stdout.strip() in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
