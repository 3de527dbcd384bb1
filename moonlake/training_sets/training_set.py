"""Training sets: specification, manifest, and how to read them. Needs pyarrow only.

A training set is a folder with `rows/*.parquet` and `manifest.json`, which is written last: a folder without one is
no training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake.errors import NotFound
from moonlake.lake.sequence_logs import SequenceLog, pointer_names
from moonlake.training_sets.manifest import Manifest

SEQUENCE_LOGS = "_sequences"
"""Folder beside the files of rows with the log of each sequence view, for pointers. Readers of folders of Parquet and
Delta tables pass over names that begin so."""


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


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of the training set in a folder, or None where there is none."""
    try:
        return TrainingSet.open(folder).manifest
    except NotFound:
        return None
