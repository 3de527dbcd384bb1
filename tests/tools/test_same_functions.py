"""Functions that only moved are equal; one that does something else is listed by its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "same_functions.py"
BEFORE = '''
from moonlake.spark import spark_session

class Shop:
    def total(self, prices):
        """The sum,
        in cents."""
        from moonlake.contents import stable_hash
        return sum(prices)

def double(number):
    return 2 * number
'''
AFTER = BEFORE.replace("moonlake.contents import", "moonlake.hashing import")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose one commit has BEFORE as shop.py."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit(tmp_path, "shop.py", BEFORE)
    return tmp_path


def commit(repository: Path, name: str, source: str) -> None:
    """Make a file the only one of the repository's next commit."""
    for path in repository.glob("*.py"):
        path.unlink()
    (repository / name).write_text(source)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["add", "-A"], [*who, "commit", "-q", "-m", name]):
        subprocess.run(["git", *words], cwd=repository, check=True)


def compared(repository: Path) -> subprocess.CompletedProcess[str]:
    """The comparison of the last two commits."""
    command = [sys.executable, str(PROGRAM), "HEAD~1", "HEAD"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


def test_functions_in_another_file_with_other_imports_and_lines_are_equal(repository: Path) -> None:
    commit(repository, "stall.py", AFTER.replace("sum,\n        in", "sum, in"))
    done = compared(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 functions are equal, 0 are gone or changed")


def test_a_function_that_does_something_else_is_listed(repository: Path) -> None:
    commit(repository, "shop.py", AFTER.replace("2 * number", "number + number"))
    done = compared(repository)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == ["- double", "+ double"]
