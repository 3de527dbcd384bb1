"""The package: dependencies are what the code imports, extras bring what they name, the command finds its rooms."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import moonlake
from moonlake.errors import MissingDependency
from moonlake.extras import EXTRAS, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = (
    "cli",
    "dags",
    "feature_repo",
    "models",
    "moonlake",
    "serving",
    "sources",
    "spark_jobs",
    "studies",
    "workflows",
)
FOR_DEVELOPERS = ("benchmarks", "tests", "tools")
EXTRAS_OF_DEVELOPERS = ("dev", "docs")

COMES_ALONG = {"google": "protobuf, with Feast", "py4j": "with pyspark", "pydantic": "with pydantic-settings"}
"""Imported, and brought by another package that cannot do without."""

PEERS = {"fuxictr", "model_zoo"}
"""What a benchmark compares with, in an environment that it makes."""

NEVER_IMPORTED = {
    "apache-airflow": "its code is that of apache-airflow-core, which it pins",
    "apache-airflow-providers-standard": "its operators lie in airflow's own namespace",
    "ibis-framework": "Feast's DuckDB store, which benchmarks measure against",
    "mkdocs-material": "a plug-in that mkdocs.yml names",
    "mkdocstrings": "a plug-in that mkdocs.yml names",
    "mkdocstrings-python": "a plug-in that mkdocs.yml names",
    "mypy": "a program",
    "pandas-stubs": "types",
    "ruff": "a program",
    "types-pyyaml": "types",
}


def requirements(extra: str | None = None) -> set[str]:
    """Names of the packages that pyproject.toml asks for, without an extra or by one."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@cache
def imports(*folders: str) -> frozenset[str]:
    """The packages of others that the Python files below the folders import."""
    ours = {path.stem for path in (ROOT / "feature_repo").glob("*.py")} | {path.name for path in ROOT.iterdir()}

    def names() -> Iterator[str]:
        for folder in folders:
            for path in (ROOT / folder).rglob("*.py"):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Import):
                        yield from (alias.name for alias in node.names)
                    elif isinstance(node, ast.ImportFrom):
                        yield str(node.module)

    return frozenset(
        {"tensorboard" if name == "torch.utils.tensorboard" else name.partition(".")[0] for name in names()}
        - ours
        - sys.stdlib_module_names
    )


BROUGHT_BY = cache(packages_distributions)


def bringing(package: str) -> frozenset[str]:
    """The distributions that bring a package of that name."""
    return frozenset(map(canonicalize_name, BROUGHT_BY().get(package, [])))


def test_all_that_is_imported_is_asked_for() -> None:
    without_developers = set[str]().union(*(requirements(extra) for extra in EXTRAS), requirements())
    missing_ones = {name for name in imports(*ROOMS) if not bringing(name) & without_developers} - COMES_ALONG.keys()
    assert not missing_ones
    asked_for = without_developers | set[str]().union(*map(requirements, EXTRAS_OF_DEVELOPERS))
    for_developers = imports(*ROOMS, *FOR_DEVELOPERS) - COMES_ALONG.keys() - PEERS
    own = {"shop_features", "look_at_dags", "renames"}  # programs beside those that import them
    assert not {name for name in for_developers - own if not bringing(name) & asked_for}


def test_nothing_is_asked_for_that_is_not_imported() -> None:
    every = imports(*ROOMS, *FOR_DEVELOPERS)
    imported = set[str]().union(*(bringing(name) for name in every))
    asked_for = set[str]().union(*(requirements(extra) for extra in PROJECT["optional-dependencies"]), requirements())
    assert asked_for - imported - {"moonlake"} <= NEVER_IMPORTED.keys()


def test_an_extra_brings_what_the_message_says_it_does() -> None:
    assert {*EXTRAS, *EXTRAS_OF_DEVELOPERS, "all"} == PROJECT["optional-dependencies"].keys()
    for extra, packages in EXTRAS.items():
        for package in packages:
            assert bringing(package) & requirements(extra), (extra, package)
    known = {package for packages in EXTRAS.values() for package in packages}
    beyond = {name for name in imports(*ROOMS) if not bringing(name) & requirements()} - COMES_ALONG.keys()
    assert beyond <= known | {"tensorboard"}


def test_a_package_that_no_extra_brings_is_an_error_as_before() -> None:
    assert str(missing(ModuleNotFoundError(name="polars.selectors"))) == (
        "polars is not installed: pip install 'moonlake[polars]'"
    )
    with pytest.raises(ModuleNotFoundError):
        missing(ModuleNotFoundError("No module named 'colour'", name="colour"))


def command(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A `moonlake` command in a process of its own, with that folder for its checkout."""
    environment = {**os.environ, "MOONLAKE_CHECKOUT": str(checkout), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "moonlake", *words],
        env=environment,
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_without_a_checkout_says_so_in_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: the moonlake command runs from a checkout of moonlake, and {tmp_path} is none: "
        "set MOONLAKE_CHECKOUT to one"
    )


def test_the_command_runs_from_the_checkout_that_the_settings_name(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cli", tmp_path / "cli")
    (tmp_path / "cli" / "doctor.py").write_text("def doctor() -> None:\n    print('from', __file__)\n")
    done = command(tmp_path, "doctor")
    assert (done.returncode, done.stdout) == (0, f"from {tmp_path}/cli/doctor.py\n"), done.stderr


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert moonlake.__version__ == "0.2.0"
    assert f"## {moonlake.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_archive_for_a_cluster_is_all_that_jobs_import(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "tools" / "archive.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    archive = Path(done.stdout.strip())
    assert archive == tmp_path / f"moonlake-{moonlake.__version__}.zip"
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert all(file.compress_size < file.file_size for file in opened.infolist() if file.file_size > 1000)
    assert names == sorted(names)
    assert {name.partition("/")[0] for name in names} == {
        "cli", "models", "moonlake", "serving", "sources", "spark_jobs", "workflows",
    }  # fmt: skip
    statements = [
        f"import sys; sys.path.insert(0, {str(archive)!r})",
        "import moonlake.settings, models.artifacts, sources.registry, spark_jobs.intake.records",
        "print(models.artifacts.__file__, spark_jobs.intake.records.__file__, moonlake.settings.__file__, sep='\\n')",
    ]
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(statements)], cwd="/", capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(found) == 3
    assert all(path.startswith(f"{archive}/") for path in found)


def test_what_a_missing_package_raises_is_one_of_our_errors() -> None:
    assert isinstance(missing(ModuleNotFoundError(name="feast")), MissingDependency)
