"""The product in a record of `product_events`, as JSON: the columns of the own-files form, and its images.

    {"title": "Oak chair", "price_cents": 12900, "image_names": ["front.jpg"], "images": {"front.jpg": "<base64>"}}

`images` holds files by name. A name that is not among them is the id of an image that the lake has already.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moonlake.errors import InputError, RecordRefused
from sources.own_files.conform import conform, has_place
from sources.own_files.image_files import find_image_files, read_image_files
from sources.own_files.schema import KINDS
from sources.own_files.tabular import Batch, find_table, read_batches
from sources.own_files.values import convert, plain

IMAGES = "images"
PRODUCTS = KINDS["products"]
ROWS_AT_ONCE = 100
"""Products whose images are read together: the folder of images is gone through once for them."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The contents of a product payload.

    Attributes:
        cells: value by column of the own-files form; None where it says nothing.
        images: files by name; None where one is not base64.
    """

    cells: Mapping[str, Any]
    images: Mapping[str, bytes | None]

    @property
    def image_names(self) -> list[str]:
        """Names of the product's images in order; without a word on it, those of its files."""
        stated = self.cells["image_names"]
        return list(self.images) if stated is None else list(stated)


def read_payload(text: str, product_id: str) -> Payload:
    """The payload of a record. Raises RecordRefused: it is no JSON object, or a cell of it cannot be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordRefused("payload_unreadable", f"the payload cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise RecordRefused("payload_unreadable", f"the payload is a JSON {type(found).__name__}, not an object")
    images = found.pop(IMAGES, None) or {}
    if not isinstance(images, dict):
        raise RecordRefused("images_unreadable", f"images are a JSON {type(images).__name__}, not an object")
    found.setdefault("product_id", product_id)
    rows, unreadable = conform(PRODUCTS, Batch({name: [value] for name, value in found.items()}, 1))
    if unreadable:
        raise RecordRefused(unreadable[0], f"a cell cannot be read: {unreadable[0]}")
    cells = rows.to_pylist()[0]
    if cells["product_id"] != product_id:
        raise RecordRefused("product_id_conflicting", f"the payload is of product {cells['product_id']!r}")
    return Payload(cells, {name: _bytes(value) for name, value in images.items()})


def read_products(folder: Path) -> Iterator[tuple[str, str] | RecordRefused]:
    """product_id and payload of each product of a folder in the own-files form, or why it has none.

    Raises:
        InputError: no such folder, no products in it, or files that cannot be read.
    """
    if not folder.is_dir() or (table := find_table(folder, PRODUCTS.name)) is None:
        raise InputError(f"{folder} is not a folder that holds products.jsonl, .csv or .parquet")
    where = find_image_files(folder)
    for batch in read_batches(table):
        for rule, records in batch.refused.items():
            yield from (RecordRefused(rule, str(record)) for record in records)
        for start in range(0, batch.rows, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, batch.rows))
            yield from _with_files([_row(batch, number) for number in numbers], where)


def _row(batch: Batch, number: int) -> dict[str, Any]:
    values = {name: cells[number] for name, cells in batch.columns.items() if has_place(PRODUCTS, name)}
    return {name: plain(value) if isinstance(value, pa.Scalar) else value for name, value in values.items()}


def _with_files(rows: list[dict[str, Any]], where: Path | None) -> Iterator[tuple[str, str] | RecordRefused]:
    ids, _ = convert([row.get("product_id") for row in rows], "string")
    names, unreadable = convert([row.get("image_names") for row in rows], "list<string>")
    wanted = frozenset(name for of_row in names.to_pylist() for name in of_row or ())
    found = read_image_files(where, wanted) if where and wanted else ()
    files = {file.name: base64.b64encode(file.image_bytes).decode() for file in found if file.refused is None}
    for number, row in enumerate(rows):
        if ids[number].as_py() is None or number in unreadable:
            column = "image_names" if number in unreadable else "product_id"
            yield RecordRefused(f"{column}_unreadable", f"{column} cannot be read in {str(row)[:200]}")
            continue
        images = {name: files[name] for name in names[number].as_py() or () if name in files}
        yield ids[number].as_py(), json.dumps({**row, IMAGES: images}, default=str)


def _bytes(value: object) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except ValueError:
        return None
