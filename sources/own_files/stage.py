"""Your own files into the own-files form: Parquet, CSV, JSON lines or Delta, images as files, a zip or a table.

Every record submitted is staged or refused by a named rule; the counts in `source.json` add up. Rows are read in
batches, so that memory does not grow with the files. docs/own_files.md is the contract.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from moonlake.errors import InputError, SchemaMismatch
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from sources.own_files.conform import conform, fill, has_place, raw_record, repeated_names
from sources.own_files.image_files import ImageFile, find_image_files, read_image_files
from sources.own_files.schema import KINDS, Kind
from sources.own_files.staging import SOURCE_FILE, SourceInfo, StageWriter, is_staged, new_stage, stage_path
from sources.own_files.tabular import TABLE_ENDINGS, Batch, find_table, read_batches
from sources.own_files.values import is_readable_as

READER_VERSION = 2
"""Part of the fingerprint: raise it when the same files would be staged otherwise."""
T1_SHARE, T2_SHARE = 0.5, 0.8
"""Where t1 and t2 lie in the window of the impressions when they are not given."""
IMAGES_PER_WRITE = 256


def stage_own_files(
    folder: Path,
    settings: Settings,
    *,
    name: str,
    t1: datetime | None = None,
    t2: datetime | None = None,
    progress: Step = UNWATCHED,
) -> Path:
    """The staged folder of the files in `folder`, made now unless these very files were staged before.

    Args: t1, t2: of the honest protocol; by default what the folder's own `source.json` says, else 50% and 80% of the
        time that the impressions span.

    Raises:
        InputError: no such folder, no products, a file that is not what its name says, a kind that is there twice.
        SchemaMismatch: a column is missing, there twice, or of a type that its kind cannot have.
        BatchRejected: too large a share of a kind cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a folder that holds products.parquet, .csv or .jsonl")
    said = _said(folder)
    t1, t2 = t1 or said.get("t1"), t2 or said.get("t2")
    files = {kind: path for kind in KINDS if (path := find_table(folder, kind))}
    images = None if files.get("images") == folder / "images" else find_image_files(folder)
    if images and "images" in files:
        raise InputError(f"{folder} holds images twice: {files['images'].name} and {images.name}; keep one")
    if "products" not in files:
        endings = ", ".join(f"products{ending}" for ending in TABLE_ENDINGS)
        raise InputError(f"{folder} holds no products; expected one of {endings} or a folder products/")
    used = [*files.values(), *([images] if images else [])]
    fingerprint = fingerprint_of(used, f"{READER_VERSION} {name} {t1} {t2}")
    if is_staged(settings, name, fingerprint):
        return stage_path(settings, name)

    with new_stage(settings, name) as writer:
        ignored = {
            kind: stage_table(writer, KINDS[kind], path, read_batches(path), progress) for kind, path in files.items()
        }
        if images is not None:
            stage_images(writer, read_image_files(images), progress)
        if not writer.staged["products"]:
            raise InputError(f"{files['products']}: the catalogue is empty; it needs at least one product")
        ignored["files"] = sorted(
            {path.name for path in folder.iterdir()} - {path.name for path in used} - {SOURCE_FILE}
        )
        writer.describe(_info(writer, name, fingerprint, (t1, t2), ignored))
    return stage_path(settings, name)


def stage_images(writer: StageWriter, files: Iterator[ImageFile], progress: Step = UNWATCHED) -> None:
    """Stage image files under their names, the first of each name."""
    seen: set[str] = set()
    waiting: list[ImageFile] = []

    def write() -> None:
        rows = pa.table([[file.name for file in waiting], [file.image_bytes for file in waiting]], _IMAGES)
        writer.write("images", rows)
        waiting.clear()
        progress.update(writer.staged["images"], note="images")

    for file in files:
        rule = "name_conflicting" if file.name in seen else file.refused
        if rule:
            writer.refuse("images", rule, [{"name": file.name}])
            continue
        seen.add(file.name)
        waiting.append(file)
        if len(waiting) == IMAGES_PER_WRITE:
            write()
    write()


_IMAGES = KINDS["images"].schema()


def stage_table(
    writer: StageWriter, kind: Kind, path: Path, batches: Iterable[Batch], progress: Step = UNWATCHED
) -> list[str]:
    """Stage the rows of a kind; gives the columns that the form has no place for.

    Args: path: where the batches were read from, for messages.
    Raises: SchemaMismatch, BatchRejected: as `stage_own_files`.
    """
    ignored: dict[str, None] = {}
    seen_names: set[str] = set()
    for number, batch in enumerate(batches):
        if batch.rows or number == 0:
            _check_columns(kind, path, batch)
        ignored |= dict.fromkeys(name for name in batch.columns if not has_place(kind, name))
        rows, unreadable = conform(kind, batch)
        if kind.name == "images":
            unreadable |= repeated_names(rows["name"], unreadable, seen_names)
        refused = {rule: list(values) for rule, values in batch.refused.items()}
        for row, rule in unreadable.items():
            refused.setdefault(rule, []).append(raw_record(kind, batch, row))
        for rule, values in refused.items():
            writer.refuse(kind.name, rule, values)
        kept = rows.filter(pa.array([row not in unreadable for row in range(batch.rows)], pa.bool_()))
        writer.write(kind.name, fill(kind, kept))
        progress.update(writer.staged[kind.name], note=kind.name)
    writer.check_share(kind.name, str(path))
    return list(ignored)


def _check_columns(kind: Kind, path: Path, batch: Batch) -> None:
    for entry in kind.fields:
        if entry.name not in batch.columns:
            if entry.required:
                found = ", ".join(batch.columns) or "no columns"
                raise SchemaMismatch(f"{path}: column {entry.name} is missing; found {found}")
            continue
        cells = batch.columns[entry.name]
        if isinstance(cells, pa.Array) and not is_readable_as(cells.type, entry.type):
            raise SchemaMismatch(f"{path}: column {entry.name} must be {entry.type}; found {cells.type}")


def _info(
    writer: StageWriter,
    name: str,
    fingerprint: str,
    given: tuple[datetime | None, datetime | None],
    ignored: dict[str, list[str]],
) -> SourceInfo:
    window = writer.span("impressions") or writer.span("behaviors")
    t1, t2 = given
    if window:
        start, end = window
        t1, t2 = t1 or start + T1_SHARE * (end - start), t2 or start + T2_SHARE * (end - start)
    if t1 and t2 and t1 > t2:
        raise InputError(f"t1 {t1.isoformat()} must be before t2 {t2.isoformat()}; give both")
    kept = {kind: names for kind, names in ignored.items() if names}
    return SourceInfo(name, False, "own files", window, t1, t2, "", fingerprint, ignored=kept)


def _said(folder: Path) -> dict[str, datetime]:
    """T1 and T2 where the folder's own `source.json` gives them."""
    path = folder / SOURCE_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict) or not set(values) <= {"t1", "t2"}:
        raise InputError(f'{path}: expected {{"t1": "...", "t2": "..."}}, found {json.dumps(values)[:200]}')
    return {name: parse_moment(str(value)) for name, value in values.items()}


def fingerprint_of(paths: Sequence[Path], stated: str) -> str:
    """Hash of everything that a stage is made from: names and bytes of all files, and the choices as stated."""
    digest = hashlib.blake2b(stated.encode(), digest_size=16)
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                said = f"{path.name}/{file.relative_to(path)}\0{file.stat().st_size}\0"
                digest.update(said.encode(errors="surrogateescape"))
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
