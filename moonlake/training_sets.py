"""Training sets: what was declared, what it was made of, and how to read it. Needs pyarrow only.

A training set is a folder with `rows/*.parquet` and `manifest.json`, which is written last: a folder without one is
no training set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake.contents import stable_hash
from moonlake.errors import InputError, NotFound

LABEL_COLUMNS = (
    "impression_id",
    "request_id",
    "user_id",
    "query_id",
    "product_id",
    "content_id",
    "query_content_id",
    "event_timestamp",
    "clicked",
)
"""What a training row takes from its impression. `position` and whatever follows the impression never enter."""

ROWS_PER_GROUP = 20_000


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a training set is: everything that a person decides about it.

    Attributes:
        name: its folder's name.
        start, end: label rows are the impressions with an event time in [start, end).
        settled_by: only labels settled by then enter, that is with label_time <= settled_by; None means `end`. A
            window that closes less than one attribution delay ago would take clicks that are still to come for none.
        sequence_length: actions of a behaviour sequence.
        space_id: the embedding space that its content ids are to be read in; None when that is left open.
    """

    name: str
    start: datetime
    end: datetime
    settled_by: datetime | None = None
    feature_service: str = "ctr_ranking_v1"
    label_table: str = "impressions"
    sequence_length: int = 50
    space_id: str | None = None

    def __post_init__(self) -> None:
        moments = {"start": self.start, "end": self.end, "settled_by": self.settled_by}
        for field, moment in moments.items():
            if moment is not None and moment.tzinfo is None:
                raise InputError(f"training set {self.name}: {field} {moment} has no time zone")
        if self.start >= self.end:
            raise InputError(f"training set {self.name}: start {self.start} is not before end {self.end}")
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise InputError(f"training set name {self.name!r}: expected a plain folder name")

    @property
    def settled(self) -> datetime:
        """When the labels have to be settled."""
        return self.settled_by or self.end


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that reproduces a training set, and what came of it.

    Attributes:
        training_set_id: hash of all the rest.
        table_versions: Delta version read, by table name; -1 for a table that had not been written.
        definitions: the feature views as they were defined, and `definitions_hash` of them.
        code_version: version of moonlake that built it.
        label_hash: hash of the label rows, in order.
        columns: Arrow type by column name, in order.
        files: hash of each file of rows, by its name.
    """

    declaration: Declaration
    table_versions: dict[str, int]
    definitions: list[dict[str, Any]]
    definitions_hash: str
    code_version: str
    label_hash: str = ""
    rows: int = 0
    columns: dict[str, str] | None = None
    files: dict[str, str] | None = None

    @property
    def training_set_id(self) -> str:
        """Hash of everything in the manifest."""
        return stable_hash(json.dumps(self._document(), sort_keys=True))

    @property
    def start(self) -> datetime:
        """First moment of the label window."""
        return self.declaration.start

    @property
    def end(self) -> datetime:
        """Moment behind the label window."""
        return self.declaration.end

    @property
    def space_id(self) -> str | None:
        """The embedding space that was declared, if one was."""
        return self.declaration.space_id

    def same_inputs(self, other: Manifest) -> bool:
        """True when both were made of the same inputs, so that they hold the same rows."""
        return self._inputs() == other._inputs()

    def as_json(self) -> str:
        """The manifest as it stands in `manifest.json`: sorted, so that equal manifests are equal bytes."""
        document = {"training_set_id": self.training_set_id, **self._document()}
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The manifest that `as_json` wrote."""
        document = json.loads(text)
        document.pop("training_set_id")
        declared = document.pop("declaration")
        for name in ("start", "end", "settled_by"):
            declared[name] = datetime.fromisoformat(declared[name])
        return cls(declaration=Declaration(**declared), **document)

    def _inputs(self) -> dict[str, Any]:
        document = self._document()
        return {name: document[name] for name in ("declaration", "table_versions", "definitions_hash", "code_version")}

    def _document(self) -> dict[str, Any]:
        document = asdict(self)
        declared = document["declaration"] | {"settled_by": self.declaration.settled}
        moments = {name: declared[name].astimezone(UTC).isoformat() for name in ("start", "end", "settled_by")}
        return document | {"declaration": declared | moments}


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A training set on disk."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """The training set in a folder. Raises NotFound when there is none, or files of it are missing."""
        folder = Path(folder)
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise NotFound(f"there is no training set at {folder}: {manifest} does not exist")
        found = cls(folder, Manifest.from_json(manifest.read_text()))
        if missing := [path.name for path in found._paths() if not path.is_file()]:
            raise NotFound(f"training set {folder}: files {missing} of its manifest are missing")
        return found

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows."""
        return pq.read_schema(self._paths()[0])

    def read(
        self, columns: Sequence[str] | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> pa.Table:
        """Rows with an event time in [start, end), ordered by event time and impression id.

        Raises: NotFound: an unknown column; the message lists those that there are.
        """
        known = self.schema.names
        if unknown := sorted(set(columns or ()) - set(known)):
            raise NotFound(f"training set {self.folder} has no columns {unknown}; it has {', '.join(known)}")
        where = ds.scalar(True)
        moment = pa.timestamp("us", tz="UTC")
        if start is not None:
            where = where & (ds.field("event_timestamp") >= pa.scalar(start, moment))
        if end is not None:
            where = where & (ds.field("event_timestamp") < pa.scalar(end, moment))
        rows = ds.dataset([str(path) for path in self._paths()], format="parquet")
        return rows.to_table(columns=None if columns is None else list(columns), filter=where)

    def _paths(self) -> list[Path]:
        return [self.folder / "rows" / name for name in sorted(self.manifest.files or {})]


def write_training_set(folder: Path, inputs: Manifest, labels: pa.Table, batches: Iterable[pa.Table]) -> TrainingSet:
    """The training set written from batches of finished rows, one file each; what was in the folder is replaced.

    Nothing is to be seen in the folder until all is written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "rows").mkdir(parents=True)
    files: dict[str, str] = {}
    schema: pa.Schema | None = None
    for number, rows in enumerate(batches):
        schema = schema or rows.schema
        path = partial / "rows" / f"part-{number:05d}.parquet"
        pq.write_table(rows.cast(schema), path, row_group_size=ROWS_PER_GROUP, compression="zstd")
        files[path.name] = stable_hash(path.read_bytes())
    if schema is None:
        raise InputError(f"training set {folder.name}: there are no rows to write")
    manifest = replace(
        inputs,
        label_hash=hash_of_rows(labels),
        rows=len(labels),
        columns={field.name: str(field.type) for field in schema},
        files=files,
    )
    (partial / "manifest.json").write_text(manifest.as_json())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return TrainingSet.open(folder)


def hash_of_rows(rows: pa.Table) -> str:
    """Hash of the values of flat columns, in order; how the rows lie in memory or in files has no part in it."""
    digest = blake2b(digest_size=16)
    for field, column in zip(rows.schema, rows.columns, strict=True):
        values = column.combine_chunks()
        digest.update(f"{field.name}:{field.type}:{len(values)}".encode())
        digest.update(values.is_valid().cast(pa.uint8()).to_numpy().tobytes())
        if pa.types.is_string(field.type):
            filled = pc.fill_null(values, "").cast(pa.large_binary())
            digest.update(pc.binary_length(filled).to_numpy().tobytes())
            digest.update(b"".join(filled.to_pylist()))
        elif pa.types.is_timestamp(field.type) or pa.types.is_integer(field.type):
            digest.update(pc.fill_null(values.cast(pa.int64()), 0).to_numpy().tobytes())
        else:
            digest.update(pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy().tobytes())
    return digest.hexdigest()


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of the training set in a folder, or None where there is none."""
    try:
        return TrainingSet.open(folder).manifest
    except NotFound:
        return None


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a person wants to know of a training set, by name."""
    declared = manifest.declaration
    return {
        "training_set_id": manifest.training_set_id,
        "rows": manifest.rows,
        "window": f"[{declared.start.isoformat()}, {declared.end.isoformat()})",
        "labels settled by": declared.settled.isoformat(),
        "feature service": declared.feature_service,
        "sequence length": declared.sequence_length,
        "space": declared.space_id or "open",
        "table versions": manifest.table_versions,
        "columns": ", ".join(manifest.columns or {}),
    }
