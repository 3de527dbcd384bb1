"""Job: products or users go from the lake, from everything made of it and from the online store, and nothing is left.

What goes is laid down in `<home>/erasures` before the first row goes, so that a run that was killed is finished by the
next one. At the end no file holds a row of theirs, those of older versions of the tables included: versions from before
can be read no more.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from delta.tables import DeltaTable
from deltalake import DeltaTable as Rows
from deltalake import write_deltalake
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from moonlake.embeddings.snapshots import MANIFEST, Snapshot, write_snapshot, write_vectors
from moonlake.errors import NotFound
from moonlake.files import atomic_write
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.lake.vacuum import ERASED, drop_history, file_system
from moonlake.logs import running
from moonlake.maintenance.erasure import (
    RECORDS,
    SUBJECTS,
    Subject,
    kind_of,
    listed_ids,
    names_of,
    names_that_go,
    parallel_lists,
    rows_naming,
    rows_that_name,
    single_ids,
    subject_hash,
)
from moonlake.maintenance.erasure_search import Search, Searched, search_folder, search_home
from moonlake.maintenance.feature_store import forget_online, logs_of_services, search_online, serve_again
from moonlake.maintenance.kept_versions import live_training_sets
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.contract import Table
from moonlake.schema.tables import ERASURES, PRODUCT_EVENTS, TABLES
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session
from sources.own_files.erasing import erase_chunks, erase_staged, erase_truth
from sources.own_files.staging import SOURCE_FILE

Names = dict[str, frozenset[str]]

MODELS = "artifacts"
"""Folder of trained models: they keep what they learnt, and click models the ids that they know."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """The report of an erasure.

    Attributes:
        removed: rows, files, keys or folders that went, by store; of a dry run what would go.
        training_sets: names of the training sets that went as a whole.
        searched: every store that was searched afterwards, with what was found.
    """

    removed: dict[str, int]
    training_sets: tuple[str, ...] = ()
    searched: tuple[Searched, ...] = ()

    @property
    def left(self) -> list[Searched]:
        """The stores in which something was found, but for trained models."""
        return [each for each in self.searched if each.found and each.store != MODELS]

    @property
    def models(self) -> list[str]:
        """Files of trained models that name what was erased."""
        return [path for each in self.searched if each.store == MODELS for path in each.found]


def plan(settings: Settings, subject: Subject, ids: Sequence[str]) -> Erasure:
    """The report of a dry run: what would be removed, and which files name it now; nothing is changed."""
    names = _names(settings, subject, ids)
    lake = Lake(settings)
    counts = {f"lake/{table.name}": _rows_that_go(lake, table, names) for table in TABLES.values()}
    searched = (*search_home(settings, names), *_search_elsewhere(settings, names))
    return Erasure({store: count for store, count in counts.items() if count}, (), searched)


def check(settings: Settings, subject: Subject, ids: Sequence[str]) -> Erasure:
    """The files that still name products or users, by their own ids."""
    names = names_of(subject, ids)
    return Erasure({}, (), (*search_home(settings, names), *_search_elsewhere(settings, names)))


def run(
    lake: SparkLake,
    subject: Subject,
    ids: Sequence[str],
    *,
    written_at: datetime,
) -> Erasure:
    """Erase products or users, and search everything for them afterwards. Nobody may write to the lake meanwhile."""
    settings = lake.settings
    names = _names(settings, subject, ids)
    plan_file = _plan_file(settings, subject, ids)
    _keep(plan_file, names)
    removed = Counter[str]()
    search = Search(names)
    touched = _stores_that_name(settings, search)
    for table in TABLES.values():
        if f"lake/{table.name}" in touched:
            removed[f"lake/{table.name}"] += _rows_that_go(lake.lake, table, names)
            _erase_rows(lake, table, names)
            _mark(lake.session, lake.lake.path(table.name), written_at)
    training_sets = _erase_training_sets(settings, search)
    removed["training_sets"] += len(training_sets)
    removed["snapshots"] += _write_snapshots_again(settings, search)
    removed["staging"] += sum(erase_staged(path.parent, search) for path in settings.staging.glob(f"*/{SOURCE_FILE}"))
    removed["backfills"] += erase_chunks(settings.backfills.rglob("*.parquet"), search)
    removed["truth"] += erase_truth(settings.truth.rglob("*.parquet"), search)
    serve_again(settings)
    removed["online store"] += forget_online(settings, names)
    for log in logs_of_services(settings):
        removed["request logs"] += _erase_log(log, search)
    for table in TABLES.values():
        if f"lake/{table.name}" in touched:
            drop_history(lake.lake.path(table.name))
    # The stream of new products cannot go on from a version that is gone; from the start it finds what it took in.
    if f"lake/{PRODUCT_EVENTS.name}" in touched:
        shutil.rmtree(settings.streams / PRODUCT_EVENTS.name, ignore_errors=True)
    plan_file.unlink()
    found = (*search_home(settings, names), *_search_elsewhere(settings, names))
    erasure = Erasure({store: count for store, count in removed.items() if count}, training_sets, found)
    _record(lake.lake, subject, ids, erasure, written_at)
    return erasure


def _names(settings: Settings, subject: Subject, ids: Sequence[str]) -> Names:
    """Everything that goes, with what a run that was killed had found already."""
    plan_file = _plan_file(settings, subject, ids)
    earlier = json.loads(plan_file.read_text()) if plan_file.exists() else {}
    return names_that_go(Lake(settings), subject, ids, {kind: frozenset(found) for kind, found in earlier.items()})


def _plan_file(settings: Settings, subject: Subject, ids: Sequence[str]) -> Path:
    return settings.erasures / f"{stable_hash(json.dumps([subject, *sorted(ids)]))}.json"


def _keep(plan_file: Path, names: Names) -> None:
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(plan_file) as file:
        file.write_text(json.dumps({kind: sorted(ids) for kind, ids in names.items()}))


def _stores_that_name(settings: Settings, search: Search) -> set[str]:
    """The tables of which a file names what goes, be it of a version that nobody reads any more."""
    found = search_folder(settings.lake, search, lambda path: f"lake/{path.split('/')[0]}")
    return {each.store for each in found if each.found}


def _rows_that_go(lake: Lake, table: Table, names: Names) -> int:
    """The number of rows of a table that would be removed or lose entries."""
    if table.name in RECORDS:
        return len(_records_that_name(lake, table, names))
    return rows_that_name(lake, table, names)


def _records_that_name(lake: Lake, table: Table, names: Names) -> list[str]:
    """Keys of the rows whose record names what goes."""
    (key,) = table.key
    rows = lake.read(table.name, [key, RECORDS[table.name]])
    found = Search(names).rows_naming(RECORDS[table.name], rows[RECORDS[table.name]])
    return [str(each) for each in rows[key].filter(pa.array(found)).to_pylist()]


def _erase_rows(lake: SparkLake, table: Table, names: Names) -> None:
    """Take the rows away, and the entries out of the lists of the rows that stay. The table's log names no id then."""
    if table.name in RECORDS and (keys := _records_that_name(lake.lake, table, names)):
        _delete(lake, table, table.key[0], keys)
    for column in single_ids(table, names):
        ids = names[kind_of(column.name) or ""]
        if _holds(lake.lake, table, column.name, ids):
            _delete(lake, table, column.name, sorted(ids))
    lists = {column.name: names[kind_of(column.name) or ""] for column in listed_ids(table, names)}
    if any(_holds(lake.lake, table, name, ids) for name, ids in lists.items()):
        changed = without_entries(lake.frame(table.name), table, lists)
        same = dict.fromkeys([*table.identity, "created_at"])
        merging = (
            DeltaTable.forPath(lake.session, lake.lake.path(table.name))
            .alias("there")
            .merge(changed.alias("new"), " AND ".join(f"there.`{name}` = new.`{name}`" for name in same))
        )
        if parallel := parallel_lists(table):
            merging = merging.whenMatchedDelete(f"cardinality(new.`{parallel[0]}`) = 0")
        merging.whenMatchedUpdateAll().execute()


def _holds(lake: Lake, table: Table, column: str, ids: frozenset[str]) -> bool:
    """Whether a column of the table as it stands now holds one of the ids."""
    return bool(pc.any(rows_naming(lake.read(table.name, [column])[column], ids)).as_py())


def _delete(lake: SparkLake, table: Table, column: str, values: Sequence[str]) -> None:
    gone = lake.session.createDataFrame([(value,) for value in values], "value string")
    target = DeltaTable.forPath(lake.session, lake.lake.path(table.name)).alias("there")
    target.merge(gone.alias("gone"), f"there.`{column}` = gone.value").whenMatchedDelete().execute()


def without_entries(rows: DataFrame, table: Table, lists: Mapping[str, frozenset[str]]) -> DataFrame:
    """The rows whose lists name something that goes, without it.

    Where lists of a row are parallel the entry goes from all of them, and the row has the time of its last action.

    Args: lists: ids that go, by column.
    """
    goes = {name: f.transform(name, _is_among(ids)) for name, ids in lists.items()}
    named = [f.coalesce(f.exists(each, lambda goes: goes), f.lit(False)) for each in goes.values()]
    rows = rows.where(reduce(or_, named))
    parallel = parallel_lists(table)
    if not parallel:
        changed = {name: f.filter(name, _is_not_among(ids)) for name, ids in lists.items()}
        return rows.withColumns(changed).select(*table.names)
    together = reduce(lambda one, other: f.zip_with(one, other, lambda a, b: a | b), goes.values())
    rows = rows.withColumn("_goes", together)
    rows = rows.withColumns({name: f.filter(name, lambda _, place: ~f.get("_goes", place)) for name in parallel})
    last = f.timestamp_micros(f.array_max("times_us"))
    return rows.withColumn("event_timestamp", f.coalesce(last, "event_timestamp")).select(*table.names)


def _is_among(ids: frozenset[str]) -> Callable[[Column], Column]:
    return lambda value: f.coalesce(value.isin(sorted(ids)), f.lit(False))


def _is_not_among(ids: frozenset[str]) -> Callable[[Column], Column]:
    return lambda value: ~_is_among(ids)(value)


def _mark(spark: SparkSession, path: str, written_at: datetime) -> None:
    """State in the table that rows were erased from it, in a commit that holds no rows: its history begins there.

    Snapshots and the online store read that version, so that it is there as long as they need it.
    """
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('{ERASED}' = '{written_at.isoformat()}')")


def _erase_training_sets(settings: Settings, search: Search) -> tuple[str, ...]:
    """The training sets that hold something that goes, which were deleted."""
    gone = []
    for folder, _ in list(live_training_sets(settings)):
        if any(each.found for each in search_folder(str(folder), search, lambda _: "")):
            shutil.rmtree(folder)
            gone.append(folder.name)
    for left in settings.training_sets.glob(".*"):  # what a build or a rebuild that was killed left behind
        if any(each.found for each in search_folder(str(left), search, lambda _: "")):
            shutil.rmtree(left)
    return tuple(gone)


def _write_snapshots_again(settings: Settings, search: Search) -> int:
    """The number of snapshots rewritten: those of the lake from the lake, others without what is erased."""
    count = 0
    for manifest in list(settings.snapshots.rglob(MANIFEST)):
        folder = manifest.parent
        if not any(each.found for each in search_folder(str(folder), search, lambda _: "")):
            continue
        count += 1
        snapshot = Snapshot.open(folder)
        if snapshot.is_apart:
            kept = ~search.rows_of(snapshot.contents())
            ids = snapshot.contents()["content_id"].filter(pa.array(kept)).to_pylist()
            write_vectors(folder, ids, snapshot.vectors[kept], space_id=snapshot.true_space_id, labels=snapshot.labels)
            continue
        try:
            write_snapshot(Lake(settings), snapshot.true_space_id, folder)
        except NotFound:  # nothing else had a vector in this space
            shutil.rmtree(folder)
    for left in settings.snapshots.glob(".*"):  # of a process that was killed
        shutil.rmtree(left)
    return count


def _erase_log(path: str, search: Search) -> int:
    """The number of rows deleted from a Delta table without a contract, as they named something to erase."""
    if not Rows.is_deltatable(path):
        return 0
    system, root = file_system(path)
    rows = Rows(path).to_pyarrow_dataset(filesystem=pyarrow.fs.SubTreeFileSystem(root, system)).to_table()
    found = search.rows_of(rows)
    if found.any():
        write_deltalake(path, rows.filter(pa.array(~found)), mode="overwrite")
    if any(each.found for each in search_folder(path, search, lambda _: "")):
        drop_history(path)
    return int(found.sum())


def _search_elsewhere(settings: Settings, names: Names) -> list[Searched]:
    """Search results outside the home's files: online stores on a server, request logs elsewhere."""
    search = Search(names)
    found = search_online(settings, search)
    for log in logs_of_services(settings):
        if not Path(log).is_relative_to(settings.home):
            found += search_folder(log, search, lambda _, log=log: log)  # type: ignore[misc]
    return found


def _record(lake: Lake, subject: Subject, ids: Sequence[str], erasure: Erasure, written_at: datetime) -> None:
    removed = {**erasure.removed, "training sets by name": list(erasure.training_sets)}
    rows = [
        {
            "subject": subject,
            "subject_hash": subject_hash(subject, each),
            "removed": json.dumps(removed),
            "files_searched": sum(searched.files for searched in erasure.searched),
            "places_found": sum(len(searched.found) for searched in erasure.searched),
            "event_timestamp": written_at,
        }
        for each in ids
    ]
    lake.append(
        ERASURES.name, pa.Table.from_pylist(rows, arrow_schema(ERASURES, ERASURES.facts)), written_at=written_at
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Erase products or users."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("ids", nargs="+")
    asked = parser.parse_args(argv)
    settings = Settings.from_environment()
    with running("erase_subjects", settings.log_level) as job, session(settings, "erase_subjects") as spark:
        erasure = run(SparkLake(spark, settings), asked.subject, asked.ids, written_at=datetime.now(UTC))
        left, models = [one.store for one in erasure.left], erasure.models
        print(job.report(removed=erasure.removed, left=left, models=models))
        if erasure.left:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
