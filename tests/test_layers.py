"""The laws of the house: which room and which folder may import which, no circle anywhere, and what each one loads.

moonlake < models, sources < spark_jobs, serving < workflows < cli, studies; dags run commands only.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "moonlake": set[str](),
    "models": {"moonlake"},
    "sources": {"moonlake"},
    "spark_jobs": {"models", "sources", "moonlake"},
    "feature_repo": {"moonlake"},
    "serving": {"models", "moonlake"},
    "workflows": {"moonlake", "models", "sources", "spark_jobs", "serving"},
    "studies": {"workflows", "models", "sources", "moonlake"},
    "dags": {"moonlake"},
    "cli": {"workflows", "moonlake", "models", "sources", "spark_jobs", "feature_repo", "serving", "dags"},
    "benchmarks": {"moonlake", "models", "sources", "spark_jobs", "serving", "workflows"},
}
ROOMS = list(MAY_IMPORT)

FLOORS: Mapping[str, Sequence[Sequence[str]]] = {
    "moonlake": (
        ("",),
        ("schema",),
        ("lake",),
        ("spark", "embeddings"),
        ("feast_delta",),
        ("training_sets",),
        ("maintenance",),
    ),
    "models": (("artifacts",), ("encoder",), ("inference",), ("training",), ("evaluation",), ("ctr",)),
    "sources": (("own_files",), ("simulator",), ("datasets",), ("registry",)),
}
"""The folders of a room (and its single files that have a place of their own), the lowest first. A file imports
from its own floor and from those below. "" are the files of the room itself."""

FACE = {"moonlake", "moonlake.__main__", "moonlake.application", "moonlake.home"}
"""The public face of the library stands above all of its folders."""

DAGS_MAY_IMPORT = {"moonlake.schema.tables", "moonlake.schema.contract", "moonlake.settings", "moonlake.names"}
MODELS_NEVER_IMPORT = {"pyspark", "delta", "airflow", "feast"}

HEAVY = ("torch", "pyspark", "feast")
NEEDS_SPARK_OR_FEAST = (
    "moonlake.spark.lake",
    "moonlake.spark.small_writes",
    "moonlake.spark.session",
    "moonlake.spark.writes",
    "moonlake.feast_delta",
    "moonlake.training_sets.build",
    "moonlake.maintenance.feature_store",
)


def files(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if ".ipynb_checkpoints" not in path.parts)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(room: str) -> list[str]:
    return [module_of(path) for path in files(room)]


def imported(nodes: Iterator[ast.AST], package: str) -> set[str]:
    """Full names of the modules that the import statements among the nodes name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {package}: write the whole name"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {member for member in members if is_module(member)}
            names |= found
            if found != members:
                names.add(str(node.module))
    return names


@cache
def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that the file imports, wherever in the file."""
    return frozenset(imported(ast.walk(ast.parse(path.read_text())), str(path)))


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


def rooms_among(names: set[str] | frozenset[str]) -> set[str]:
    return {name.split(".")[0] for name in names} & set(MAY_IMPORT)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_downhill(room: str) -> None:
    uphill = {
        str(path.relative_to(ROOT)): wrong
        for path in files(room)
        if (wrong := rooms_among(imports_of(path)) - MAY_IMPORT[room] - {room})
    }
    assert not uphill


def floor_of(module: str) -> int:
    room, *rest = module.split(".")
    place = rest[0] if rest else ""
    floors = FLOORS[room]
    named = {name: number for number, names in enumerate(floors) for name in names}
    return named.get(place, named.get("", -1))


@pytest.mark.parametrize("room", FLOORS)
def test_a_folder_imports_only_its_own_floor_and_those_below(room: str) -> None:
    known = {name for names in FLOORS[room] for name in names}
    folders = {path.name for path in (ROOT / room).iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders <= known, "every folder has a floor"
    upward = [
        f"{module} -> {other}"
        for path in files(room)
        if (module := module_of(path)) not in FACE
        for other in sorted(imports_of(path))
        if other.split(".")[0] == room and (other in FACE - {room} or floor_of(other) > floor_of(module))
    ]
    assert not upward


def test_no_file_imports_itself_by_way_of_others() -> None:
    imports = {module_of(path): imports_of(path) for room in ROOMS for path in files(room)}
    graph = {module: {other for other in names if other in imports} for module, names in imports.items()}
    assert not list(circles(graph))


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """The strongly connected parts of more than one module, or of one that imports itself."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                yield from visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            part = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(part) > 1 or module in graph[module]:
                yield part

    for module in graph:
        if module not in order:
            yield from visit(module)


def test_a_circle_is_found() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == [["b", "c"]]
    assert list(circles({"a": {"a"}, "b": set()})) == [["a"]]


def test_dags_import_contracts_settings_and_names_and_nothing_else_of_moonlake() -> None:
    for path in files("dags"):
        ours = {module for module in imports_of(path) if module.split(".")[0] == "moonlake"}
        assert ours <= DAGS_MAY_IMPORT, path.name


def test_commands_import_their_rooms_inside_the_function() -> None:
    for path in files("cli"):
        assert rooms_among(top_imports_of(path)) <= {"cli", "workflows", "sources", "moonlake"}, path.name


def test_models_know_neither_spark_nor_airflow_nor_feast() -> None:
    for path in files("models"):
        assert not {module.split(".")[0] for module in imports_of(path)} & MODELS_NEVER_IMPORT, path.name


def test_only_the_folder_for_it_and_the_spark_engine_of_joins_need_a_jvm() -> None:
    for path in files("moonlake"):
        if {module.split(".")[0] for module in imports_of(path)} & {"pyspark", "delta", "py4j"}:
            place = path.relative_to(ROOT).as_posix()
            assert place.startswith(("moonlake/spark/", "moonlake/feast_delta/", "moonlake/maintenance/")), place


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


def test_moonlake_alone_loads_no_torch_no_pyspark_no_feast() -> None:
    light = [name for name in modules("moonlake") if not name.startswith(NEEDS_SPARK_OR_FEAST)]
    assert "moonlake.lake.lake" in light
    assert not loaded_by([f"import {name}" for name in light])


def test_the_command_line_loads_no_torch_no_pyspark_no_feast() -> None:
    assert not loaded_by([f"import {name}" for name in modules("cli")])


@pytest.mark.airflow
def test_dag_files_load_no_torch_no_pyspark_no_feast() -> None:
    assert not loaded_by([f"runpy.run_path({str(path)!r})" for path in files("dags")])


def test_one_file_of_the_library_reaches_the_application_by_name() -> None:
    by_name = {module_of(path) for path in files("moonlake") if {"import_module", "__import__"} & {*names_in(path)}}
    assert by_name == {"moonlake", "moonlake.application"}
    import moonlake

    assert rooms_among({*moonlake._FOUND_IN}) == {"moonlake"}  # the names of the package, loaded when asked for


def names_in(path: Path) -> Iterator[str]:
    """Every name that the code of a file speaks of."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name


def test_every_room_but_feature_repo_is_a_package() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "__init__.py").exists()] in ([], ["feature_repo"])
