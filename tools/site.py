"""Hooks of the docs site: README as its first page, notebooks as pages, and names of pages in prose as links."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"(```.*?```|``[^`]+``|`[^`\n]+`|\[[^\]]*\]\([^)]*\))", re.DOTALL)
PAGE = re.compile(r"(?<![\w/(])docs/([\w/-]+\.md)")
NOTEBOOK = re.compile(r"(\]\([\w/-]+)\.ipynb\)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """The pages of the folder, with README as the first one and a page for each notebook."""
    readme = LINK.sub(lambda found: f"]({_from_docs(found[1])}", (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=readme))
    notebooks = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    for path in notebooks:
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """The page, with each path of a page that its prose names as a link to that page."""
    here = os.path.dirname(page.file.src_uri)

    def linked(found: re.Match[str]) -> str:
        if files.get_file_from_path(found[1]) is None:
            return found[0]
        return f"[{found[1]}]({os.path.relpath(found[1], here or '.')})"

    markdown = NOTEBOOK.sub(r"\1.md)", markdown)
    parts = CODE.split(markdown)  # every second part is code or a link
    parts[::2] = [PAGE.sub(linked, part) for part in parts[::2]]
    return "".join(parts)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and the text that its cells printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [f"```text\n{text.rstrip()}\n```" for text in map(_printed, cell["outputs"]) if text.strip()]
    return "\n\n".join(parts) + "\n"


def _printed(output: dict[str, Any]) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", ()))


def _from_docs(link: str) -> str:
    """A link of README as one from the folder docs."""
    return link.removeprefix("docs/")
