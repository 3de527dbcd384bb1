"""The ceiling of a simulated source: the styles that products truly have and that requests truly wanted.

Simulated: no encoder sees these, and no real catalogue has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from models.evaluation.representations import Represent
from moonlake.arrays import Float32s
from moonlake.embeddings.snapshots import Snapshot, write_vectors
from moonlake.errors import NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from sources.simulator.clicks import ClickModel


def open_latents(lake: Lake, folder: Path) -> Represent:
    """True vectors of contents, of a simulation whose truth lies in a folder; zeros of a content that it does not know.

    Raises: NotFound: the folder holds no truth.
    """
    vectors = latents_by_content(lake, *_open(folder))
    nothing = np.zeros_like(next(iter(vectors.values())))
    return lambda contents: np.stack([vectors.get(content.content_id, nothing) for content in contents])


def write_ceiling(lake: Lake, truth: Path, folder: Path) -> Snapshot:
    """The true vectors as a snapshot, written to a folder: what bounds the gain that any encoder brings a click model.

    Args: truth: folder of a simulation's truth, named as its source is.
    """
    vectors = latents_by_content(lake, *_open(truth))
    labels = [f"ceiling: true latents of {truth.name}, simulated"]
    every = np.stack(list(vectors.values()))
    return write_vectors(folder, list(vectors), every, space_id=ceiling_space(truth.name), labels=labels)


def ceiling_space(source: str) -> str:
    """The id of the space that the true latents of a simulated source are."""
    return stable_hash(f"true latents of {source}")


def latents_by_content(lake: Lake, truth: ClickModel, request_queries: Sequence[str]) -> dict[str, Float32s]:
    """True vectors by content_id: of a query what its requests wanted, of a product its style.

    A content that stands for several (a text that many ask, one content of two products) gets their mean direction,
    which is all that a function of content can know. A content that the simulation does not know has no vector.

    Args: request_queries: query_id of each request of the truth.
    Raises: NotFound: the simulation knows nothing that the lake holds.
    """
    products = lake.read("products", ["product_id", "content_id"])
    queries = lake.read("queries", ["query_id", "content_id"])
    content_of_query = dict(zip(queries["query_id"].to_pylist(), queries["content_id"].to_pylist(), strict=True))
    row_of_product = {name: row for row, name in enumerate(truth.catalogue.product_ids)}
    states = set(zip(products["product_id"].to_pylist(), products["content_id"].to_pylist(), strict=True))
    known = [(content, row_of_product[name]) for name, content in sorted(states) if name in row_of_product]
    asked = [(content_of_query[name], row) for row, name in enumerate(request_queries) if name in content_of_query]
    found = _mean_directions(known, truth.catalogue.vectors) | _mean_directions(asked, truth.requests.wanted)
    if not found:
        raise NotFound("the lake holds no product and no query of the simulation: ingest the source of this truth")
    return found


def _open(folder: Path) -> tuple[ClickModel, list[str]]:
    """The truth in a folder, and the query of each of its requests."""
    truth = ClickModel.open(folder)
    return truth, pq.read_table(folder / "requests.parquet", columns=["query_id"])[0].to_pylist()


def _mean_directions(rows: Iterable[tuple[str, int]], vectors: Float32s) -> dict[str, Float32s]:
    """The mean of the rows of each name, of unit norm again."""
    pairs = list(rows)
    names = {name: at for at, name in enumerate(dict.fromkeys(name for name, _ in pairs))}
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, [names[name] for name, _ in pairs], vectors[[row for _, row in pairs]])
    units = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return dict(zip(names, units, strict=True))
