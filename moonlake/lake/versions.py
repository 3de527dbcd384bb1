"""Delta tables at one version, as Arrow datasets: what an engine reads from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from moonlake.errors import NotFound

NEVER_WRITTEN = -1
"""Version of a lake table that has no commit yet; it reads as an empty one."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """One version of one table."""

    path: str
    version: int
    dataset: ds.Dataset


def open_path(path: str, version: int | datetime | None = None, empty: pa.Schema | None = None) -> TableSnapshot:
    """The table at a path or URI, its files in the order in which they were written: the last tie-break of a join.

    Args:
        version: a version, or the moment whose latest version is meant; None is the latest.
        empty: schema of the empty table to give where nothing was written yet.
    Raises: NotFound: there is no table at the path, or it has no such version.
    """
    try:
        table = None if version == NEVER_WRITTEN else DeltaTable(path)
        if table is not None and version is not None:
            table.load_as_version(version)
    except TableNotFoundError:
        if empty is None or version is not None:
            raise NotFound(f"there is no Delta table at {path}") from None
        table = None
    except DeltaError as error:
        raise NotFound(f"the Delta table at {path} has no version {version}: {error}") from None
    if table is None:
        return TableSnapshot(path, NEVER_WRITTEN, ds.dataset((empty or pa.schema([])).empty_table()))
    return TableSnapshot(path, table.version(), _in_order_written(table, path))


def _in_order_written(table: DeltaTable, path: str) -> ds.Dataset:
    # An explicit filesystem: the default one can abort the interpreter at exit (delta-rs 2184).
    local = None if "://" in path else pyarrow.fs.SubTreeFileSystem(path, pyarrow.fs.LocalFileSystem())
    dataset = table.to_pyarrow_dataset(filesystem=local)
    if not isinstance(dataset, ds.FileSystemDataset):
        return dataset
    added = pa.table(table.get_add_actions(flatten=True)).select(["path", "modification_time"]).to_pylist()
    written = {unquote(action["path"]): action["modification_time"] for action in added}
    fragments = list(dataset.get_fragments())[::-1]  # delta-rs lists the last commit first
    fragments.sort(key=lambda fragment: written[fragment.path])
    return ds.FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)
