"""The docs site builds without a warning, its reference is made of the code as it is, and it needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"'>]*")
LINKED = re.compile(r"rel=[\"']?canonical")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = run("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_the_reference_is_made_of_the_code_as_it_is() -> None:
    done = run("tools/reference.py", "--check")
    assert done.returncode == 0, f"{done.stderr}python tools/reference.py writes it anew"


def test_readme_is_the_first_page_and_its_links_lead_into_the_site(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    assert "Two commands" in first
    assert 'href="file_map.html"' in first


def test_names_of_pages_in_prose_are_links(site: Path) -> None:
    assert 'href="online_stores.html"' in (site / "point_in_time.html").read_text(encoding="utf-8")


def test_every_notebook_is_a_page(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")}
    index = (site / "tutorials" / "index.html").read_text(encoding="utf-8")
    assert len(names) == 3
    assert [
        name
        for name in names
        if f'href="{name}.html"' not in index or not (site / "tutorials" / f"{name}.html").exists()
    ] == []


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    fetched = [found for page in pages for found in FETCHED.findall(page.read_text(encoding="utf-8"))]
    assert len(pages) > 30
    assert [one for one in fetched if not LINKED.search(one)] == []
