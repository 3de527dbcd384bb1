"""The rewrite of code and texts that were written for moonlake 0.1."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from renames import MODULES, NAMES, files_below, main, new_name, rewritten, table

ROOT = Path(__file__).parents[2]

OLD = '''"""Trains with spark_jobs/pairs/funnel.py and "cli.lake:stage"."""

import moonlake.contracts
import moonlake.tables as known_tables
from moonlake import spaces, training_sets
from moonlake.lake import Lake, arrow_schema
from moonlake.training_sets import Declaration, TrainingSet as Opened
from moonlake.feast_delta.sources import DeltaSource

WRITER = "moonlake.spaces.release"  # see moonlake.publishing


def january(lake: Lake) -> Declaration:
    """A declaration; the word itself stays."""
    from models.encoder import Encoder, load_encoder

    space = spaces.find(lake, "live")
    print(spaces.register, f"{moonlake.contracts.Table} of models.slopes", arrow_schema, known_tables, DeltaSource)
    return Declaration("größer", Opened, Encoder, load_encoder, training_sets.Manifest, space)
'''

NEW = '''"""Trains with spark_jobs/pairs/row_counts.py and "sources.registry:stage"."""

import moonlake.schema.contract
import moonlake.schema.tables as known_tables
from moonlake.embeddings import spaces, releases
from moonlake.training_sets import manifest
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet as Opened
from moonlake.feast_delta.sources import DeltaSource

WRITER = "moonlake.embeddings.releases.release"  # see moonlake.files


def january(lake: Lake) -> TrainingSetSpec:
    """A declaration; the word itself stays."""
    from models.encoder.encoder import Encoder
    from models.encoder.factory import load_encoder

    space = releases.find(lake, "live")
    print(spaces.register, f"{moonlake.schema.contract.Table} of models.evaluation.association", arrow_schema, known_tables, DeltaSource)
    return TrainingSetSpec("größer", Opened, Encoder, load_encoder, manifest.Manifest, space)
'''  # noqa: E501


def test_imports_uses_strings_and_paths_are_rewritten() -> None:
    assert rewritten(OLD, python=True) == NEW


def test_a_second_rewrite_changes_nothing() -> None:
    assert rewritten(NEW, python=True) == NEW


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "Run `python -m cli.jobs`, see models/slopes.py.",
            "Run `python -m cli.job`, see models/evaluation/association.py.",
        ),
        (
            "    from moonlake.lake import Lake, contract\n",
            "    from moonlake.lake.lake import Lake\n    from moonlake.schema.arrow import contract\n",
        ),
        ("`moonlake.training_sets.Declaration`", "`moonlake.training_sets.spec.TrainingSetSpec`"),
        ("my_models/slopes.py and moonlake.lakes", "my_models/slopes.py and moonlake.lakes"),
        ("type: moonlake.feast_delta.offline_store.DeltaOfflineStore",) * 2,
    ],
)
def test_markdown_and_yaml_are_rewritten_where_they_name_modules(old: str, new: str) -> None:
    assert rewritten(old, python=False) == new


def test_every_new_name_exists() -> None:
    modules = {*MODULES.values(), *(name.rpartition(".")[0] for name in NAMES.values())}
    missing = [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()]
    for name in NAMES.values():
        module, _, member = name.rpartition(".")
        file = ROOT / f"{module.replace('.', '/')}.py"
        if not member.startswith("_") and file.is_file() and member not in _defined(file):
            missing.append(name)
    assert missing == []


def _defined(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_a_folder_is_rewritten_in_place_and_check_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, notes, other = tmp_path / "job.py", tmp_path / "notes.md", tmp_path / "image.png"
    code.write_text(OLD, encoding="utf-8")
    notes.write_text("moonlake.publishing\n")
    other.write_bytes(b"moonlake.publishing")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("moonlake.publishing")
    assert list(files_below([tmp_path])) == [code, notes]
    assert main(["--check", str(tmp_path)]) == 1
    assert code.read_text(encoding="utf-8") == OLD
    assert main([str(tmp_path)]) == 0
    assert (code.read_text(encoding="utf-8"), notes.read_text()) == (NEW, "moonlake.files\n")
    assert main(["--check", str(tmp_path)]) == 0
    code.write_text("def broken(:\n")
    assert main([str(tmp_path)]) == 1
    assert f"error: {code}: " in capsys.readouterr().err


def test_the_table_names_public_members_and_modules() -> None:
    rows = table().splitlines()
    assert "| `moonlake.moments` | `moonlake.timestamps` |" in rows
    assert not [row for row in rows if "._" in row]
    assert new_name("moonlake.errors.InputError") is None


def test_attributes_are_renamed_where_their_module_is_imported_and_never_where_they_are_called() -> None:
    old = (
        "from models.metrics import paired_bootstrap\n"
        "found = paired_bootstrap(a, b)\n"
        "print(found.difference, {1}.difference({2}), keep(difference=3))\n"
    )
    new = (
        "from models.evaluation.click_metrics import paired_bootstrap\n"
        "found = paired_bootstrap(a, b)\n"
        "print(found.value, {1}.difference({2}), keep(value=3))\n"
    )
    assert rewritten(old, python=True) == new
    assert rewritten(new, python=True) == new
    elsewhere = "print(found.difference, found.arrivals)\n"
    assert rewritten(elsewhere, python=True) == elsewhere
