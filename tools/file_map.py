"""docs/file_map.md made anew from the first lines of the modules' docstrings.

python tools/file_map.py            # writes the page
python tools/file_map.py --check    # exit 1 where the page is not what it would write
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "file_map.md"
ROOMS = (
    "moonlake", "models", "sources", "spark_jobs", "workflows", "cli", "serving", "dags", "feature_repo", "studies",
    "benchmarks", "tools",
)  # fmt: skip


def page() -> str:
    """The page: a table of files for each folder of code."""
    parts = ["# File map", "Made by `python tools/file_map.py` from the first line of each file."]
    for room in ROOMS:
        folders = sorted({path.parent for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts})
        for folder in folders:
            files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
            if files:
                rows = [f"| `{path.name}` | {_first_line(path)} |" for path in files]
                about = _first_line(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
                heading = f"## {folder.relative_to(ROOT).as_posix()}/"
                parts.append(
                    "\n".join([heading, "", *([about, ""] if about else []), "| file | content |", "|---|---|", *rows])
                )
    return "\n\n".join(parts) + "\n"


def _first_line(path: Path) -> str:
    """The first paragraph of a module's docstring, as one line of a Markdown table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def main(argv: Sequence[str]) -> int:
    """Exit code."""
    if "--check" in argv:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
