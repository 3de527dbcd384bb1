"""The vacuum that keeps every version that something names, and the end of a table's history."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

LOG = "_delta_log"


ERASED = "moonlake.erased"
"""Property of a table: when rows were erased from it, with all versions before."""


KEPT_FOR = timedelta(days=3650)
"""What the properties of a table say once a manifest names a version of it: as long as the manifest is there."""


RETENTIONS = ("logRetentionDuration", "deletedFileRetentionDuration")
"""The properties, behind "delta."."""


_OF_VERSION = re.compile(r"\.?(\d{20})\.")


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """Counts of the files that a vacuum removed, or would remove."""

    files: int
    bytes: int


def keeps_history(path: str) -> bool:
    """Whether a table's own properties let no clean-up take versions that manifests name."""
    stated = DeltaTable(path).metadata().configuration
    return all(stated.get(f"delta.{name}") == f"interval {KEPT_FOR.days} days" for name in RETENTIONS)


def vacuum(path: str, *, keep: Collection[int], feed_from: int | None, before: datetime, dry_run: bool) -> Vacuumed:
    """Remove what no kept version of a table needs and what is older than `before`.

    Args:
        keep: versions to keep beside the latest.
        feed_from: the change feed behind this version is kept; None if nobody reads it.
        before: all versions that were the latest at some time since then are kept, and files written since.
    """
    commits = _commits(path)
    latest = DeltaTable(path).version()
    past = [version for version, at in commits.items() if at <= before]
    start = max(past, default=min(commits, default=latest))
    start = max(min(start, latest if feed_from is None else feed_from), min(commits, default=latest))
    kept = _files_at(path, latest) | _files_at(path, start)
    for version in keep:
        if version < start:
            kept |= _files_at(path, version)
    for version in range(start + 1, latest + 1):
        kept |= _files_of_commit(path, version)
    gone = [info for info in _data_files(path) if info[0] not in kept and info[2] <= before]
    if not dry_run:
        system, root = file_system(path)
        for name, _, _ in gone:
            _remove(system, f"{root}/{name}")
    return Vacuumed(len(gone), sum(size for _, size, _ in gone))


def drop_history(path: str) -> int:
    """Remove every file and commit that the latest version of a table does not need; returns how many files went.

    The versions before it can be read no more, and the change feed begins behind it. Nobody may write meanwhile.
    """
    table = DeltaTable(path)
    table.create_checkpoint()
    version, kept = table.version(), _files_at(path, table.version())
    system, root = file_system(path)
    gone = [f"{root}/{name}" for name, _, _ in _data_files(path) if name not in kept]
    for info in system.get_file_info(pyarrow.fs.FileSelector(f"{root}/{LOG}", recursive=True)):
        of_version = _OF_VERSION.match(info.base_name)
        if info.type == pyarrow.fs.FileType.File and of_version and int(of_version[1]) < version:
            gone.append(info.path)
    for name in gone:
        _remove(system, name)
    return len(gone)


def file_system(folder: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a folder or URI, and the folder's path in it."""
    if "://" in folder:
        system, root = pyarrow.fs.FileSystem.from_uri(folder)
        return system, root
    return pyarrow.fs.LocalFileSystem(), str(Path(folder).absolute())


def _commits(path: str) -> dict[int, datetime]:
    return {
        commit["version"]: datetime.fromtimestamp(commit["timestamp"] / 1000, UTC)
        for commit in DeltaTable(path).history()
    }


def _files_at(path: str, version: int) -> set[str]:
    """The data files of a version, relative to the table; none of a version that is not there."""
    try:
        table = DeltaTable(path, version=version)
    except DeltaError:
        return set()
    return {unquote(name) for name in pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()}


def _files_of_commit(path: str, version: int) -> set[str]:
    """The data files that a commit added, and its change data."""
    system, root = file_system(path)
    with system.open_input_file(f"{root}/{LOG}/{version:020d}.json") as file:
        actions = [json.loads(line) for line in file.read().splitlines() if line.strip()]
    return {unquote(action[kind]["path"]) for action in actions for kind in ("add", "cdc") if kind in action}


def _data_files(path: str) -> Iterator[tuple[str, int, datetime]]:
    """Path relative to the table, bytes and time of writing of every file but those of the log."""
    system, root = file_system(path)
    for info in system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True)):
        name = info.path.removeprefix(root).lstrip("/")
        if info.type == pyarrow.fs.FileType.File and not name.startswith(LOG) and not name.endswith(".crc"):
            yield name, info.size, info.mtime or datetime.now(UTC)


def _remove(system: pyarrow.fs.FileSystem, path: str) -> None:
    """Remove a file, and the checksum that Hadoop lays beside it."""
    folder, _, name = path.rpartition("/")
    for each in (path, f"{folder}/.{name}.crc"):
        if system.get_file_info(each).type == pyarrow.fs.FileType.File:
            system.delete_file(each)
