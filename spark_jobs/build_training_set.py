"""Job (without Spark): impressions of a window with their point-in-time features, as Parquet and a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from moonlake.errors import InputError
from moonlake.feast_delta.store import (
    definition_of,
    definitions_hash,
    feature_store,
    service_views,
    versions_read,
)
from moonlake.lake import Lake, arrow_schema
from moonlake.moments import parse_moment
from moonlake.settings import Settings
from moonlake.tables import TRAINING_SETS
from moonlake.training_sets import (
    LABEL_COLUMNS,
    Declaration,
    Manifest,
    TrainingSet,
    manifest_of,
    write_training_set,
)

ROWS_PER_PULL = 100_000
"""Label rows that are joined at a time: bounds memory, as sequences are many times wider than labels."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build came to. `built` is False when the folder already held exactly this training set."""

    training_set: TrainingSet
    built: bool


def label_rows(impressions: pa.Table) -> pa.Table:
    """The label columns of each impression once, ordered by event time and impression id.

    Of a restated impression the row that was written last counts.
    """
    ordered = impressions.sort_by([("impression_id", "ascending"), ("created_at", "ascending")])
    ids = ordered["impression_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    last = np.append(ids[1:] != ids[:-1], True)[: len(ids)]
    kept = ordered.filter(pa.array(last)).select(LABEL_COLUMNS)
    return kept.sort_by([("event_timestamp", "ascending"), ("impression_id", "ascending")]).combine_chunks()


def run(settings: Settings, declaration: Declaration, *, written_at: datetime) -> BuildReport:
    """Build the training set, or find it built already; one row of `training_sets` says that it is there.

    Raises:
        InputError: no settled impression in the window.
        NotFound: an unknown feature service, table or column.
    """
    lake = Lake(settings)
    store = feature_store(settings)
    views = service_views(store, declaration.feature_service)
    versions = versions_read(store, views) | {declaration.label_table: lake.version(declaration.label_table)}
    inputs = Manifest(
        declaration=declaration,
        table_versions=versions,
        definitions=[definition_of(view) for view in views],
        definitions_hash=definitions_hash(views),
        code_version=version("moonlake"),
    )
    folder = settings.training_sets / declaration.name
    present = manifest_of(folder)
    built = present is None or not present.same_inputs(inputs)
    if built:
        labels = _read_labels(lake, declaration, versions[declaration.label_table])
        training_set = write_training_set(folder, inputs, labels, _with_features(settings, inputs, labels))
    else:
        training_set = TrainingSet.open(folder)
    _register(lake, training_set, written_at)
    return BuildReport(training_set, built)


def _read_labels(lake: Lake, declaration: Declaration, at_version: int) -> pa.Table:
    moment = pa.timestamp("us", tz="UTC")
    event = ds.field("event_timestamp")
    where = (event >= pa.scalar(declaration.start, moment)) & (event < pa.scalar(declaration.end, moment))
    where = where & (ds.field("label_time") <= pa.scalar(declaration.settled, moment))
    columns = [*LABEL_COLUMNS, "created_at"]
    if at_version >= 0:
        labels = label_rows(lake.read(declaration.label_table, columns, where=where, version=at_version))
        if len(labels):
            return labels
    raise InputError(
        f"training set {declaration.name}: table {declaration.label_table} holds no impression in"
        f" [{declaration.start}, {declaration.end}) with a label settled by {declaration.settled}"
    )


def _with_features(settings: Settings, inputs: Manifest, labels: pa.Table) -> Iterator[pa.Table]:
    store = feature_store(settings, versions=inputs.table_versions, sequence_length=inputs.declaration.sequence_length)
    service = store.get_feature_service(inputs.declaration.feature_service)
    for first in range(0, len(labels), ROWS_PER_PULL):
        yield store.get_historical_features(labels.slice(first, ROWS_PER_PULL), service).to_arrow()


def _register(lake: Lake, training_set: TrainingSet, written_at: datetime) -> None:
    manifest = training_set.manifest
    if manifest.training_set_id in lake.read(TRAINING_SETS.name, ["training_set_id"])["training_set_id"].to_pylist():
        return
    row = {
        "training_set_id": manifest.training_set_id,
        "name": manifest.declaration.name,
        "folder": str(training_set.folder.absolute()),
        "rows": manifest.rows,
        "manifest": manifest.as_json(),
        "event_timestamp": written_at,
    }
    rows = pa.Table.from_pylist([row], schema=arrow_schema(TRAINING_SETS, TRAINING_SETS.facts))
    lake.append(TRAINING_SETS.name, rows, written_at=written_at)


def main(argv: Sequence[str] | None = None) -> None:
    """Build one training set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="folder name of the training set")
    parser.add_argument("--start", required=True, type=parse_moment, help="first moment of the window, with time zone")
    parser.add_argument("--end", required=True, type=parse_moment, help="moment behind the window")
    parser.add_argument("--settled-by", type=parse_moment, help="labels settled later stay out; default: --end")
    parser.add_argument("--feature-service", default="ctr_ranking_v1")
    parser.add_argument("--sequence-length", type=int, default=50, help="actions of a behaviour sequence")
    parser.add_argument("--space-id", help="embedding space that the content ids are to be read in")
    declared = vars(parser.parse_args(argv))
    report = run(Settings.from_environment(), Declaration(**declared), written_at=datetime.now(UTC))
    state = "built" if report.built else "unchanged"
    print(f"{report.training_set.folder}: {len(report.training_set)} rows, {state}")


if __name__ == "__main__":
    main()
