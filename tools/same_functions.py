"""A comparison of every function of two commits: equal but for the names of modules, or listed.

    python tools/same_functions.py BEFORE AFTER      # two commits; exit 1 where a function differs

The renames of the second commit's tools/renames.py (of this one, if it has none) are applied to the first. Then each
function must be in the second one with the same name inside its class and an equal syntax tree, in whatever file;
imports inside a function are compared as a set.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import renames

Function = tuple[str, str]
"""Name with its classes, and its syntax tree in words."""


def rewrite_of(commit: str) -> Callable[[str], str]:
    """The rewrite of old names as it was at a commit."""
    module: ModuleType = renames
    if _git("ls-tree", "--name-only", commit, "tools/renames.py"):
        module = ModuleType("renames_of_the_commit")
        sys.modules[module.__name__] = module  # where its dataclasses look for their names
        exec(_git("show", f"{commit}:tools/renames.py"), module.__dict__)
    return lambda source: str(module.rewritten(source, python=True))


def functions_of(commit: str, rewrite: Callable[[str], str] = str) -> Counter[Function]:
    """Every function of the Python files of a commit, once their source is rewritten."""
    names = _git("ls-tree", "-r", "--name-only", commit).splitlines()
    found: Counter[Function] = Counter()
    for name in names:
        if name.endswith(".py") and not name.startswith("tools/"):
            source = _git("show", f"{commit}:{name}")
            found.update(_functions(ast.parse(rewrite(source))))
    return found


def _functions(node: ast.AST, prefix: str = "") -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", _in_words(child)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from _functions(child, prefix)


def _in_words(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    imported: list[str] = []

    class WithoutImports(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.Pass:
            imported.extend(f"{node.module}.{alias.name} as {alias.asname}" for alias in node.names)
            return ast.Pass()

        def visit_Expr(self, node: ast.Expr) -> ast.AST:
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                node.value.value = " ".join(node.value.value.split())  # lines of a docstring may be broken elsewhere
            return self.generic_visit(node)

    bare = WithoutImports().visit(function)
    for node in ast.walk(bare):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not isinstance(one, ast.Pass)]  # type: ignore[attr-defined]
    return f"{ast.dump(bare)} {sorted(set(imported))}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def main(argv: Sequence[str]) -> int:
    """Exit code: 1 where a function of the first commit is not in the second, or the other way round."""
    before, after = functions_of(argv[0], rewrite_of(argv[1])), functions_of(argv[1])
    gone, new = before - after, after - before
    print(f"{sum((before & after).values())} functions are equal, {sum(gone.values())} are gone or changed, "
          f"{sum(new.values())} are new or changed")  # fmt: skip
    for sign, functions in (("-", gone), ("+", new)):
        for name, _ in sorted(functions.elements()):
            print(f"{sign} {name}")
    return int(bool(gone or new))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
