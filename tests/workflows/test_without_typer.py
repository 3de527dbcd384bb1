"""Workflows are for notebooks too: none of them needs the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_workflow_loads_the_command_line() -> None:
    names = [f"workflows.{path.stem}" for path in sorted((ROOT / "workflows").glob("*.py"))]
    assert "workflows.demo" in names
    program = (
        f"import sys\nimport {', '.join(names)}\n"
        "print(*({name.partition('.')[0] for name in sys.modules} & {'typer', 'cli'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
