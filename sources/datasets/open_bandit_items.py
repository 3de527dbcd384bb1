"""The items of an Open Bandit campaign as products: one catalogue, which the files of both policies list.

A file hashes the features with a salt of its own, so that two of them agree in which items share a value, and in no
value. What one file says is laid down; the other one is held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import InputError
from sources.datasets.log_files import is_whole_number, read_csv, refuse_broken
from sources.own_files.conform import conform, fill
from sources.own_files.schema import KINDS
from sources.own_files.staging import StageWriter
from sources.own_files.tabular import Batch

Item = dict[str, str]

NUMBER_FEATURE = "item_feature_0"
HASHED_FEATURES = ("item_feature_1", "item_feature_2", "item_feature_3")
COLUMNS = ("item_id", NUMBER_FEATURE, *HASHED_FEATURES)
CATEGORY = "item_feature_1"


def is_number(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool [N]: which cells are a finite decimal number."""
    return pc.match_substring_regex(cells, r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$")


def is_hash(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool [N]: which cells are one word of letters and digits, as all anonymised features are."""
    return pc.match_substring_regex(cells, "^[0-9A-Za-z]+$")


def stage_items(writer: StageWriter, campaign: str, paths: Sequence[Path]) -> None:
    """Stage the items of a campaign from every file that lists them.

    An item that a later file lists again is staged again as the first one has it: to ingestion it is a duplicate.

    Raises:
        InputError: two of the files do not speak of the same items, or one has no good item.
        SchemaMismatch, InputError: as `read_csv`.
    """
    known: dict[str, Item] = {}
    for path in paths:
        items = list(_good_items(writer, path))
        if not items:
            raise InputError(f"{path}: there is no item in it")
        _check_same([(known[item["item_id"]], item) for item in items if item["item_id"] in known], paths[0], path)
        rows = [known.setdefault(item["item_id"], item) for item in items]
        writer.write("products", _products(campaign, rows))


def _good_items(writer: StageWriter, path: Path) -> Iterator[Item]:
    """The items of a file, each once."""
    seen: set[str] = set()
    for batch in read_csv(path, COLUMNS, header=True):
        cells = batch.cells
        broken = {
            "item_id_unreadable": pc.invert(is_whole_number(cells["item_id"])),
            f"{NUMBER_FEATURE}_unreadable": pc.invert(is_number(cells[NUMBER_FEATURE])),
            **{f"{name}_unreadable": pc.invert(is_hash(cells[name])) for name in HASHED_FEATURES},
        }
        good = refuse_broken(writer, "products", batch, broken)
        for item in cells.filter(good).to_pylist():
            if item["item_id"] in seen:
                writer.refuse("products", "item_id_repeated", [item])
            else:
                seen.add(item["item_id"])
                yield item


def _check_same(twice: Sequence[tuple[Item, Item]], first: Path, second: Path) -> None:
    """Raise InputError unless the items of two files can be the same: equal numbers, hashes that group them alike."""
    numbers_differ = any(float(one[NUMBER_FEATURE]) != float(other[NUMBER_FEATURE]) for one, other in twice)
    differing = [NUMBER_FEATURE] if numbers_differ else []
    for name in HASHED_FEATURES:
        pairs = {(one[name], other[name]) for one, other in twice}
        if not len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}):
            differing.append(name)
    if differing:
        raise InputError(
            f"{second}: {', '.join(differing)} of the items differ from what {first} says, so that these are not the"
            " items of one campaign; give each policy a folder and a home of its own"
        )


def _products(campaign: str, items: Sequence[Item]) -> pa.Table:
    kind = KINDS["products"]
    features = [{"campaign": campaign} | {name: item[name] for name in COLUMNS[1:]} for item in items]
    stated = {
        "product_id": [f"{campaign}-{item['item_id']}" for item in items],
        "category": [item[CATEGORY] for item in items],
        "attributes": features,
    }
    rows, _ = conform(kind, Batch(stated, len(items)))
    return fill(kind, rows)
