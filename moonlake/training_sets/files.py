"""The files of a training set: the same rows always become the same bytes, in whatever pieces they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moonlake.errors import InputError
from moonlake.files import publish_folder
from moonlake.hashing import hash_of_file, stable_hash
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import SEQUENCE_LOGS, TrainingSet

ROWS_PER_FILE = 100_000
ROWS_PER_GROUP = 20_000
ACTIONS_PER_GROUP = 4_000_000
"""Bounds what a row group holds of sequences, and with it the memory of whoever reads or compares rows."""

DELTA_LOG = "_delta_log/00000000000000000000.json"


def write_training_set(
    folder: Path,
    inputs: Manifest,
    labels: pa.Table,
    batches: Iterable[pa.Table],
    *,
    expected: Manifest | None = None,
    sequence_logs: Path | None = None,
) -> TrainingSet:
    """The training set written from batches of finished rows; what was in the folder is replaced.

    Nothing is to be seen in the folder until all is written; a reader finds the old set or the new one.

    Args:
        expected: the manifest that is rebuilt: its files have to come out byte for byte, and it is kept as it is.
        sequence_logs: folder of the logs that pointers of the rows point into; it moves into the training set.

    Raises: InputError: there are no rows, or other files than expected came out, which are named.
    """
    with publish_folder(folder) as filling:
        rows = filling / "rows"
        rows.mkdir()
        schema, counts = _write_rows(rows, inputs.spec, batches)
        if sequence_logs is not None and sequence_logs.exists():  # a service may have no sequences
            sequence_logs.rename(rows / SEQUENCE_LOGS)
        if inputs.spec.format == "delta":
            _write_delta_log(rows, inputs.spec, schema, counts)
        manifest = replace(
            inputs,
            label_hash=hash_of_rows(labels),
            rows=sum(counts.values()),
            columns={field.name: str(field.type) for field in schema},
            files={name: hash_of_file(rows / name) for name in _names(rows)},
        )
        if expected is not None:
            require_same_rows(expected, manifest)
        (filling / "manifest.json").write_text((expected or manifest).as_json())
    return TrainingSet.open(folder)


def require_same_rows(expected: Manifest, found: Manifest) -> None:
    """Nothing, when both have the same files. Raises InputError, naming what differs first: labels, columns, files."""
    name = expected.spec.name
    if found.label_hash != expected.label_hash:
        raise InputError(
            f"training set {name}: the label rows are others than those of the manifest: {found.rows} rows of hash "
            f"{found.label_hash}, expected {expected.rows} of {expected.label_hash}"
        )
    if found.columns != expected.columns:
        columns = sorted(set((found.columns or {}).items()) ^ set((expected.columns or {}).items()))
        raise InputError(f"training set {name}: the columns are others than those of the manifest: {columns}")
    if found.files != expected.files:
        files = sorted(set((found.files or {}).items()) ^ set((expected.files or {}).items()))
        raise InputError(f"training set {name}: files differ from those of the manifest: {sorted(dict(files))}")


def hash_of_rows(rows: pa.Table) -> str:
    """Hash of the values of all columns, in order; how the rows lie in memory or in files has no part in it."""
    digest = hashlib.blake2b(digest_size=16)
    for field, column in zip(rows.schema, rows.columns, strict=True):
        digest.update(f"{field.name}:{field.type}:{len(column)}".encode())
        for part in _plain_bytes(column.combine_chunks()):
            digest.update(part)
    return digest.hexdigest()


def _write_rows(folder: Path, spec: TrainingSetSpec, batches: Iterable[pa.Table]) -> tuple[pa.Schema, dict[str, int]]:
    """The schema, and how many rows each file holds. Raises InputError when there are no rows."""
    longest = max(spec.lengths.values()) if spec.sequences == "inline" else 1
    per_group = max(100, min(ROWS_PER_GROUP, ACTIONS_PER_GROUP // longest))
    groups_per_file = max(1, ROWS_PER_FILE // per_group)
    schema: pa.Schema | None = None
    counts: dict[str, int] = {}
    writer: pq.ParquetWriter | None = None
    for number, group in enumerate(_blocks(batches, per_group)):
        schema = schema or group.schema
        name = f"part-{number // groups_per_file:05d}.parquet"
        if name not in counts:
            if writer:
                writer.close()
            writer = pq.ParquetWriter(folder / name, schema, compression="zstd")
        assert writer is not None
        # One piece of memory, so that the pages of the file do not depend on the pieces in which rows came.
        writer.write_table(group.cast(schema).combine_chunks(), row_group_size=len(group))
        counts[name] = counts.get(name, 0) + len(group)
    if schema is None or writer is None:
        raise InputError(f"training set {spec.name}: there are no rows to write")
    writer.close()
    return schema, counts


def _blocks(batches: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows in tables of `size`, the last one being shorter."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(batch.replace_schema_metadata(None))
        while sum(map(len, held)) >= size:
            rows = pa.concat_tables(held)
            yield rows.slice(0, size)
            held = [rows.slice(size)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _write_delta_log(folder: Path, spec: TrainingSetSpec, schema: pa.Schema, counts: dict[str, int]) -> None:
    """The one commit of a Delta table over the files. Its ids and times follow from the specification alone."""
    from deltalake import Schema

    moment = int(spec.settled.timestamp() * 1000)
    metadata = {
        "id": stable_hash(spec.name),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": Schema.from_arrow(schema).to_json(),
        "partitionColumns": [],
        "configuration": {},
        "createdTime": moment,
    }
    actions: list[dict[str, object]] = [
        {"commitInfo": {"timestamp": moment, "operation": "moonlake training set"}},
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {"metaData": metadata},
    ]
    for name, count in sorted(counts.items()):
        add = {
            "path": name,
            "partitionValues": {},
            "size": (folder / name).stat().st_size,
            "modificationTime": moment,
            "dataChange": True,
            "stats": json.dumps({"numRecords": count}),
        }
        actions.append({"add": add})
    (folder / DELTA_LOG).parent.mkdir()
    (folder / DELTA_LOG).write_text("".join(json.dumps(action, sort_keys=True) + "\n" for action in actions))


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _plain_bytes(values: pa.Array) -> Iterator[bytes | memoryview]:
    """The values as bytes: which are there, how long they are, what they hold."""
    of = values.type
    yield values.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_map(of):
        yield from _plain_bytes(values.cast(pa.list_(pa.struct({"key": of.key_type, "value": of.item_type}))))
    elif pa.types.is_list(of) or pa.types.is_large_list(of):
        yield from _plain_bytes(pc.fill_null(pc.list_value_length(values), 0))
        yield from _plain_bytes(pc.list_flatten(values))
    elif pa.types.is_struct(of):
        for part in values.flatten():
            yield from _plain_bytes(part)
    elif pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_binary(of):
        filled = pc.fill_null(values.cast(pa.large_binary()), b"")
        yield pc.binary_length(filled).to_numpy(zero_copy_only=False).tobytes()
        offsets = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset : filled.offset + len(filled) + 1]
        yield memoryview(filled.buffers()[2] or b"")[offsets[0] : offsets[-1]] if len(filled) else b""
    elif pa.types.is_temporal(of) or pa.types.is_integer(of):
        yield pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).tobytes()
    else:
        yield pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False).tobytes()
