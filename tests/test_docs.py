"""The pages of docs agree with the tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_file_map_is_made_of_the_files_as_they_are() -> None:
    done = subprocess.run([sys.executable, "tools/file_map.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "python tools/file_map.py writes docs/file_map.md anew"
