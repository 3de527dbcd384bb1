"""README's commands run as they stand and in their order, on a copy of a small home, but for those with a reason."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from moonlake.settings import Settings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

NOT_RUN = {
    "make": "sets up the environment that runs the tests, or runs them",
    "moonlake source": "the files of arrivals are those of a demo",
    "moonlake airflow": "Airflow with a database of its own: tests/dags",
    "moonlake check tables": "validates with Spark: tests/cli/test_check.py",
    "moonlake lake maintain": "compacts with Spark: tests/spark_jobs/test_maintain_lake.py",
    "moonlake ingest": "writes with Spark: tests/spark_jobs/test_ingest.py",
    "moonlake product watch": "a stream of Spark without an end: tests/spark_jobs/test_stream_products.py",
    "moonlake product add": "waits for the stream: tests/cli/test_product.py",
    "moonlake train encoder": "takes minutes: tests/cli/test_train_encoder.py",
    "moonlake backfill": "embeds with Spark: tests/spark_jobs/test_space_rollout.py",
    "moonlake evaluate encoder": "measures the encoder that is not trained here: tests/cli/test_evaluate_encoder.py",
}
"""Commands of README that are left out here, and where they run instead."""
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def stories() -> list[list[str]]:
    """The commands of README in their order."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words]


def reason(words: list[str]) -> str | None:
    """The beginning by which a command is left out; None for one that runs."""
    return next((start for start in NOT_RUN if words[: len(start.split())] == start.split()), None)


def test_the_commands_of_readme_run_in_their_order(
    home_of_0_1_0: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(home_of_0_1_0.home, tmp_path / "home")
    monkeypatch.setenv("MOONLAKE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    ran = [words for words in stories() if reason(words) is None]
    for words in ran:
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}\n{done.exception}"
    assert [words[1] for words in ran] == ["erase", "training-set", "train", "train", "evaluate", "space"]


def test_every_reason_is_of_a_command_that_readme_has() -> None:
    assert set(NOT_RUN) == {reason(words) for words in stories()} - {None}
