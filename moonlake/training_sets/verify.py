"""Is a training set what its manifest says, and can it be built again? And how do two of them differ?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from moonlake.embeddings.releases import find
from moonlake.errors import MoonlakeError, NotFound
from moonlake.hashing import hash_of_file
from moonlake.lake.lake import Lake
from moonlake.lake.vacuum import ERASED, keeps_history
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.training_set import TrainingSet

FILE_RETENTION = ("delta.deletedFileRetentionDuration", timedelta(days=7))
LOG_RETENTION = ("delta.logRetentionDuration", timedelta(days=30))
"""Properties of a Delta table that say how long a removed file and a commit are kept, and Delta's defaults."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying a training set.

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
    """The moment at which rows were erased from a table; None if none were."""
    try:
        return DeltaTable(path).metadata().configuration.get(ERASED)
    except DeltaError:
        return None


def _kept_until(settings: Settings, subject: str, version: int) -> datetime | None:
    """The moment up to which the version can surely be read; None while it is the latest, which nothing removes."""
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
