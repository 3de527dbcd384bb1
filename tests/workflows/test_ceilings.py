from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moonlake.embeddings.contents import content_of
from moonlake.errors import NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from sources.simulator.clicks import Catalogue, ClickModel, Requests, Shoppers
from sources.simulator.presets import BehaviorConfig
from workflows.ceilings import ceiling_space, open_latents, write_ceiling

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NONE = np.zeros(0, np.int64)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Products a, b and c, and four requests: two of the text t, one picture x, one query that the lake has not."""
    styles = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    wanted = np.array([[1, 0], [0, 1], [0.8, 0.6], [1, 0]], np.float32)
    flat, four = np.zeros(3, np.float32), np.zeros(4, np.int64)
    catalogue = Catalogue(["a", "b", "c"], styles, four[:3], flat, flat, four[:3], four[:3])
    shoppers = Shoppers(["u"], ["value"], flat[:1], styles[:1], styles[:1])
    model = ClickModel(BehaviorConfig(1, 1), catalogue, shoppers, Requests(four, four, four, four, wanted), (0, 1))
    folder = tmp_path / "truth"
    folder.mkdir()
    model.save(folder, ["r1", "r2", "r3", "r4"], ["t1", "t2", "x", "unknown"])
    return folder


@pytest.fixture
def stocked(settings: Settings, write_rows: Callable[..., None]) -> Lake:
    """a in two states, b and c of one content, and a product and a query that the simulation does not know."""

    def product(name: str, title: str) -> dict[str, Any]:
        return {"product_id": name, "title": title, "content_id": content_of(title, []).content_id,
                "event_timestamp": T0}  # fmt: skip

    products = [product("a", "A"), product("a", "A2"), product("b", "BC"), product("c", "BC"), product("real", "R")]
    queries = [{"query_id": name, "modality": "text", "text": text, "content_id": content_of(text, []).content_id}
               for name, text in (("t1", "t"), ("t2", "t"), ("x", "x"), ("later", "l"))]  # fmt: skip
    write_rows(settings, "products", products)
    write_rows(settings, "queries", queries)
    return Lake(settings)


def test_a_content_has_the_mean_direction_of_all_that_it_stands_for(stocked: Lake, truth: Path) -> None:
    contents = [content_of(text, []) for text in ("A", "A2", "BC", "t", "x", "R", "l")]
    half = np.sqrt(0.5)
    between = np.array([0.6, 1.8]) / np.linalg.norm([0.6, 1.8])  # of b and c
    np.testing.assert_allclose(
        open_latents(stocked, truth)(contents),
        [[1, 0], [1, 0], between, [half, half], [0.8, 0.6], [0, 0], [0, 0]],
        rtol=1e-6,
    )


def test_the_ceiling_is_a_snapshot_of_what_the_simulation_knows(stocked: Lake, truth: Path, tmp_path: Path) -> None:
    ceiling = write_ceiling(stocked, truth, tmp_path / "ceiling")
    contents = [content_of(text, []) for text in ("A", "A2", "BC", "t", "x", "R", "l")]
    rows = ceiling.rows_of(pa.array([content.content_id for content in contents]))
    assert (rows >= 0).tolist() == [True] * 5 + [False] * 2
    np.testing.assert_allclose(ceiling.vectors[rows[:5]], open_latents(stocked, truth)(contents[:5]), atol=1e-3)
    assert ceiling.space_id == ceiling_space("truth")
    assert ceiling.labels == ("ceiling: true latents of truth, simulated",)


def test_a_simulation_of_another_lake_is_an_error(lake: Lake, truth: Path) -> None:
    with pytest.raises(NotFound, match="no product and no query"):
        open_latents(lake, truth)


def test_a_folder_without_truth_is_an_error(stocked: Lake, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no truth"):
        open_latents(stocked, tmp_path)
