"""Products and users out of the files beside the lake: staged sources, chunks of a backfill, hidden truth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moonlake.files import atomic_write
from moonlake.maintenance.erasure_search import Search
from sources.own_files.staging import SOURCE_FILE


def erase_staged(folder: Path, search: Search) -> int:
    """The number of rows removed from a staged source: those that name the subject, and images that only they named."""
    gone, erased = set[str](), dict[str, int]()
    for kind in ("products", "queries"):
        for path in (folder / kind).glob("*.parquet"):
            rows = pq.read_table(path)
            gone |= _image_names(rows.filter(pa.array(search.rows_of(rows))))
    for path in sorted(folder.rglob("*.parquet")):
        if path.parent.name != "images":
            erased[path.parent.name] = erased.get(path.parent.name, 0) + _drop_rows(path, search)
    for path in folder.rglob("*.parquet"):
        if path.parent.name in ("products", "queries"):
            gone -= _image_names(pq.read_table(path, columns=["image_names"]))
    for path in (folder / "images").glob("*.parquet"):
        erased["images"] = erased.get("images", 0) + _drop_images(path, gone)
    _restate(folder / SOURCE_FILE, erased)
    return sum(erased.values())


def erase_chunks(files: Iterable[Path], search: Search) -> int:
    """The number of rows removed from Parquet files."""
    return sum(_drop_rows(path, search) for path in files)


def erase_truth(files: Iterable[Path], search: Search) -> int:
    """The number of rows of a simulation's truth that lost their ids; the rows stay, as rows are found by place."""
    count = 0
    for path in files:
        rows = pq.read_table(path)
        found = search.rows_of(rows)
        if found.any():
            for place, field in enumerate(rows.schema):
                if pa.types.is_string(field.type):
                    named = pa.array(search.rows_naming(field.name, rows[field.name]))
                    rows = rows.set_column(place, field.name, pc.if_else(named, None, rows[field.name]))
            _write(path, rows)
        count += int(found.sum())
    return count


def _image_names(rows: pa.Table) -> set[str]:
    return set(pc.list_flatten(rows["image_names"]).to_pylist())


def _drop_rows(path: Path, search: Search) -> int:
    rows = pq.read_table(path)
    found = search.rows_of(rows)
    if found.any():
        _write(path, rows.filter(pa.array(~found)))
    return int(found.sum())


def _drop_images(path: Path, names: set[str]) -> int:
    found = pc.is_in(pq.read_table(path, columns=["name"])["name"], value_set=pa.array(sorted(names), pa.string()))
    count = int(pc.sum(found).as_py() or 0)
    if count:
        _write(path, pq.read_table(path).filter(pc.invert(found)))
    return count


def _restate(path: Path, erased: dict[str, int]) -> None:
    """Take the rows that went off the counts of a staged source."""
    if not any(erased.values()) or not path.exists():
        return
    stated = json.loads(path.read_text())
    for kind, count in erased.items():
        if kind in stated["staged"]:
            stated["staged"][kind] -= count
    with atomic_write(path) as file:
        file.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, rows: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(rows, file)
