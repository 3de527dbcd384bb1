"""The actions of a behaviour log as narrow arrays, and their wide columns by number; from packed rows or a plain log.

The number of an action is its place among all actions in the order in which the table holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from moonlake.arrays import Bools, Int64s
from moonlake.errors import SchemaMismatch
from moonlake.feast_delta.joins import filters
from moonlake.feast_delta.joins.plan import ViewJoin
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.lake.parquet_rows import RowGroups, mask
from moonlake.point_in_time import NO_KEY, Keys, KnownBy, latest_rows, microseconds

ACTIONS_PER_READ = 4_000_000


@dataclass(frozen=True, slots=True)
class Actions:
    """Actions that label rows may see.

    Attributes:
        codes, times: int64 [actions], of the entity, and microseconds.
        written: int64 [actions], microseconds; None when the pull does not ask.
        ties: int64 [actions], order of actions of one entity at one time; None where that is the order of numbers.
        numbers: int64 [actions], ascending.
    """

    codes: Int64s
    times: Int64s
    written: Int64s | None
    ties: Int64s | None
    numbers: Int64s


class ActionLog(Protocol):
    """A log that is read twice: narrow to decide, wide for the actions that were chosen."""

    def __len__(self) -> int:
        """About how many actions there are to read."""

    def read(self, keys: Keys, codes: range, latest: int) -> Actions:
        """The actions with time <= latest of the keys with these codes."""

    def columns(self, numbers: Int64s) -> Iterator[pa.Table]:
        """The features of the actions with these ascending numbers, by feature name, in pieces."""

    def nbytes(self) -> int:
        """Bytes of the features of all actions, encoded as they are stored."""


def action_log(join: ViewJoin, source: BehaviorSequenceSource, where: ds.Expression, known_by: KnownBy) -> ActionLog:
    """The log behind a sequence view, without what `where` rules out."""
    groups = RowGroups(join.snapshot.dataset, where & filters.row_filter(join))
    kind = PackedLog if source.packed else PlainLog
    return kind(join, source, groups, known_by)


class PackedLog:
    """Actions in rows of parallel arrays."""

    def __init__(self, join: ViewJoin, source: BehaviorSequenceSource, groups: RowGroups, known_by: KnownBy) -> None:
        self.join = join
        self.source = source
        self.groups = groups
        self.written_column = source.written_column if known_by == "written" else None
        self._starts = np.zeros(1, np.int64)  # of each packed row: the number of its first action

    def __len__(self) -> int:
        return self.groups.values(self.source.time_column)

    def nbytes(self) -> int:
        return self.groups.nbytes(column for column, _ in self.join.features)

    def read(self, keys: Keys, codes: range, latest: int) -> Actions:
        names = [column for _, column in self.join.keys]
        lists = [self.source.time_column, *([self.written_column] if self.written_column else [])]
        types = [self.source.event_type_column] if self.source.event_types else []
        conditions = [column for column, _, _ in self.source.where]
        rows_per_read = max(ACTIONS_PER_READ * len(self.groups) // max(len(self), 1), 1)
        found, starts = [], [np.zeros(1, np.int64)]
        for _, rows in self.groups.blocks([*dict.fromkeys([*names, *lists, *types, *conditions])], rows_per_read):
            code = keys.encode(rows.select(names))
            lengths = _lengths(rows[self.source.time_column])
            starts.append(starts[-1][-1] + np.cumsum(lengths))
            kept = (code >= codes.start) & (code < codes.stop)
            if self.source.where:
                kept &= mask(rows, filters.row_filter(self.join))
            rows, lengths, code = rows.filter(pa.array(kept)), lengths[kept], code[kept]
            first = np.concatenate([starts[-2][-1:], starts[-1][:-1]])[kept]
            flat = self._flat(rows, [*lists, *types], lengths)
            mine = flat[self.source.time_column].to_numpy() <= latest
            if types:
                wanted = pa.array(self.source.event_types, flat[types[0]].type)
                mine &= pc.is_in(flat[types[0]], value_set=wanted).to_numpy()
            columns = [np.repeat(code, lengths), *(flat[name].to_numpy() for name in lists), _counted(first, lengths)]
            found.append([column[mine] for column in columns])
        self._starts = np.concatenate(starts)
        of, times, *written, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Actions(of, times, written[0] if written else None, None, numbers)

    def columns(self, numbers: Int64s) -> Iterator[pa.Table]:
        row = np.searchsorted(self._starts, numbers, side="right") - 1
        rows, count = np.unique(row, return_counts=True)
        wanted = [*dict.fromkeys([column for column, _ in self.join.features])]
        taken_rows = taken = 0
        for piece in self.groups.pieces(wanted, rows):
            here = slice(taken_rows, taken_rows + len(piece))
            lengths = self._starts[rows[here] + 1] - self._starts[rows[here]]
            flat = self._flat(piece, wanted, lengths)
            stop = taken + int(count[here].sum())
            shift = np.repeat(self._starts[rows[here]] - (np.cumsum(lengths) - lengths), count[here])
            few = flat.take(pa.array(numbers[taken:stop] - shift))
            yield pa.table({name: few[column] for column, name in self.join.features})
            taken_rows, taken = here.stop, stop

    def _flat(self, rows: pa.Table, columns: Sequence[str], lengths: Int64s) -> pa.Table:
        """The elements of list columns. Raises SchemaMismatch when the lists of a row differ in length."""
        for column in columns:
            if not np.array_equal(_lengths(rows[column]), lengths):
                raise SchemaMismatch(
                    f"table {self.source.subject}: lists of {column} and {self.source.time_column} differ in length"
                )
        return pa.table({column: pc.list_flatten(rows[column]) for column in columns})


class PlainLog:
    """A row for each action."""

    def __init__(self, join: ViewJoin, source: BehaviorSequenceSource, groups: RowGroups, known_by: KnownBy) -> None:
        self.join = join
        self.source = source
        self.groups = groups
        self.known_by = known_by

    def __len__(self) -> int:
        return len(self.groups)

    def nbytes(self) -> int:
        return self.groups.nbytes(column for column, _ in self.join.features)

    def read(self, keys: Keys, codes: range, latest: int) -> Actions:
        source, time_column, created_column = self.source, self.source.time_column, self.join.created_column
        names = [column for _, column in self.join.keys]
        times = [time_column, *([created_column] if created_column else [])]
        asked = [source.identity] if source.identity else []
        types = [source.event_type_column] if source.event_types else []
        conditions = [column for column, _, _ in source.where]
        columns = [*dict.fromkeys([*names, *times, *asked, *source.order, *types, *conditions])]
        found, texts = [], []
        for first, rows in self.groups.blocks(columns, ACTIONS_PER_READ):
            code = keys.encode(rows.select(names))
            kept = (code >= codes.start) & (code < codes.stop) & rows[time_column].is_valid().to_numpy()
            if source.where:
                kept &= mask(rows, filters.row_filter(self.join))
            if types:
                wanted = pa.array(source.event_types, rows[types[0]].type)
                kept &= pc.is_in(rows[types[0]], value_set=wanted).to_numpy()
            rows = rows.filter(pa.array(kept))
            moments = [microseconds(rows[column], column) for column in times]
            found.append([code[kept], *moments, first + np.flatnonzero(kept)])
            texts.append(rows.select([*dict.fromkeys([*asked, *source.order])]))
        of, when, *created, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        text = pa.concat_tables(texts)
        kept = when <= latest
        if source.identity:
            kept &= self._one_each(text.select([source.identity]), created[0] if created else None)
        of, when, numbers = of[kept], when[kept], numbers[kept]
        written = created[0][kept] if created and self.known_by == "written" else None
        ties = _tie_order(of, when, text.filter(pa.array(kept)), source.order) if source.order else None
        return Actions(of, when, written, ties, numbers)

    def columns(self, numbers: Int64s) -> Iterator[pa.Table]:
        for piece in self.groups.pieces([*dict.fromkeys([column for column, _ in self.join.features])], numbers):
            yield pa.table({name: piece[column] for column, name in self.join.features})

    def _one_each(self, identity: pa.Table, created: Int64s | None) -> Bools:
        """bool [rows]: the row that was written last of each action; first, where what had been written counts."""
        _, codes = Keys.of(identity)
        when = np.zeros(len(codes), np.int64) if created is None else created
        kept = codes == NO_KEY  # an action without a name is one of its own
        kept[latest_rows(codes, -when if self.known_by == "written" else when)] = True
        return kept


def _lengths(lists: pa.ChunkedArray) -> Int64s:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _counted(first: Int64s, lengths: Int64s) -> Int64s:
    """first[0], first[0] + 1, ... for lengths[0] numbers, then the same from first[1], ..."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))


def _tie_order(codes: Int64s, times: Int64s, rows: pa.Table, order: Sequence[str]) -> Int64s:
    """int64 [rows]: 0, 1, ... among the rows of one key and time, by the columns of `order`; 0 for all others."""
    by_time = np.lexsort((times, codes))
    same = np.flatnonzero((np.diff(codes[by_time]) == 0) & (np.diff(times[by_time]) == 0))
    tied = by_time[np.union1d(same, same + 1)]
    ranks = np.zeros(len(codes), np.int64)
    keys = [(column, "ascending") for column in order]
    ranks[tied[pc.sort_indices(rows.select(list(order)).take(pa.array(tied)), sort_keys=keys).to_numpy()]] = np.arange(
        len(tied)
    )
    return ranks
