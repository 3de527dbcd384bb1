"""docs/feast_plugin.md shows the example as it is, and the example does what the page says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLE = DOCS / "examples" / "feast_plugin"
PRINTED = """\
As of the label rows, in their order:
  900 ['cup'] ['click']
  900 ['cup', 'pot'] ['click', 'click']
  1100 ['pot', 'cup', 'cup'] ['click', 'cart', 'click']
  None [] []
  None [] []
Online:
  1100 ['pot', 'cup', 'cup'] ['click', 'cart', 'click']
Online, after a price that arrived late:
  1200 ['pot', 'cup', 'cup'] ['click', 'cart', 'click']
"""


def test_the_page_shows_the_files_of_the_example_and_what_it_prints() -> None:
    page = (DOCS / "feast_plugin.md").read_text()
    for name in ("feature_store.yaml", "shop_features.py"):
        assert f"\n{(EXAMPLE / name).read_text()}```\n" in page, name
    assert PRINTED in page


@pytest.mark.slow
def test_the_example_prints_what_the_page_says(tmp_path: Path) -> None:
    repository = shutil.copytree(EXAMPLE, tmp_path / "repository")
    ran = subprocess.run([sys.executable, "example.py"], cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    ours = [line for line in ran.stdout.splitlines(keepends=True) if line in PRINTED.splitlines(keepends=True)]
    assert "".join(ours) == PRINTED
