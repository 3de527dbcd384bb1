"""Staged sources: the one writer that lays rows down in the own-files form, and `source.json` that describes them.

A staged source is a folder `<home>/staging/<name>/` with one folder of Parquet files a kind (all kinds are there, empty
ones too), `refused/` for records that could not even be read, and `source.json`. It appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moonlake.errors import BatchRejected, NotFound, SchemaMismatch
from moonlake.files import publish_folder
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from sources.own_files.schema import KINDS, REFUSED_SCHEMA

SOURCE_FILE = "source.json"
MAX_REFUSED_VALUE_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Facts about a staged source, kept in its `source.json`.

    Attributes:
        simulated: true when behaviour was simulated; every result on it is labelled so.
        window: first and last moment of the behaviour; None without any.
        t1, t2: the honest protocol: encoder data < t1 <= CTR training < t2 <= test.
        fingerprint: hash of everything that the stage was made from.
        staged, refused: rows per kind; rows submitted = staged + refused.
        ignored: columns of input files that have no place in the form, per kind.
        repaired: cells that say nothing and were taken for null, by rule; their rows are staged.
    """

    name: str
    simulated: bool
    kind: str
    window: tuple[datetime, datetime] | None
    t1: datetime | None
    t2: datetime | None
    notes: str
    fingerprint: str
    staged: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)

    def has(self, kind: str) -> bool:
        """True when the source submitted anything of the kind, good or not."""
        return bool(self.staged.get(kind) or self.refused.get(kind))

    @classmethod
    def read(cls, folder: Path) -> SourceInfo:
        """The description of a staged source. Raises NotFound when the folder is not one."""
        path = folder / SOURCE_FILE
        if not path.is_file():
            raise NotFound(f"{folder} is not a staged source: it has no {SOURCE_FILE}; stage a source first")
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("t1", "t2"):
            values[name] = values[name] and datetime.fromisoformat(values[name])
        if values["window"]:
            start, end = values["window"]
            values["window"] = (datetime.fromisoformat(start), datetime.fromisoformat(end))
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Lay the description down as `source.json`."""
        values = asdict(self)
        for name in ("t1", "t2"):
            values[name] = values[name] and values[name].isoformat()
        values["window"] = self.window and [moment.isoformat() for moment in self.window]
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        # A file name that is not UTF-8 has lone surrogates, which JSON can hold as escapes.
        (folder / SOURCE_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


class StageWriter:
    """Takes the rows of a source, kind by kind and batch by batch, into a folder that nobody reads yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staged = dict.fromkeys(KINDS, 0)
        self.refused = dict.fromkeys(KINDS, 0)
        self._rules: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._files: dict[str, pq.ParquetWriter] = {}
        self._info: SourceInfo | None = None
        self._spans: dict[str, tuple[datetime, datetime]] = {}

    def write(self, kind: str, rows: pa.Table | pa.RecordBatch) -> None:
        """Add rows of a kind. Raises SchemaMismatch when they do not have exactly its columns."""
        schema = KINDS[kind].schema()
        if set(rows.schema.names) != set(schema.names):
            raise SchemaMismatch(f"kind {kind}: expected columns {schema.names}, found {rows.schema.names}")
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._file(kind, schema).write_table(table.select(schema.names).cast(schema))
        self.staged[kind] += len(table)
        if "event_timestamp" in schema.names and len(table) > table["event_timestamp"].null_count:
            batch = pc.min_max(table["event_timestamp"]).as_py()
            first, last = self._spans.get(kind, (batch["min"], batch["max"]))
            self._spans[kind] = (min(first, batch["min"]), max(last, batch["max"]))

    def span(self, kind: str) -> tuple[datetime, datetime] | None:
        """First and last event time of the kind so far, None without rows."""
        return self._spans.get(kind)

    def refuse(self, kind: str, rule: str, values: Sequence[object]) -> None:
        """Add records that could not become rows of the kind; ingestion writes them to `rejects`."""
        if not values:
            return
        texts = [json.dumps(value, ensure_ascii=False, default=str) for value in values]
        # A byte that was not UTF-8 is a lone surrogate by now; as an escape it can be stored.
        cut = [text.encode(errors="backslashreplace").decode()[:MAX_REFUSED_VALUE_CHARACTERS] for text in texts]
        rows = pa.table([[kind] * len(cut), [rule] * len(cut), cut], schema=REFUSED_SCHEMA)
        self._file("refused", REFUSED_SCHEMA).write_table(rows)
        self.refused[kind] += len(cut)
        self._rules[kind][rule] += len(cut)

    def check_share(self, kind: str, where: str) -> None:
        """Raise BatchRejected unless a kind may lose as many rows as were refused.

        Args: where: what the rows were read from, for the message.
        Raises: BatchRejected: too large a share was refused.
        """
        staged, refused = self.staged[kind], self.refused[kind]
        if refused > TABLES[KINDS[kind].table].max_reject_share * (staged + refused):
            worst, total = self._rules[kind].most_common(1)[0][0], staged + refused
            raise BatchRejected(
                f"{where}: {refused} of {total} rows cannot be read (most by rule {worst}); nothing was staged"
            )

    def read_back(self, kind: str) -> Iterator[pa.Table]:
        """The rows of a kind that were written, in batches; no more of them can be written from then on."""
        self._file(kind, KINDS[kind].schema()).close()
        for batch in pq.ParquetFile(self.folder / kind / "part-00000.parquet").iter_batches():
            yield pa.Table.from_batches([batch])

    def describe(self, info: SourceInfo) -> None:
        """Say what the source is; must be called once before the stage ends."""
        self._info = info

    def finish(self) -> None:
        """Close every file, and lay down empty ones for kinds without rows, and `source.json`."""
        if self._info is None:
            raise AssertionError(f"stage {self.folder} was not described")
        for kind in KINDS.values():
            self._file(kind.name, kind.schema())
        self._file("refused", REFUSED_SCHEMA)
        self.close()
        values = {name: getattr(self._info, name) for name in self._info.__slots__}
        SourceInfo(**{**values, "staged": self.staged, "refused": self.refused}).write(self.folder)

    def close(self) -> None:
        """Close every open file."""
        for writer in self._files.values():
            writer.close()

    def _file(self, kind: str, schema: pa.Schema) -> pq.ParquetWriter:
        if kind not in self._files:
            path = self.folder / kind / "part-00000.parquet"
            path.parent.mkdir()
            self._files[kind] = pq.ParquetWriter(path, schema, compression="zstd")
        return self._files[kind]


@contextmanager
def new_stage(settings: Settings, name: str) -> Iterator[StageWriter]:
    """A writer for the named source; the source appears under `settings.staging` when the block ends without error."""
    with publish_folder(stage_path(settings, name)) as folder:
        writer = StageWriter(folder)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def stage_path(settings: Settings, name: str) -> Path:
    """The folder that the named source is staged in. Raise InputError unless the name is a plain one."""
    return settings.staged(name)


def is_staged(settings: Settings, name: str, fingerprint: str) -> bool:
    """True when the named source was staged from exactly the same inputs."""
    folder = stage_path(settings, name)
    return (folder / SOURCE_FILE).is_file() and SourceInfo.read(folder).fingerprint == fingerprint
