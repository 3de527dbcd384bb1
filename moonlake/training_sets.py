"""Training sets: what was declared, what it was made of, and how to read it. Needs pyarrow only.

A training set is a folder with `rows/*.parquet` and `manifest.json`, which is written last: a folder without one is
no training set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake.contents import stable_hash
from moonlake.errors import InputError, NotFound
from moonlake.point_in_time import KnownBy
from moonlake.sequence_logs import SequenceLog, pointer_names

Format = Literal["parquet", "delta"]
Sequences = Literal["inline", "pointers"]
CHOICES = {"known_by": ("event", "written"), "format": ("parquet", "delta"), "sequences": ("inline", "pointers")}

SEQUENCE_LOGS = "_sequences"
"""Folder beside the files of rows with the log of each sequence view, for pointers. Readers of folders of Parquet and
Delta tables pass over names that begin so."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a training set is: everything that a person decides about it.

    Attributes:
        name: its folder's name.
        start, end: label rows have an event time in [start, end).
        settled_by: only labels settled by then enter, that is with label_time <= settled_by; None means `end`. A
            window that closes less than one attribution delay ago would take clicks that are still to come for none.
            A label table without `label_time` has labels that are settled at once.
        label_table: a lake table with an event time, or the path of any Delta table.
        label_key, label_event_time: columns of a table at a path; a lake table has those of its contract.
        label_columns: what of a label row enters beside its key and event time. A lake table gives by default all
            that its contract states and that is no knowledge of the future; for a path it has to be stated.
        versions: Delta version to read, by table name or path; the others are read at their latest.
        sequence_length: actions of a behaviour sequence; `sequence_lengths` by view comes before it.
        sequences: "inline" stores a behaviour sequence as lists in each row, "pointers" as a slice of a log that holds
            each action once. Both are read alike.
        known_by: "event" gives what was true at the time of the label, "written" what had been written by then.
        space_id: the embedding space that its content ids are to be read in; None when that is left open. Features
            of a view that is keyed by `space_id` are those of this space.
        format: "delta" lays a transaction log beside the Parquet files.
    """

    name: str
    start: datetime
    end: datetime
    settled_by: datetime | None = None
    feature_service: str = "ctr_ranking_v1"
    label_table: str = "impressions"
    sequence_length: int = 50
    space_id: str | None = None
    label_key: tuple[str, ...] = ()
    label_event_time: str | None = None
    label_columns: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    sequence_lengths: Mapping[str, int] = field(default_factory=dict)
    known_by: KnownBy = "event"
    format: Format = "parquet"
    sequences: Sequences = "inline"

    def __post_init__(self) -> None:
        moments = {"start": self.start, "end": self.end, "settled_by": self.settled_by}
        for what, moment in moments.items():
            if moment is not None and moment.tzinfo is None:
                raise InputError(f"training set {self.name}: {what} {moment} has no time zone")
        if self.start >= self.end:
            raise InputError(f"training set {self.name}: start {self.start} is not before end {self.end}")
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise InputError(f"training set name {self.name!r}: expected a plain folder name")
        for what, allowed in CHOICES.items():
            if (found := getattr(self, what)) not in allowed:
                raise InputError(f"training set {self.name}: {what} is one of {', '.join(allowed)}, found {found!r}")
        if short := {name: length for name, length in self.lengths.items() if length < 1}:
            raise InputError(f"training set {self.name}: sequences of {short} actions; a length is 1 or more")

    @property
    def settled(self) -> datetime:
        """When the labels have to be settled."""
        return self.settled_by or self.end

    @property
    def lengths(self) -> dict[str, int]:
        """Actions of a sequence by view, and by "" of every other view."""
        return {"": self.sequence_length, **self.sequence_lengths}

    def with_lengths(self, lengths: Mapping[str, int]) -> Declaration:
        """The same with other lengths, given as `lengths` gives them; what they do not name stays."""
        by_view = {view: length for view, length in lengths.items() if view}
        return replace(
            self,
            sequence_length=lengths.get("", self.sequence_length),
            sequence_lengths={**self.sequence_lengths, **by_view},
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that reproduces a training set, and what came of it.

    Attributes:
        training_set_id: hash of all the rest.
        table_versions: Delta version read, by table name; -1 for a table that had not been written.
        definitions: the feature views as they were defined, and `definitions_hash` of them.
        code_version: version of moonlake that built it.
        libraries: versions of what decides how rows become bytes.
        label_key: columns that name a row.
        label_hash: hash of the label rows, in order.
        columns: Arrow type by the name of each stored column.
        files: hash of each file below `rows`, by its name.
    """

    declaration: Declaration
    table_versions: dict[str, int]
    definitions: list[dict[str, Any]]
    definitions_hash: str
    code_version: str
    libraries: dict[str, str] = field(default_factory=dict)
    label_key: tuple[str, ...] = ("impression_id",)
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
        for name in ("label_key", "label_columns"):
            declared[name] = tuple(declared.get(name, ()))
        document["label_key"] = tuple(document.get("label_key", ("impression_id",)))
        return cls(declaration=Declaration(**declared), **document)

    def _inputs(self) -> dict[str, Any]:
        document = self._document()
        names = ("declaration", "table_versions", "definitions_hash", "code_version", "libraries")
        return {name: document[name] for name in names}

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
        """The Arrow schema of the rows as they are read."""
        return self.expand(self._stored.empty_table()).schema

    def dataset(self) -> ds.Dataset:
        """The rows as they are stored, in order, as a lazy Arrow dataset; `expand` lays pointers of sequences out."""
        return ds.dataset([str(path) for path in self._paths()], format="parquet")

    def expand(self, stored: pa.Table, features: Sequence[str] | None = None) -> pa.Table:
        """Stored rows with the lists of behaviour sequences, or of some of their features, in place of pointers."""
        for view, log in self._logs().items():
            start, stop = pointer_names(view)
            if start not in stored.column_names:
                continue
            wanted = [name for name in log.actions.column_names if features is None or name in features]
            bounds = (stored[name].to_numpy() for name in (start, stop))
            lists = SequenceLog(log.actions.select(wanted)).expand(*bounds)
            place = stored.column_names.index(start)
            stored = stored.drop_columns([start, stop])
            for offset, name in enumerate(wanted):
                stored = stored.add_column(place + offset, name, lists[name])
        return stored

    def read(
        self, columns: Sequence[str] | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> pa.Table:
        """Rows with an event time in [start, end), ordered by event time and label key.

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
        return self.rows_of(self.dataset(), known if columns is None else columns, where)

    def rows_of(self, stored: ds.Dataset, columns: Sequence[str], where: ds.Expression) -> pa.Table:
        """Columns of the rows that meet a condition, sequences laid out.

        Args: stored: what `dataset` gave; one that is used again has its metadata read once.
        """
        names = [name for name in columns if name in self._stored.names]
        for view, log in self._logs().items():
            if set(log.actions.column_names) & set(columns):
                names += pointer_names(view)
        return self.expand(stored.to_table(columns=names, filter=where), columns).select(list(columns))

    @property
    def _stored(self) -> pa.Schema:
        return pq.read_schema(self._paths()[0])

    def _logs(self) -> dict[str, SequenceLog]:
        """The log of each sequence view that is stored as pointers."""
        names = [Path(name) for name in self.manifest.files or {} if name.startswith(f"{SEQUENCE_LOGS}/")]
        return {name.stem: SequenceLog.open(self.folder / "rows" / name) for name in names}

    def _paths(self) -> list[Path]:
        return [self.folder / "rows" / name for name in sorted(self.manifest.files or {}) if name.endswith(".parquet")]


def numbers_by_name(pairs: Sequence[str]) -> dict[str, int]:
    """What a command line says of versions and lengths: NAME=NUMBER, and a bare number by "".

    >>> numbers_by_name(["50", "user_behavior_sequence_v1=1000"])
    {'': 50, 'user_behavior_sequence_v1': 1000}
    """
    numbers: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        if not number.isdecimal():
            raise InputError(f"{pair!r}: expected NAME=NUMBER, such as products=3")
        numbers[name] = int(number)
    return numbers


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
        "labels": f"{declared.label_table}, settled by {declared.settled.isoformat()}",
        "feature service": declared.feature_service,
        "sequence length": ", ".join(f"{view} {length}".strip() for view, length in declared.lengths.items()),
        "sequences": declared.sequences,
        "known by": declared.known_by,
        "space": declared.space_id or "open",
        "table versions": manifest.table_versions,
        "columns": ", ".join(manifest.columns or {}),
    }
