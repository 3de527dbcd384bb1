"""Representation snapshots: the vectors of one space at one version of the lake, as files that processes share.

    <folder>/vectors.arrow    Arrow IPC, one record batch: id_high, id_low (uint64), vector (fixed-size list of D)
    <folder>/products.arrow   Arrow IPC: product_id -> content_id of every product on sale
    <folder>/manifest.json    space, dimension, table versions, bytes and checksum of each file

Opening one copies nothing: the vectors are a NumPy view of the mapped file, so workers share its pages. The two halves
of the 128-bit content ids lie sorted beside the vectors; a look-up is a binary search over eight-byte numbers.

Controls have other vectors in the place of the true ones, and a space id of their own. Whatever is unusual about a
snapshot stands in its labels, which belong beside every figure that its vectors give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moonlake.arrays import Int64s, UInt64s
from moonlake.embeddings.content_index import ContentIndex, in_order, words_of
from moonlake.errors import ContractError, InputError, MoonlakeError, NotFound, SpaceMismatch
from moonlake.files import publish_folder
from moonlake.hashing import hash_of_file, stable_hash
from moonlake.lake.lake import Lake

VECTORS, PRODUCTS, MANIFEST = "vectors.arrow", "products.arrow", "manifest.json"
FORMAT = 1
BATCH_ROWS = 16_384
OPEN_TRIES = 10
"""A snapshot that is replaced while it is being opened is opened again so often in all."""
PRODUCT_COLUMNS = ["product_id", "content_id"]
STORAGE_TYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}

ControlKind = Literal["shuffled", "random"]
CONTROLS: tuple[ControlKind, ...] = get_args(ControlKind)


class Control(NamedTuple):
    """A control in place of the true vectors: vectors of other contents, or random unit vectors."""

    kind: ControlKind
    seed: int

    def __str__(self) -> str:
        return f"control: {self.kind} with seed {self.seed}"


@dataclass(frozen=True)
class Snapshot:
    """One open snapshot. Content ids in, row numbers out; vectors by row number.

    Attributes:
        vectors: [N, D] in the storage type of the space, read-only and memory-mapped.
        trained_until: latest event that the encoder of the space learnt from; None if it learnt from no behaviour.
        versions: Delta version of each table that was read; empty if the vectors are not of the lake.
        true_space_id: the space that was written; a control of it has a `space_id` of its own.
        labels: what is unusual about the vectors; empty for those of an encoder.
        control: None in a true snapshot.
    """

    folder: Path
    true_space_id: str
    vectors: NDArray[Any]
    trained_until: datetime | None
    versions: dict[str, int]
    _index: ContentIndex
    _on_sale: pa.Table
    labels: tuple[str, ...] = ()
    control: Control | None = None
    _order: Int64s | None = None

    @classmethod
    def open(cls, folder: Path) -> Snapshot:
        """The snapshot in a folder, its vectors mapped and not read; all of one writing, whoever replaces it meanwhile.

        Raises:
            NotFound: there is no snapshot in the folder.
            InputError: a file has another size than its manifest says; `verify` also reads what is in them.
        """
        for _ in range(OPEN_TRIES):
            before = _writing(folder)
            try:
                found = cls._open(folder)
            except (MoonlakeError, OSError, ValueError):  # pyarrow's errors are of these
                if _writing(folder) == before:
                    raise
                continue
            if _writing(folder) == before:
                return found
        raise InputError(f"{folder} was replaced {OPEN_TRIES} times while it was opened; who writes it all the time?")

    @classmethod
    def _open(cls, folder: Path) -> Snapshot:
        manifest = _manifest(folder)
        if manifest is None:
            raise NotFound(f"no snapshot at {folder}: {MANIFEST} is missing; write one with write_snapshot")
        for name, facts in manifest["files"].items():
            found = (folder / name).stat().st_size if (folder / name).exists() else "no file"
            if found != facts["bytes"]:
                raise InputError(f"{folder / name}: expected {facts['bytes']} bytes, found {found}; write it again")
        batch = pa.ipc.open_file(pa.memory_map(str(folder / VECTORS))).get_batch(0)
        vector = batch.column("vector")
        values = vector.flatten().to_numpy(zero_copy_only=True)
        on_sale = pa.ipc.open_file(pa.memory_map(str(folder / PRODUCTS))).read_all()
        until = manifest["trained_until"]
        return cls(
            folder=folder,
            true_space_id=manifest["space_id"],
            vectors=values.reshape(len(vector), vector.type.list_size),
            trained_until=datetime.fromisoformat(until) if until else None,
            versions=manifest["versions"],
            _index=ContentIndex(
                batch.column("id_high").to_numpy(zero_copy_only=True),
                batch.column("id_low").to_numpy(zero_copy_only=True),
            ),
            _on_sale=on_sale,
            labels=tuple(manifest.get("labels", ())),
        )

    def __len__(self) -> int:
        """The number of contents with a vector."""
        return len(self.vectors)

    @property
    def space_id(self) -> str:
        """The space that its readers name; a control is a space of its own, so that nothing mixes the two."""
        control = self.control
        return stable_hash(f"{self.true_space_id} {control}") if control else self.true_space_id

    @property
    def is_apart(self) -> bool:
        """True where the vectors were handed to `write_vectors`: they are not the lake's, and go with any rows."""
        return not self.versions

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def rows_of(self, content_ids: pa.Array | pa.ChunkedArray) -> Int64s:
        """The row of each content id [n] in `vectors`; -1 where the id is null or has no vector."""
        rows = self._index.rows_of(content_ids)
        return rows if self._order is None else np.append(self._order, -1)[rows]

    def contents(self) -> pa.Table:
        """content_id of each row of `vectors`, in their order."""
        halves = zip(self._index.high.tolist(), self._index.low.tolist(), strict=True)
        return pa.table({"content_id": pa.array([f"{high:016x}{low:016x}" for high, low in halves], pa.string())})

    @cached_property
    def products(self) -> dict[str, str]:
        """product_id -> content_id of every product that is on sale at this version of the lake."""
        rows = self._on_sale
        return dict(zip(rows["product_id"].to_pylist(), rows["content_id"].to_pylist(), strict=True))

    def require_space(self, space_id: str | None, reader: str) -> None:
        """Raise SpaceMismatch, which names both spaces, unless `reader` reads this snapshot's space."""
        if space_id != self.space_id:
            label = f" ({self.control})" if self.control else ""
            raise SpaceMismatch(
                f"{reader} reads space {space_id}, but the snapshot {self.folder}{label} holds space {self.space_id}; "
                "open a snapshot of the space that it was made for"
            )

    def under(self, control: Control | None) -> Snapshot:
        """The snapshot with what a control puts in the place of its vectors; itself for None."""
        if control is None:
            return self
        return self.shuffled(control.seed) if control.kind == "shuffled" else self.random(control.seed)

    def shuffled(self, seed: int) -> Snapshot:
        """A control: the same vectors dealt to other contents, none to its own. Few deals change as the lake grows."""
        order = np.argsort(self._index.drawn(seed, 1)[:, 0], kind="stable")
        dealt = np.empty_like(order)
        dealt[order] = np.roll(order, -1)
        return self._as(Control("shuffled", seed), _order=dealt)

    def random(self, seed: int) -> Snapshot:
        """A control: unit vectors of random direction, drawn anew for each content id, whatever else is there."""
        vectors = np.empty_like(self.vectors)
        for at in range(0, len(self), BATCH_ROWS):
            few = slice(at, at + BATCH_ROWS)
            normal = self._index.part(few).normal(seed, self.dimension)
            vectors[few] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
        vectors.flags.writeable = False
        return self._as(Control("random", seed), vectors=vectors)

    def _as(self, control: Control, **changes: Any) -> Snapshot:
        if self.control is not None:
            raise InputError(f"snapshot {self.folder} is a control already ({self.control}): start from the true one")
        return replace(self, control=control, labels=(*self.labels, str(control)), **changes)

    def verify(self) -> None:
        """Raise InputError, which names the file, unless every file is as it was written. Reads everything."""
        manifest = _manifest(self.folder) or {"files": {}}
        for name, facts in manifest["files"].items():
            if (found := hash_of_file(self.folder / name)) != facts["blake2b"]:
                raise InputError(f"{self.folder / name}: expected checksum {facts['blake2b']}, found {found}")


def write_snapshot(lake: Lake, space_id: str, folder: Path, *, version: int | None = None) -> Snapshot:
    """The snapshot of a space at a version of `embeddings` (default: the latest), written to a folder and opened.

    Whole or not at all: written beside the folder, then renamed. Nothing is done if the folder holds it already; an
    older snapshot of the same space is replaced, and processes that have it open keep their pages. Ids are held in
    memory, vectors only batch by batch.

    Raises:
        NotFound: the space is not registered or has no vector at this version.
        SpaceMismatch: the folder holds a snapshot of another space.
        ContractError: a vector has another length or more precision than the space, or a content has two.
    """
    space = _space(lake, space_id)
    versions = {
        "embeddings": lake.version("embeddings") if version is None else version,
        "products": lake.version("products"),
    }
    present = _manifest(folder)
    if present is not None and present["space_id"] != space_id:
        raise SpaceMismatch(f"{folder} holds a snapshot of space {present['space_id']}, not {space_id}: name another")
    if present is not None and present["versions"] == versions:
        return Snapshot.open(folder)
    with publish_folder(folder) as building:
        contents = _write_vectors(lake, space, versions["embeddings"], building)
        products = _write_products(lake, versions["products"], building)
        until = space["trained_until"]
        _write_manifest(
            building,
            {
                "space_id": space_id,
                "dimension": space["dimension"],
                "storage_type": space["storage_type"],
                "trained_until": until.isoformat() if until else None,
                "versions": versions,
                "contents": contents,
                "products": products,
            },
        )
    return Snapshot.open(folder)


def write_vectors(
    folder: Path, content_ids: Sequence[str], vectors: NDArray[Any], *, space_id: str, labels: Sequence[str]
) -> Snapshot:
    """A snapshot of vectors that are no encoder's, written to a folder and opened; what was there is replaced.

    It has no products, and was trained on nothing.

    Args:
        vectors: [N, D], stored as float16.
        labels: what the vectors are: one at least, since a figure that they give says nothing of an encoder.

    Raises:
        ContractError: an id that is not 32 hexadecimal digits, or that stands there twice.
        InputError: ids and vectors that are not parallel, or no label.
    """
    if not labels or not len(vectors) or vectors.ndim != 2 or len(content_ids) != len(vectors):
        raise InputError(
            f"{folder}: expected content ids [N], vectors [N, D] and a label, found {len(content_ids)} ids, vectors "
            f"{vectors.shape} and {len(labels)} labels"
        )
    where = f"vectors of space {space_id}"
    high, low, order = in_order([words_of(pa.array(content_ids, pa.string()))], where)
    with publish_folder(folder) as building:
        _write_index(building, high, low, vectors[order].astype(np.float16))
        _write_ipc(building / PRODUCTS, pa.table({name: pa.array([], pa.string()) for name in PRODUCT_COLUMNS}))
        stated = {"space_id": space_id, "dimension": vectors.shape[1], "storage_type": "float16", "trained_until": None}
        _write_manifest(
            building, {**stated, "versions": {}, "contents": len(high), "products": 0, "labels": list(labels)}
        )
    return Snapshot.open(folder)


def _write_manifest(folder: Path, stated: dict[str, Any]) -> None:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "blake2b": hash_of_file(folder / name)}
        for name in (VECTORS, PRODUCTS)
    }
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **stated, "files": files}, indent=2) + "\n")


def _space(lake: Lake, space_id: str) -> dict[str, Any]:
    columns = ("space_id", "dimension", "storage_type", "trained_until")
    rows = lake.read("embedding_spaces", columns, where=pc.field("space_id") == space_id)
    if not len(rows):
        raise NotFound(f"embedding_spaces has no space {space_id}; register it before a snapshot is made")
    return dict(rows.slice(len(rows) - 1).to_pylist()[0])  # none of these columns ever changes within a space


def _write_vectors(lake: Lake, space: dict[str, Any], version: int, folder: Path) -> int:
    high, low = _sorted_ids(lake, space["space_id"], version)
    dimension: int = space["dimension"]
    dtype = STORAGE_TYPES[space["storage_type"]]
    scratch = folder / "vectors.scratch"
    vectors: NDArray[Any] = np.memmap(scratch, dtype=dtype, mode="w+", shape=(len(high), dimension))
    index = ContentIndex(high, low)
    for batch in _batches(lake, space["space_id"], version, ["content_id", "vector"]):
        vectors[index.rows_of(batch.column("content_id"))] = _exact(batch, dimension, dtype)
    _write_index(folder, high, low, vectors)
    scratch.unlink()
    return len(high)


def _write_index(folder: Path, high: UInt64s, low: UInt64s, vectors: NDArray[Any]) -> None:
    """Write vectors [N, D] with their ids, which are sorted."""
    values = pa.Array.from_buffers(pa.from_numpy_dtype(vectors.dtype), vectors.size, [None, pa.py_buffer(vectors)])
    columns = [pa.array(high), pa.array(low), pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])]
    _write_ipc(folder / VECTORS, pa.record_batch(columns, names=["id_high", "id_low", "vector"]))


def _sorted_ids(lake: Lake, space_id: str, version: int) -> tuple[UInt64s, UInt64s]:
    ids = [words_of(batch.column("content_id")) for batch in _batches(lake, space_id, version, ["content_id"])]
    if not sum(len(high) for high, _, _ in ids):
        raise NotFound(f"table embeddings has no vector of space {space_id} at version {version}; embed contents first")
    high, low, _ = in_order(ids, f"table embeddings, space {space_id}")
    return high, low


def _exact(batch: pa.RecordBatch, dimension: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The batch's vectors [n, D] in the storage type, which must hold them without loss."""
    column = batch.column("vector")
    wrong = pc.index(pc.fill_null(pc.equal(pc.list_value_length(column), dimension), False), False).as_py()
    if wrong >= 0:
        name, vector = batch.column("content_id")[wrong], column[wrong].as_py()
        found = None if vector is None else len(vector)
        raise ContractError(f"table embeddings, content {name}: vector of length {found}, the space has {dimension}")
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    stored: NDArray[Any] = values.astype(dtype)
    lossy = np.flatnonzero((stored.astype(values.dtype) != values).any(axis=1))
    if len(lossy):
        name = batch.column("content_id")[int(lossy[0])]
        raise ContractError(f"table embeddings, content {name}: vector is not rounded to {dtype}, the space's type")
    return stored


def _write_products(lake: Lake, version: int, folder: Path) -> int:
    columns = [*PRODUCT_COLUMNS, "deleted", "event_timestamp", "created_at"]
    rows = lake.read("products", columns, version=None if version < 0 else version)
    rows = rows.sort_by([(name, "ascending") for name in ("product_id", "event_timestamp", "created_at")])
    ids = rows["product_id"].combine_chunks()
    last = pc.fill_null(pc.not_equal(ids, pa.concat_arrays([ids[1:], pa.nulls(min(1, len(ids)), ids.type)])), True)
    on_sale = rows.filter(pc.and_(last, pc.invert(rows["deleted"]))).select(PRODUCT_COLUMNS)
    _write_ipc(folder / PRODUCTS, on_sale)
    return len(on_sale)


def _batches(lake: Lake, space_id: str, version: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if version < 0:
        return
    scanner = lake.dataset("embeddings", version).scanner(
        columns, filter=pc.field("space_id") == space_id, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    )
    yield from scanner.to_batches()


def _write_ipc(path: Path, rows: pa.RecordBatch | pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write(rows)


def _writing(folder: Path) -> tuple[int, int] | None:
    """An identity of the folder that changes each time it is written; None where there is no folder."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')}, this version reads format {FORMAT}; rewrite it")
    return manifest
