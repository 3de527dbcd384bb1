"""A staged `tiny` preset, made once for all tests that only read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonlake.settings import Settings
from sources.simulator.marketplace import stage_marketplace


@dataclass(frozen=True)
class Staged:
    """A staged source and its settings."""

    settings: Settings
    folder: Path

    def read(self, kind: str) -> pa.Table:
        """The staged rows of a kind."""
        return pq.read_table(self.folder / kind)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """The preset `tiny`, staged; not to be changed."""
    settings = Settings(home=tmp_path_factory.mktemp("tiny"))
    return Staged(settings, stage_marketplace("tiny", settings))
