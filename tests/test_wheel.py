"""The wheel as strangers get it: what is in it, and what it does in an empty environment, away from the checkout.

Packages come from the registry, or from uv's cache of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import moonlake
from tests.test_feast_plugin_example import PRINTED

ROOT = Path(__file__).parents[1]
NAME = f"moonlake-{moonlake.__version__}"
TWINE = "twine==6.2.0"
UNREACHABLE = ("error sending request", "dns error", "Connection refused", "Could not connect", "timed out")

pytestmark = pytest.mark.slow

CONSUMER = """\
import moonlake

home: moonlake.Home = moonlake.open("/tmp/nowhere")
found = home.vectors(products=["p"]).values.mean(axis=0)
ids: list[str] = [hit.product_id for hit in home.nearest(text="oak chair", k=3)]
rows: int = home.table("products")  # type: ignore[assignment]  # an ignore without need is an error
"""


def uv(*words: str | Path, cwd: Path | None = None) -> str:
    """The output of a uv command. Skip the test where the registry is out of reach, fail it for any other error."""
    environment = dict(os.environ)
    if mirror := environment.get("UV_DEFAULT_INDEX") or environment.get("PIP_INDEX_URL"):
        environment["UV_DEFAULT_INDEX"] = mirror  # what pip was told holds for uv too
    command = [sys.executable, "-m", "uv", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"the registry of Python packages cannot be reached, and uv has not cached what {words[0]} needs")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and source distribution, built from a copy of the checkout."""
    checkout = tmp_path_factory.mktemp("source") / "checkout"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "fixtures", "results")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    built = checkout.with_name("dist")
    uv("build", "--quiet", "--python", sys.executable, "--out-dir", built, checkout)
    return built


class Installed:
    """The wheel in an environment of its own, used from a folder that is no checkout."""

    def __init__(self, folder: Path, dist: Path, extra: str = "") -> None:
        self.programs = folder / "bin"
        uv("venv", "--quiet", "--python", sys.executable, folder)
        wheel = f"{dist}/{NAME}-py3-none-any.whl{extra}"
        lock = str(ROOT / "requirements.lock")
        uv("pip", "install", "--quiet", "--python", self.programs / "python", wheel, "--constraint", lock)

    def run(self, program: str, *words: str, cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
        """A program of the environment, which knows nothing of ours."""
        ours = ("PYTHON", "MOONLAKE_", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        command = [str(self.programs / program), *words]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def alone(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without extras."""
    return Installed(tmp_path_factory.mktemp("alone") / "env", dist)


@pytest.fixture(scope="module")
def with_feast(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with the extra `feast`."""
    return Installed(tmp_path_factory.mktemp("feast") / "env", dist, "[feast]")


def files_of_the_library() -> Iterator[str]:
    """Every file of the library, by its path in the checkout."""
    for path in (ROOT / "moonlake").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_the_library_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names - about == set(files_of_the_library())
    assert "moonlake/py.typed" in names
    assert f"{NAME}.dist-info/licenses/LICENSE" in about


def test_the_source_distribution_holds_what_the_wheel_is_built_of(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    stated = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    assert names - made == set(files_of_the_library()) | stated


def test_the_registry_would_take_both(dist: Path) -> None:
    said = uv("tool", "run", "--quiet", "--from", TWINE, "twine", "check", "--strict", *sorted(dist.glob("moonlake-*")))
    assert said.count("PASSED") == 2, said


def test_the_command_says_in_one_line_what_is_missing(alone: Installed) -> None:
    for program, words in (("moonlake", ["--help"]), ("python", ["-m", "moonlake"])):
        done = alone.run(program, *words)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: the moonlake command runs from a checkout of moonlake, and ")
        assert line.endswith(" is none: set MOONLAKE_CHECKOUT to one")


def test_a_checkout_without_the_extra_is_one_line_that_names_the_extra(alone: Installed, tmp_path: Path) -> None:
    program = f"import os; os.environ['MOONLAKE_CHECKOUT'] = {str(ROOT)!r}; from moonlake.__main__ import main; main()"
    done = alone.run("python", "-c", program)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: typer is not installed: pip install 'moonlake[cli]'\n"


def test_the_library_alone_has_no_models_and_says_what_each_part_needs(alone: Installed, tmp_path: Path) -> None:
    assert "No module named 'models'" in alone.run("python", "-c", "import models").stderr
    program = f"""
import moonlake
home = moonlake.open({str(tmp_path / "home")!r})
sent = home.submit({{"product_id": "p", "title": "Lamp"}})
table = home.table("product_events")
print(len(table), table.to_arrow(["product_id"]).to_pylist(), home.outcome(sent))
for ask in (
    table.to_pandas,
    table.to_polars,
    lambda: home.build_training_set("a", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
    lambda: home.nearest(text="lamp"),
    lambda: home.score("u", ["p"]),
):
    try:
        ask()
    except moonlake.MissingDependency as error:
        print(error)
"""
    done = alone.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "1 [{'product_id': 'p'}] None",
        "pandas is not installed: pip install 'moonlake[pandas]'",
        "polars is not installed: pip install 'moonlake[polars]'",
        "feast is not installed: pip install 'moonlake[feast]'",
    ]
    assert [
        line.startswith("a search or a click probability runs from a checkout of moonlake") for line in lines[4:]
    ] == [
        True,
        True,
    ]


def test_the_example_of_the_plug_in_runs(with_feast: Installed, tmp_path: Path) -> None:
    example = tmp_path / "example"
    left_out = shutil.ignore_patterns("data", "*.db", "__pycache__")
    shutil.copytree(ROOT / "docs" / "examples" / "feast_plugin", example, ignore=left_out)
    done = with_feast.run("python", "example.py", cwd=example)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line in PRINTED.splitlines()]
    assert printed == PRINTED.splitlines()


def test_an_editable_install_makes_every_room_importable(dist: Path, tmp_path: Path) -> None:
    checkout, python = dist.with_name("checkout"), str(tmp_path / "env" / "bin" / "python")
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    uv("pip", "install", "--quiet", "--no-deps", "--editable", checkout, "--python", python)
    rooms = "benchmarks, cli, dags, models, moonlake, serving, sources, spark_jobs, studies, workflows"
    program = f"import {rooms}; print(cli.__file__, moonlake.__file__)"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", program]
    done = subprocess.run(command, cwd="/", env=clean, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"{checkout}/cli/__init__.py", f"{checkout}/moonlake/__init__.py"], done.stderr


def test_the_library_is_typed_for_those_who_use_it(alone: Installed, tmp_path: Path) -> None:
    (tmp_path / "consumer.py").write_text(CONSUMER)
    found = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(alone.programs / "python"),
        "consumer.py",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(found, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout
