"""Is a training set what its manifest says, and can it be built again? And how do two of them differ?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from moonlake.differences import unequal
from moonlake.errors import MoonlakeError, NotFound
from moonlake.lake import Lake
from moonlake.point_in_time import IntArray, encode_keys
from moonlake.retention import ERASED, keeps_history
from moonlake.settings import Settings
from moonlake.spaces import find
from moonlake.tables import TABLES
from moonlake.training_set_files import hash_of_file
from moonlake.training_sets import Manifest, TrainingSet

FILE_RETENTION = ("delta.deletedFileRetentionDuration", timedelta(days=7))
LOG_RETENTION = ("delta.logRetentionDuration", timedelta(days=30))
"""Properties of a Delta table that say how long a removed file and a commit are kept, and Delta's defaults."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of a training set.

    Attributes:
        problems: one line for each thing that is wrong.
        reproducible_until: from then on a table may lose what the set was made of; None while each version that it
            read is the latest of its table, or when no table can tell.
    """

    problems: tuple[str, ...]
    reproducible_until: datetime | None


def verify(settings: Settings, folder: Path) -> Verification:
    """The training set in a folder, held against its manifest, the lake's tables and its embedding space."""
    try:
        found = TrainingSet.open(folder)
    except MoonlakeError as error:
        return Verification((str(error),), None)
    manifest = found.manifest
    problems = [
        *_wrong_files(found),
        *versions_gone(settings, manifest.table_versions),
        *_wrong_space(settings, manifest),
    ]
    limits = [] if problems else [_kept_until(settings, *read) for read in manifest.table_versions.items()]
    return Verification(tuple(problems), min((limit for limit in limits if limit), default=None))


def versions_gone(settings: Settings, versions: Mapping[str, int]) -> list[str]:
    """One line for each version of a table that can no longer be read, of those that a manifest names."""
    problems = []
    for subject, version in versions.items():
        if version < 0:
            continue
        try:
            table = DeltaTable(_path(settings, subject), version=version)
        except DeltaError as error:
            erased = _erased_at(_path(settings, subject))
            why = f"rows were erased from it at {erased}, which wins over replay" if erased else error
            problems.append(f"table {subject} has no version {version} any more: {why}")
            continue
        local = [Path(uri) for uri in table.file_uris() if "://" not in uri]
        if gone := sum(not path.exists() for path in local):
            problems.append(f"table {subject} version {version}: {gone} of {len(local)} files were vacuumed")
    return problems


def _wrong_files(found: TrainingSet) -> Iterator[str]:
    stated = json.loads((found.folder / "manifest.json").read_text())["training_set_id"]
    if stated != found.manifest.training_set_id:
        yield f"manifest.json was changed: its id is {stated}, what it says has id {found.manifest.training_set_id}"
    for name, expected in (found.manifest.files or {}).items():
        path = found.folder / "rows" / name
        if not path.is_file():
            yield f"rows/{name} is missing"
        elif (is_now := hash_of_file(path)) != expected:
            yield f"rows/{name} was changed: its hash is {is_now}, expected {expected}"
    unknown = {str(path.relative_to(found.folder / "rows")) for path in (found.folder / "rows").rglob("*.parquet")}
    if unknown := unknown - (found.manifest.files or {}).keys():
        yield f"rows holds files that the manifest does not name: {', '.join(sorted(unknown))}"
    try:
        rows = found.dataset().count_rows()
    except (OSError, pa.ArrowInvalid) as error:
        yield f"rows cannot be read: {error}"
    else:
        if rows != found.manifest.rows:
            yield f"there are {rows} rows, expected {found.manifest.rows}"


def _wrong_space(settings: Settings, manifest: Manifest) -> Iterator[str]:
    if manifest.space_id is None:
        return
    try:
        space = find(Lake(settings), manifest.space_id)
    except NotFound as error:
        yield f"embedding space: {error}"
        return
    if space.trained_until is not None and space.trained_until > manifest.start:
        yield (
            f"embedding space {space} learnt from events until {space.trained_until.isoformat()}, "
            f"behind the start of the labels {manifest.start.isoformat()}"
        )


def reproducible(settings: Settings, versions: Mapping[str, int]) -> str:
    """Until when something can be made again of the table versions that its manifest names, in words."""
    if gone := versions_gone(settings, versions):
        return f"no longer: {gone[0]}"
    read = {subject: version for subject, version in versions.items() if version >= 0}
    limits = [_kept_until(settings, *each) for each in read.items()]
    if until := min((limit for limit in limits if limit), default=None):
        return f"until {until.isoformat(timespec='seconds')}; `moonlake lake maintain` keeps it for longer"
    if all(keeps_history(_path(settings, subject)) for subject in read):
        return "as long as it exists"
    return "as long as its tables stay as they are; `moonlake lake maintain` keeps it for longer"


def _erased_at(path: str) -> str | None:
    """When rows were erased from a table, if they were."""
    try:
        return DeltaTable(path).metadata().configuration.get(ERASED)
    except DeltaError:
        return None


def _kept_until(settings: Settings, subject: str, version: int) -> datetime | None:
    """How long the version can be read for certain; None while it is the latest, as nothing removes it then."""
    if version < 0:
        return None
    path = _path(settings, subject)
    latest, pinned = DeltaTable(path), DeltaTable(path, version=version)
    if latest.version() == version or keeps_history(path):
        return None
    commits = {commit["version"]: commit["timestamp"] for commit in latest.history()}
    limits = []
    if version in commits:
        limits.append(_moment(commits[version]) + _retention(latest, *LOG_RETENTION))
    if version + 1 in commits and set(pinned.file_uris()) - set(latest.file_uris()):
        limits.append(_moment(commits[version + 1]) + _retention(latest, *FILE_RETENTION))
    return min(limits, default=None)


def _retention(table: DeltaTable, name: str, default: timedelta) -> timedelta:
    stated = re.fullmatch(
        r"(?:interval )?(\d+) (week|day|hour|minute|second)s?", table.metadata().configuration.get(name, "")
    )
    return timedelta(**{f"{stated[2]}s": int(stated[1])}) if stated else default


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _path(settings: Settings, subject: str) -> str:
    return Lake(settings).path(subject) if subject in TABLES else subject


@dataclass(frozen=True, slots=True)
class Difference:
    """How training set B differs from A.

    Attributes:
        inputs: one line for each difference of declaration, versions, definitions and code.
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
    """How B differs from A: what they were made of, and their rows by event time and label key.

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
    """What differs between the views of two manifests, one line for each difference."""
    old, new = ({str(view.get("alias", view["view"])): view for view in views} for views in (before, after))
    lines = [f"view {name} is gone" for name in old if name not in new]
    lines += [f"view {name} is new" for name in new if name not in old]
    for name in sorted(old.keys() & new.keys()):
        lines += [f"view {name}: {line}" for line in _changes(old[name], new[name])]
    return lines


def _input_changes(a: Manifest, b: Manifest) -> Iterator[str]:
    """Declarations, versions, definitions and code, without what is compared of the rows themselves."""
    left, right = (json.loads(manifest.as_json()) for manifest in (a, b))
    yield from (f"declaration: {line}" for line in _changes(left["declaration"], right["declaration"]))
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


def _taken(column: pa.ChunkedArray, rows: IntArray) -> pa.ChunkedArray:
    """The rows of a column; lists are not copied where all are asked for in their order."""
    return column if np.array_equal(rows, np.arange(len(column))) else column.take(rows)


def _matches(a: pa.Table, b: pa.Table) -> tuple[IntArray, IntArray]:
    """Row numbers in A and in B of the rows that both have, pair by pair."""
    codes_a, codes_b = encode_keys(a, b)
    order = np.argsort(codes_b, kind="stable")
    at = np.searchsorted(codes_b[order], codes_a)
    found = np.flatnonzero(at < len(order))
    found = found[codes_b[order[at[found]]] == codes_a[found]]
    return found, order[at[found]]
