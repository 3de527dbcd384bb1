"""Parts of a table contract: columns, tables and the rules that follow from them.

`moonlake.schema.tables` writes the contracts down. Everything else is derived: the Arrow schema
(`moonlake.schema.arrow`), the Spark schema (`moonlake.spark.session`), the row rules and the Great Expectations suite
(`moonlake.schema.row_rules`) and the Feast fields (`moonlake.feast_delta`). This module imports nothing heavy, so that
a DAG file can read a contract in a millisecond.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from moonlake.errors import ContractError

ColumnType = Literal[
    "string",
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "timestamp",
    "binary",
    "list<string>",
    "list<int64>",
    "list<float32>",
    "map<string,string>",
]
Writing = Literal["append", "insert", "merge", "replace_window"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type and everything that a reader or a check needs to know about its values.

    `minimum` and `maximum` bound a number, `max_length` the characters of a string, the bytes of a binary or the
    elements of a list, `values` lists what a string may be, `pattern` is a regular expression for the whole string.
    Bounds speak of present values: whether a value may be absent is `nullable` alone.

    `never_feature` says why no model may ever read the column of a label row as a feature. Where `in_training_rows` is
    false, a training row does not even have it: nothing is learnt or checked by it.
    """

    name: str
    type: ColumnType
    meaning: str
    nullable: bool = False
    unit: str | None = None
    shape: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    min_length: int | None = None
    values: tuple[str, ...] = ()
    pattern: str | None = None
    never_feature: str | None = None
    in_training_rows: bool = True

    def __post_init__(self) -> None:
        if not self.in_training_rows and self.never_feature is None:
            raise ValueError(f"column {self.name}: training rows do not have it, so say why it is never a feature")


@dataclass(frozen=True, slots=True)
class RowRule:
    """A named condition over several columns of one row; `sql` is true for a good row.

    The expression keeps to what Spark SQL and DataFusion (delta-rs) both read.
    """

    name: str
    sql: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One Delta table: the only place where its schema is written.

    Args:
        grain: what one row is, as a sentence.
        key: the columns that name a fact; with `event_time` (where there is one) and `created_at` they name a row.
        writing: how its one writer commits. "append" never changes a row that was readable once, and keeps restated
            facts beside the first ones; "insert" leaves a key that is there as it is; "merge" keeps one row a key,
            the newest; "replace_window" rewrites a span of event time.
        cluster_by: liquid clustering columns. Only Spark can write a clustered table; empty means that any writer can.
        max_reject_share: a batch of which a larger share breaks row rules is refused whole.
        guarded: written by its writer alone, which looks at more than the rows; every other append is refused.
    """

    name: str
    grain: str
    key: tuple[str, ...]
    writer: str
    writing: Writing
    columns: tuple[Column, ...]
    event_time: str | None = "event_timestamp"
    cluster_by: tuple[str, ...] = ()
    rules: tuple[RowRule, ...] = ()
    max_reject_share: float = 0.5
    guarded: bool = False

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError(f"table {self.name}: a column is named twice in {names}")
        named = {*self.key, *self.cluster_by, *([self.event_time] if self.event_time else [])}
        if unknown := named - set(names):
            raise ValueError(f"table {self.name}: key, clustering or event time name no column: {sorted(unknown)}")

    def require_writer(self, writer: str | None) -> None:
        """Raise ContractError if the table is guarded and this is not its writer."""
        if self.guarded and writer != self.writer:
            raise ContractError(
                f"table {self.name} is written by {self.writer} alone, found {writer or 'no writer named'}: call that"
            )

    def missing_from(self, names: Collection[str]) -> list[Column]:
        """The nullable columns that a table with these columns lacks: they came into the contract after it was made."""
        return [column for column in self.columns if column.nullable and column.name not in names]

    def __getitem__(self, name: str) -> Column:
        """The column of that name. Raises KeyError, naming the table, if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}; it has {', '.join(self.names)}")

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The column names, in contract order."""
        return tuple(column.name for column in self.columns)

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns of which a batch may hold one value only: the key, and the event time of an append table."""
        if self.writing == "append" and self.event_time is not None:
            return (*self.key, self.event_time)
        return self.key

    @property
    def facts(self) -> tuple[str, ...]:
        """The columns that say something about the world: all but `created_at`, which is about the write."""
        return tuple(name for name in self.names if name != "created_at")
