"""Job: for each impression of a window the content similarities of target, query and behaviours, in one space."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from models.ctr import cube
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.lake.lake import Lake, WriteReport
from moonlake.logs import context, running
from moonlake.point_in_time import as_of_slices, encode_keys, microseconds
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import CUBE_FEATURES, IMPRESSIONS
from moonlake.settings import Settings
from moonlake.spark import writes
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import current_rows, session, spark_schema
from moonlake.timestamps import parse_moment

LENGTH = 50
IMPRESSIONS_PER_SHARD = 50_000
IMPRESSIONS_PER_BATCH = 2_048

OF_IMPRESSION = ("impression_id", "user_id", "content_id", "query_content_id", "event_timestamp")
OF_SEQUENCE = ("user_id", "month", "times_us", "actions", "product_ids", "content_ids", "query_content_ids")


def transform(
    impressions: DataFrame, sequences: DataFrame, folder: Path, space_id: str, *, length: int, shards: int
) -> DataFrame:
    """The rows of `cube_features` of impressions, one each.

    Users are spread over shards by hash, and one Python call joins a shard: impressions to the user's last `length`
    actions strictly before, by the kernel that joins training sets; then vectors gathered from the snapshot.

    Args:
        impressions: OF_IMPRESSION of rows of `impressions`.   sequences: OF_SEQUENCE of rows of `behavior_sequences`.
        folder: the snapshot of the space, where every worker can read it.
    """
    shard = f.pmod(f.hash("user_id"), f.lit(shards)).alias("_shard")
    left = impressions.select(*OF_IMPRESSION, shard).groupBy("_shard")
    right = sequences.select(*OF_SEQUENCE, shard).groupBy("_shard")
    features = left.cogroup(right).applyInArrow(
        _of_shard(str(folder), space_id, length), spark_schema(CUBE_FEATURES, CUBE_FEATURES.facts)
    )
    return features.select(*CUBE_FEATURES.facts)


def similarity_rows(impressions: pa.Table, sequences: pa.Table, snapshot: Snapshot, length: int) -> pa.Table:
    """The rows of `cube_features` of impressions, in their order; the arguments hold what `transform` selects."""
    log = sequences.sort_by([("user_id", "ascending"), ("month", "ascending")])
    lengths = pc.list_value_length(log["times_us"]).to_numpy()
    of_label, of_row = encode_keys(impressions.select(["user_id"]), log.select(["user_id"]))
    times = microseconds(impressions["event_timestamp"], "event_timestamp")
    actions = pc.list_flatten(log["times_us"]).to_numpy()
    slices = as_of_slices(of_label, times, np.repeat(of_row, lengths), actions, length=length)
    chosen = slices.rows()
    of_item, of_search = (snapshot.rows_of(pc.list_flatten(log[name])) for name in ("content_ids", "query_content_ids"))
    is_search = pc.equal(pc.list_flatten(log["actions"]), "search").to_numpy()
    # One more element stands for an empty place in front of a short sequence.
    searched = np.append(is_search[chosen], False)
    on_product = np.append(pc.is_valid(pc.list_flatten(log["product_ids"])).to_numpy()[chosen], False)
    behaviors = np.append(np.where(is_search, of_search, of_item)[chosen], -1)
    targets, queries = (snapshot.rows_of(impressions[name]) for name in ("content_id", "query_content_id"))
    offsets = slices.offsets()
    parts = []
    for start in range(0, len(impressions), IMPRESSIONS_PER_BATCH):
        batch = np.arange(start, min(start + IMPRESSIONS_PER_BATCH, len(impressions)))
        places = cube.last_places(offsets, batch, length, empty=len(chosen))  # [B, L]
        rows = targets[batch], queries[batch], behaviors[places]  # [B], [B], [B, L]
        content = cube.read(snapshot.vectors, *rows, searched[places])
        parts.append(cube.features(content, on_product[places], searched[places]))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return _as_contract(impressions, columns, snapshot.space_id)


def _as_contract(impressions: pa.Table, columns: dict[str, np.ndarray], space_id: str) -> pa.Table:
    schema = arrow_schema(CUBE_FEATURES, CUBE_FEATURES.facts)
    if not columns:
        return schema.empty_table()
    arrays = {
        **{name: _array(values, schema.field(name).type) for name, values in columns.items()},
        "impression_id": impressions["impression_id"],
        "space_id": pa.array([space_id] * len(impressions)),
        "event_timestamp": impressions["event_timestamp"],
    }
    return pa.table({name: arrays[name] for name in schema.names}).cast(schema)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Values [n], with null for NaN, or lists [n, bins]."""
    if values.ndim == 1:
        return pa.array(values, from_pandas=True)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(kind)


def _of_shard(folder: str, space_id: str, length: int) -> Callable[[pa.Table, pa.Table], pa.Table]:
    def joined(impressions: pa.Table, sequences: pa.Table) -> pa.Table:
        torch.set_num_threads(1)  # Spark runs one worker a core
        snapshot = Snapshot.open(Path(folder))  # maps the file: cheap enough for every shard
        snapshot.require_space(space_id, "build_cube_features")
        return similarity_rows(impressions, sequences, snapshot, length)

    return joined


def run(
    lake: SparkLake,
    space: str,
    *,
    start: datetime,
    end: datetime,
    length: int = LENGTH,
    written_at: datetime,
) -> WriteReport:
    """Compute the similarities of every impression in [start, end) in a space, by name, id or "live".

    The window is replaced for this space; the rows of other spaces stay as they are.
    """
    space_id = releases.find(lake.lake, space).space_id
    folder = (lake.settings.snapshots / f"cube-{space_id}").absolute()
    write_snapshot(lake.lake, space_id, folder)
    within = (f.col("event_timestamp") >= f.lit(start)) & (f.col("event_timestamp") < f.lit(end))
    impressions = current_rows(lake.frame("impressions").where(within), IMPRESSIONS)
    last_month = f"{end.astimezone(UTC):%Y-%m}"
    sequences = lake.frame("behavior_sequences").where(f.col("month") <= last_month)
    shards = lake.settings.spark_shuffle_partitions + impressions.count() // IMPRESSIONS_PER_SHARD
    features = transform(impressions, sequences, folder, space_id, length=length, shards=shards).persist()
    others = lake.frame("cube_features").where(within & (f.col("space_id") != space_id))
    try:
        return writes.replace_window(
            lake,
            "cube_features",
            features.unionByName(others.select(*CUBE_FEATURES.facts)),
            start=start,
            end=end,
            source="build_cube_features",
            written_at=written_at,
        )
    finally:
        features.unpersist()


def main(argv: Sequence[str] | None = None) -> None:
    """Build the similarities of the impressions in [--start, --end)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", required=True, type=parse_moment, help="first moment of the window, with time zone")
    parser.add_argument("--end", required=True, type=parse_moment, help="moment behind the window")
    parser.add_argument("--space", default=spaces.LIVE, help="embedding space, by name or id; default: the live one")
    parser.add_argument("--length", type=int, default=LENGTH, help="latest actions that are looked at")
    asked = parser.parse_args(argv)
    settings = Settings.from_environment()
    space = releases.find(Lake(settings), asked.space).space_id
    with (
        running("build_cube_features", settings.log_level) as job,
        context(space=space),
        session(settings, "build_cube_features") as spark,
    ):
        report = run(
            SparkLake(spark, settings),
            space,
            start=asked.start,
            end=asked.end,
            length=asked.length,
            written_at=datetime.now(UTC),
        )
        print(job.report(space=space, tables=[report]))


if __name__ == "__main__":
    main()
