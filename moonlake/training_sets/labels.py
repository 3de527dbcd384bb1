"""Label rows, each of which becomes a row of a training set: of a lake table, or of any Delta table at a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.dataset as ds

from moonlake.errors import InputError, NotFound
from moonlake.lake.versions import TableSnapshot, open_path
from moonlake.point_in_time import encode_keys, latest_rows, microseconds
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.tables import IMPRESSIONS, TABLES
from moonlake.settings import Settings
from moonlake.training_sets.spec import TrainingSetSpec

EVENT_TIMESTAMP = "event_timestamp"
"""What the event time of a label row is called in a training set, whatever its own table calls it."""

LABEL_COLUMNS = (
    "impression_id",
    "request_id",
    "user_id",
    "query_id",
    "product_id",
    "content_id",
    "query_content_id",
    EVENT_TIMESTAMP,
    "clicked",
)
"""What a training row takes from its impression. `position` and whatever follows the impression never enter."""

NEVER_ENTER = tuple(column.name for column in IMPRESSIONS if not column.in_training_rows)
"""Columns that no training row has: they follow from what was served, or come later, or speak of the write."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A label table at one version.

    Attributes:
        key: columns that name a label row; of rows with one key the one that was written last counts.
        event_time: column of the event time.
        columns: columns that enter a training set, in order.
        created: column of the time of writing, where there is one; the order of commits decides what it leaves open.
        label_time: column of when the label was settled, where there is one.
    """

    subject: str
    snapshot: TableSnapshot
    key: tuple[str, ...]
    event_time: str
    columns: tuple[str, ...]
    created: str | None
    label_time: str | None

    @classmethod
    def open(cls, settings: Settings, spec: TrainingSetSpec, version: int | None = None) -> Self:
        """The label table of a specification, at a version or its latest.

        Raises:
            InputError: what a path needs is not stated, or a column is asked for that may never enter.
            NotFound: no such table, version or column.
        """
        if forbidden := [name for name in spec.label_columns if name in NEVER_ENTER]:
            raise InputError(f"training set {spec.name}: label columns {forbidden} never enter a training set")
        if "/" in spec.label_table and spec.label_table not in TABLES:
            found = cls._at_path(spec, version)
        else:
            found = cls._of_lake(settings, spec, version)
        present = found.snapshot.dataset.schema.names
        if unknown := [name for name in (*found.columns, *found.key, found.event_time) if name not in present]:
            raise NotFound(f"label table {found.subject} has no columns {unknown}; it has {', '.join(present)}")
        return found

    def read(self, spec: TrainingSetSpec) -> pa.Table:
        """The label rows of the window, each key once, by event time and key.

        Raises: InputError: there are none, or a key with a null in it.
        """
        event = ds.field(self.event_time)
        if pa.types.is_timestamp(of := self.snapshot.dataset.schema.field(self.event_time).type) and of.tz is None:
            raise InputError(f"label table {self.subject}: times of {self.event_time} have no time zone; state one")
        where = (event >= pa.scalar(spec.start, _TIMESTAMP)) & (event < pa.scalar(spec.end, _TIMESTAMP))
        if self.label_time:
            where = where & (ds.field(self.label_time) <= pa.scalar(spec.settled, _TIMESTAMP))
        named = dict.fromkeys([*self.columns, *self.key, self.event_time, *([self.created] if self.created else [])])
        rows = self.snapshot.dataset.to_table(columns=list(named), filter=where)
        if not len(rows):
            settled = f" with a label settled by {spec.settled}" if self.label_time else ""
            raise InputError(
                f"training set {spec.name}: table {self.subject} holds no label row in"
                f" [{spec.start}, {spec.end}){settled}"
            )
        rows = _written_last(rows, self.key, self.created, self.subject).select(self.columns)
        rows = rows.rename_columns([EVENT_TIMESTAMP if name == self.event_time else name for name in self.columns])
        return rows.sort_by([(name, "ascending") for name in (EVENT_TIMESTAMP, *self.key)]).combine_chunks()

    @classmethod
    def _of_lake(cls, settings: Settings, spec: TrainingSetSpec, version: int | None) -> Self:
        table = contract(spec.label_table)
        if table.event_time is None:
            raise InputError(f"table {table.name} has no event time, so that its rows cannot be labels")
        if spec.label_key or spec.label_event_time:
            raise InputError(f"label table {table.name}: its contract states key and event time; leave them out")
        entering = [name for name in table.facts if name not in NEVER_ENTER]
        if spec.label_columns:
            entering = list(dict.fromkeys([*table.key, *spec.label_columns, table.event_time]))
        elif table is IMPRESSIONS:
            entering = list(LABEL_COLUMNS)
        return cls(
            subject=table.name,
            snapshot=open_path(f"{settings.lake}/{table.name}", version, empty=arrow_schema(table)),
            key=table.key,
            event_time=table.event_time,
            columns=tuple(entering),
            created="created_at",
            label_time="label_time" if "label_time" in table.names else None,
        )

    @classmethod
    def _at_path(cls, spec: TrainingSetSpec, version: int | None) -> Self:
        needed = {
            "label_key": spec.label_key,
            "label_event_time": spec.label_event_time,
            "label_columns": spec.label_columns,
        }
        if unstated := [name for name, value in needed.items() if not value]:
            raise InputError(f"training set {spec.name}: for a label table at a path state {', '.join(unstated)}")
        event_time = str(spec.label_event_time)
        snapshot = open_path(spec.label_table, version)
        present = snapshot.dataset.schema.names
        return cls(
            subject=spec.label_table,
            snapshot=snapshot,
            key=spec.label_key,
            event_time=event_time,
            columns=tuple(dict.fromkeys([*spec.label_key, event_time, *spec.label_columns])),
            created="created_at" if "created_at" in present else None,
            label_time="label_time" if "label_time" in present else None,
        )


def _written_last(rows: pa.Table, key: tuple[str, ...], created: str | None, subject: str) -> pa.Table:
    """The latest row of each key: the one with the greatest (time of writing, position)."""
    keys = rows.select(list(key))
    if nulls := {name: column.null_count for name, column in zip(key, keys.columns, strict=True) if column.null_count}:
        raise InputError(f"label table {subject}: key columns with nulls in the window: {nulls}")
    _, codes = encode_keys(keys, keys)
    times = microseconds(rows[created], created) if created else codes * 0
    return rows.take(pa.array(latest_rows(codes, times)))
