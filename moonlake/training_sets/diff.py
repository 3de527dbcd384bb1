"""The differences between two training sets: inputs, columns and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from moonlake.arrays import Int64s
from moonlake.errors import NotFound
from moonlake.lake.column_diff import unequal
from moonlake.point_in_time import encode_keys
from moonlake.training_sets.manifest import SPEC_KEY, Manifest
from moonlake.training_sets.training_set import TrainingSet

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two training sets, A and B.

    Attributes:
        inputs: one line for each difference of specification, versions, definitions and code.
        columns: one line for each column that was added, removed or has another type.
        only_in_a, only_in_b: rows whose event time and label key the other has not.
        in_both: rows that both have.
        changed: of these, how many differ, by column; columns without a change are left out.
    """

    inputs: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    only_in_a: int = 0
    only_in_b: int = 0
    in_both: int = 0
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def same_rows(self) -> bool:
        """True when both hold the same columns and values."""
        return not (self.columns or self.only_in_a or self.only_in_b or self.changed)


def diff(a: TrainingSet, b: TrainingSet) -> Difference:
    """The difference between A and B: their inputs, and their rows by event time and label key.

    Row groups are compared span by span of event time, so that memory does not grow with the sets. Where the manifests
    state the same files, nothing is read.

    Raises: NotFound: rows cannot be matched, as their label keys have other names.
    """
    if a.manifest.label_key != b.manifest.label_key:
        raise NotFound(
            f"rows of {a.folder.name} are named by {', '.join(a.manifest.label_key)}, those of {b.folder.name} by "
            f"{', '.join(b.manifest.label_key)}: they cannot be compared"
        )
    inputs = list(_input_changes(a.manifest, b.manifest))
    if a.manifest.files == b.manifest.files:
        return Difference(inputs, in_both=a.manifest.rows)
    left, right = a.schema, b.schema
    types = {name: (left.field(name).type, right.field(name).type) for name in left.names if name in right.names}
    columns = [f"- {name} {left.field(name).type}" for name in left.names if name not in types]
    columns += [f"+ {name} {right.field(name).type}" for name in right.names if name not in types]
    columns += [f"{name} {was} -> {now}" for name, (was, now) in types.items() if was != now]
    key = [*a.manifest.label_key, "event_timestamp"]
    comparable = [name for name, (was, now) in types.items() if was == now]
    counts = dict.fromkeys(("only_in_a", "only_in_b", "in_both"), 0)
    changed = dict.fromkeys(comparable, 0)
    for rows_a, rows_b in _spans(a, b, comparable):
        in_a, in_b = _matches(rows_a.select(key), rows_b.select(key))
        counts["in_both"] += len(in_a)
        counts["only_in_a"] += len(rows_a) - len(in_a)
        counts["only_in_b"] += len(rows_b) - len(in_b)
        for name in comparable:
            changed[name] += int(unequal(_taken(rows_a[name], in_a), _taken(rows_b[name], in_b)).sum())
    return Difference(inputs, columns, **counts, changed={name: count for name, count in changed.items() if count})


def definition_changes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences between the views of two manifests, one line each."""
    old, new = ({str(view.get("alias", view["view"])): view for view in views} for views in (before, after))
    lines = [f"view {name} is gone" for name in old if name not in new]
    lines += [f"view {name} is new" for name in new if name not in old]
    for name in sorted(old.keys() & new.keys()):
        lines += [f"view {name}: {line}" for line in _changes(old[name], new[name])]
    return lines


def _input_changes(a: Manifest, b: Manifest) -> Iterator[str]:
    """Differences of specification, versions, definitions and code, without what is compared of the rows themselves."""
    left, right = (json.loads(manifest.as_json()) for manifest in (a, b))
    yield from (f"specification: {line}" for line in _changes(left[SPEC_KEY], right[SPEC_KEY]))
    yield from (f"version of {line}" for line in _changes(left["table_versions"], right["table_versions"]))
    yield from definition_changes(a.definitions, b.definitions)
    built = ({"moonlake": manifest.code_version, **manifest.libraries} for manifest in (a, b))
    yield from (f"built by {line}" for line in _changes(*built))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = list(dict.fromkeys([*old, *new]))
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _spans(a: TrainingSet, b: TrainingSet, columns: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The rows of both, span by span of event time; the spans follow the row groups and leave nothing out."""
    cuts = sorted({*_group_starts(a), *_group_starts(b)})
    event = ds.field("event_timestamp")
    sources = a.dataset(), b.dataset()
    for start, end in zip([None, *cuts[1:]], [*cuts[1:], None], strict=True):
        where = ds.scalar(True)
        if start is not None:
            where = where & (event >= pa.scalar(start, _TIMESTAMP))
        if end is not None:
            where = where & (event < pa.scalar(end, _TIMESTAMP))
        yield a.rows_of(sources[0], columns, where), b.rows_of(sources[1], columns, where)


def _group_starts(found: TrainingSet) -> Iterator[datetime]:
    for path in found.dataset().files:
        parquet = pq.ParquetFile(path)
        column = parquet.schema_arrow.get_field_index("event_timestamp")
        for group in range(parquet.metadata.num_row_groups):
            yield parquet.metadata.row_group(group).column(column).statistics.min


def _taken(column: pa.ChunkedArray, rows: Int64s) -> pa.ChunkedArray:
    """The rows of a column; lists are not copied where all are asked for in their order."""
    return column if np.array_equal(rows, np.arange(len(column))) else column.take(rows)


def _matches(a: pa.Table, b: pa.Table) -> tuple[Int64s, Int64s]:
    """Row numbers in A and in B of the rows that both have, pair by pair."""
    codes_a, codes_b = encode_keys(a, b)
    order = np.argsort(codes_b, kind="stable")
    at = np.searchsorted(codes_b[order], codes_a)
    found = np.flatnonzero(at < len(order))
    found = found[codes_b[order[at[found]]] == codes_a[found]]
    return found, order[at[found]]
