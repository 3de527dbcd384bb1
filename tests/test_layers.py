"""The house of the README: which room may import which, and what each one loads.

cli -> every room (imported inside each command)
dags -> (commands only)      spark_jobs -> models, sources -> moonlake      feature_repo -> moonlake
studies -> models, sources -> moonlake      serving -> models -> moonlake
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "moonlake": set[str](),
    "models": {"moonlake"},
    "sources": {"moonlake"},
    "spark_jobs": {"models", "sources", "moonlake"},
    "feature_repo": {"moonlake"},
    "studies": {"models", "sources", "moonlake"},
    "serving": {"models", "moonlake"},
    "dags": {"moonlake"},
    "cli": {"moonlake", "models", "sources", "spark_jobs", "feature_repo", "studies", "serving", "dags", "benchmarks"},
    "benchmarks": {"moonlake", "models", "sources", "spark_jobs", "serving"},
}
ROOMS = [room for room in MAY_IMPORT if (ROOT / room).is_dir()]
DAGS_MAY_IMPORT = {"moonlake.tables", "moonlake.contracts", "moonlake.settings"}
MODELS_NEVER_IMPORT = {"pyspark", "delta", "airflow", "feast"}

HEAVY = ("torch", "pyspark", "feast")
NEEDS_SPARK_OR_FEAST = ("moonlake.small_writes", "moonlake.spark", "moonlake.writes", "moonlake.feast_delta")


def files(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if ".ipynb_checkpoints" not in path.parts)


def imported(nodes: Iterator[ast.AST], package: str) -> set[str]:
    """Full names of the modules that the import statements among the nodes name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {package}: write the whole name"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {str(node.module)} | {member for member in members if is_module(member)}
    return names


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, wherever in the file."""
    return imported(ast.walk(ast.parse(path.read_text())), str(path))


def top_imports_of(path: Path) -> set[str]:
    """The modules that importing the file imports at once: what stands outside functions and TYPE_CHECKING blocks."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            yield from walk([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])

    return imported(walk(ast.parse(path.read_text()).body), str(path))


def rooms_among(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules} & set(MAY_IMPORT)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_downhill(room: str) -> None:
    uphill = {
        str(path.relative_to(ROOT)): wrong
        for path in files(room)
        if (wrong := rooms_among(imports_of(path)) - MAY_IMPORT[room] - {room})
    }
    assert not uphill


def test_dags_import_the_contracts_and_the_settings_and_nothing_else_of_moonlake() -> None:
    for path in files("dags"):
        ours = {module for module in imports_of(path) if module.split(".")[0] == "moonlake"}
        assert ours <= DAGS_MAY_IMPORT, path.name


def test_commands_import_their_rooms_inside_the_function() -> None:
    for path in files("cli"):
        assert rooms_among(top_imports_of(path)) <= {"cli", "moonlake"}, path.name


def test_models_know_neither_spark_nor_airflow_nor_feast() -> None:
    for path in files("models"):
        assert not {module.split(".")[0] for module in imports_of(path)} & MODELS_NEVER_IMPORT, path.name


def loaded_by(statements: list[str]) -> dict[str, list[str]]:
    """Statement -> the heavy packages in sys.modules after it ran, in one fresh process for all."""
    program = "\n".join(
        ["import sys", "import runpy"]
        + [
            f"{statement}\nprint({statement!r}, *[name for name in {HEAVY} if name in sys.modules], sep='|')"
            for statement in statements
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines() if line.split("|")[0] in statements]
    assert len(lines) == len(statements), done.stdout
    return {statement: heavy for statement, *heavy in lines if heavy}


def modules(room: str) -> list[str]:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files(room)]
    return [name.removesuffix(".__init__") for name in names]


def test_moonlake_alone_loads_no_torch_no_pyspark_no_feast() -> None:
    light = [name for name in modules("moonlake") if not name.startswith(NEEDS_SPARK_OR_FEAST)]
    assert "moonlake.lake" in light
    assert not loaded_by([f"import {name}" for name in light])


def test_the_command_line_loads_no_torch_no_pyspark_no_feast() -> None:
    assert not loaded_by([f"import {name}" for name in modules("cli")])


@pytest.mark.airflow
def test_dag_files_load_no_torch_no_pyspark_no_feast() -> None:
    assert not loaded_by([f"runpy.run_path({str(path)!r})" for path in files("dags")])


def test_pyproject_names_the_packages_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    # feature_repo is a folder that Feast reads, not a package.
    there = [path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.parts) for path in there)


def test_every_room_but_feature_repo_is_a_package() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "__init__.py").exists()] in ([], ["feature_repo"])
