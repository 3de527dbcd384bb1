"""Training sets: specification, manifest, and how to read them. Needs pyarrow only.

A training set is a folder with `rows/*.parquet` and `manifest.json`, which is written last: a folder without one is
no training set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake import frames
from moonlake.errors import InputError, NotFound
from moonlake.lake.sequence_logs import SequenceLog, pointer_names
from moonlake.training_sets.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

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

    def __repr__(self) -> str:
        spec, columns = self.manifest.spec, len(self.manifest.columns or {})
        window = f"[{spec.start.isoformat()}, {spec.end.isoformat()})"
        return f"<training set {spec.name}: {len(self):,} rows of {columns} columns, labels of {window}>"

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
        wanted = self._known(columns)
        where = ds.scalar(True)
        moment = pa.timestamp("us", tz="UTC")
        if start is not None:
            where = where & (ds.field("event_timestamp") >= pa.scalar(start, moment))
        if end is not None:
            where = where & (ds.field("event_timestamp") < pa.scalar(end, moment))
        return self.rows_of(self.dataset(), wanted, where)

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in tables of so many, the last one being shorter; a few batches are in memory at a time.

        Raises: InputError: fewer than one row.   NotFound: an unknown column.
        """
        if rows < 1:
            raise InputError(f"training set {self.folder}: batches of {rows} rows; expected 1 or more")
        wanted = self._known(columns)
        names = self._stored_columns(wanted)
        held = self._stored.empty_table().select(names)
        for batch in self.dataset().to_batches(names, batch_size=rows, batch_readahead=1, fragment_readahead=1):
            held = pa.concat_tables([held, pa.table(batch).replace_schema_metadata(None)])
            while len(held) >= rows:
                yield self.expand(held.slice(0, rows), wanted).select(wanted)
                held = held.slice(rows)
        if len(held):
            yield self.expand(held, wanted).select(wanted)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, sequences laid out as lists, ordered by event time and label key."""
        return self.read(columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The same as a pandas frame (extra `pandas`)."""
        return frames.to_pandas(self.read(columns))

    def to_polars(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The same as a polars frame (extra `polars`)."""
        return frames.to_polars(self.read(columns))

    def rows_of(self, stored: ds.Dataset, columns: Sequence[str], where: ds.Expression) -> pa.Table:
        """Columns of the rows that meet a condition, sequences laid out.

        Args: stored: what `dataset` gave; one that is used again has its metadata read once.
        """
        names = self._stored_columns(columns)
        return self.expand(stored.to_table(columns=names, filter=where), columns).select(list(columns))

    def _stored_columns(self, columns: Sequence[str]) -> list[str]:
        """The columns of the files that hold the wanted ones; pointers for those of sequences that are so stored."""
        names = [name for name in columns if name in self._stored.names]
        for view, log in self._logs().items():
            if set(log.actions.column_names) & set(columns):
                names += pointer_names(view)
        return names

    def _known(self, columns: Sequence[str] | None) -> list[str]:
        """The columns themselves, by default all. Raise NotFound unless the training set has them."""
        known = self.schema.names
        if unknown := sorted(set(columns or ()) - set(known)):
            raise NotFound(f"training set {self.folder} has no columns {unknown}; it has {', '.join(known)}")
        return known if columns is None else list(columns)

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
