"""The notebooks of docs/tutorials run on a tiny home, import what users have already, and hold no outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import moonlake
from moonlake.settings import Settings

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NOTEBOOKS = ["catalogue_owner", "ctr_modeller", "data_engineer"]
MAY_IMPORT = {"moonlake", "numpy", "polars"}


def cells(name: str, kind: str) -> list[str]:
    """The sources of the notebook's cells of one kind."""
    document = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == kind]


def run(source: str, names: dict[str, Any], where: str) -> None:
    """Run a cell as a notebook does, with the text of its last expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    shown = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
    if shown is not None:
        tree.body.pop()
    exec(compile(tree, where, "exec"), names)
    if shown is not None:
        repr(eval(compile(shown, where, "eval"), names))


def test_these_are_the_notebooks() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_what_users_have_and_holds_no_outputs(name: str) -> None:
    document = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert document["nbformat"] == 4
    for cell in document["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    imported = set()
    for node in ast.walk(ast.parse("\n".join(cells(name, "code")))):
        assert not isinstance(node, ast.ImportFrom), "import moonlake, and name what is used"
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert imported <= MAY_IMPORT
    assert cells(name, "markdown")[0].startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_on_a_tiny_home(
    name: str, home_of_0_1_0: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(home_of_0_1_0.home))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, source in enumerate(cells(name, "code")):
        run(source, names, f"{name}, cell {number}")
    assert isinstance(names["home"], moonlake.Home)
