"""Amazon's Shopping Queries (ESCI): real queries, and products that people judged against them.

Two files: `products.jsonl.gz`, a product a line, and `judgments.csv` with query, product and one of four labels. There
is no behaviour and no picture in them, and nothing has a time: it is all true from the beginning. docs/esci.md is the
contract.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from moonlake.errors import InputError, SchemaMismatch
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.datasets.log_files import find_file
from sources.own_files.schema import KINDS
from sources.own_files.stage import fingerprint_of, stage_table
from sources.own_files.staging import SourceInfo, is_staged, new_stage, stage_path
from sources.own_files.tabular import Batch, read_batches

Cells: TypeAlias = pa.Array | Sequence[object]

NAME = "esci"
ESCI_VERSION = 1
"""Part of the fingerprint: raise it when the same files would be staged otherwise."""
PRODUCT_FILES = ("products.jsonl.gz", "products.jsonl")
JUDGMENT_FILES = ("judgments.csv",)
GRADES = {"E": 3, "S": 2, "C": 1, "I": 0}
"""Exact, substitute, complement, irrelevant."""
ATTRIBUTES = ("description", "bullet_points", "color")
CATEGORY_PATH = "category_path"


def stage_esci(folder: Path, settings: Settings, *, progress: Step = UNWATCHED) -> Path:
    """The staged folder of the products and judgments in `folder`, made now unless these very files were staged before.

    Raises:
        InputError: a file is not there, cannot be read to its end, or holds no row.
        SchemaMismatch: a column is missing.
        BatchRejected: too large a share of a kind cannot be read.
    """
    products, judgments = find_file(folder, PRODUCT_FILES), find_file(folder, JUDGMENT_FILES)
    fingerprint = fingerprint_of([products, judgments], f"{ESCI_VERSION} {NAME}")
    if is_staged(settings, NAME, fingerprint):
        return stage_path(settings, NAME)
    texts: dict[str, None] = {}
    sources = {
        "products": (products, _products(products)),
        "judgments": (judgments, _judgments(judgments, texts)),
        "queries": (judgments, _queries(texts)),  # read last: by then the judgments have named them
    }
    with new_stage(settings, NAME) as writer:
        ignored: dict[str, list[str]] = {}
        for kind, (path, batches) in sources.items():
            ignored[kind] = stage_table(writer, KINDS[kind], path, batches, progress)
            if not writer.staged[kind]:
                raise InputError(f"{path}: there is no row in it")
        writer.describe(
            SourceInfo(
                NAME,
                simulated=False,
                kind="real catalogue and judged queries, no behaviour",
                window=None,
                t1=None,
                t2=None,
                notes=f"{products.name}, {judgments.name}; nothing in them has a time",
                fingerprint=fingerprint,
                ignored={kind: names for kind, names in ignored.items() if names},
            )
        )
    return stage_path(settings, NAME)


def _products(path: Path) -> Iterator[Batch]:
    """Batches with the columns of the kind; columns that have no place in it stay as they are."""
    for number, batch in enumerate(read_batches(path)):
        columns = _required(path, batch, number, ("asin", "title"))
        paths = [_category_path(cell) for cell in columns.pop("category", [None] * batch.rows)]
        said = {name: columns.pop(name) for name in ATTRIBUTES if name in columns}
        said[CATEGORY_PATH] = [" > ".join(one) for one in paths]
        shaped = {
            "product_id": columns.pop("asin"),
            "category": [one[-1] if one else None for one in paths],
            "price_cents": [_cents(cell) for cell in columns.pop("price", [None] * batch.rows)],
            "attributes": [dict(zip(said, row, strict=True)) for row in zip(*said.values(), strict=True)],
        }
        yield Batch(columns | shaped, batch.rows, batch.refused)


def _judgments(path: Path, texts: dict[str, None]) -> Iterator[Batch]:
    """Batches with the columns of the kind; `texts` takes in every query that they name."""
    for number, batch in enumerate(read_batches(path)):
        columns = _required(path, batch, number, ("query", "asin", "esci_label"))
        queries, labels = ([str(cell).strip() for cell in columns.pop(name)] for name in ("query", "esci_label"))
        texts |= dict.fromkeys(text for text in queries if text)
        shaped: dict[str, Cells] = {
            "query_id": queries,
            "product_id": columns.pop("asin"),
            "grade": [GRADES.get(label, label) for label in labels],
            "label": labels,
        }
        yield Batch(columns | shaped, batch.rows, batch.refused)


def _queries(texts: dict[str, None]) -> Iterator[Batch]:
    """The distinct queries: in these files a query has no id but its own text."""
    yield Batch({"query_id": list(texts), "text": list(texts)}, len(texts))


def _required(path: Path, batch: Batch, number: int, names: Sequence[str]) -> dict[str, Cells]:
    """The columns of a batch, those of `names` among them."""
    missing = [name for name in names if name not in batch.columns]
    if missing and (batch.rows or number == 0):
        raise SchemaMismatch(
            f"{path}: column {missing[0]} is missing; found {', '.join(batch.columns) or 'no columns'}"
        )
    return dict.fromkeys(names, ()) | batch.columns


def _category_path(cell: object) -> list[str]:
    """Category names from the root to the leaf; a single name is a leaf."""
    return [str(part) for part in (cell if isinstance(cell, list) else [cell]) if part]


def _cents(cell: object) -> object:
    """A price in dollars as cents; anything else as it came, so that it is refused by name."""
    return round(cell * 100) if isinstance(cell, int | float) and math.isfinite(cell) else cell
