"""Published behaviour logs into the own-files form: what Taobao, REES46 and OTTO have in common.

A log is read file by file and block by block, once. Each record becomes a behaviour or is refused by the first rule
that it breaks. An action has no id in these logs, so that its id is what it says: who did what, on what, when. A record
that says the same again is the same action logged twice: ingestion counts it as a duplicate and keeps one.
docs/behaviour_logs.md is the contract.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Step
from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from sources.datasets.log_files import TextBatch, is_whole_number, refuse_broken
from sources.datasets.sampled_negatives import NegativeSampler
from sources.datasets.seen_products import SeenProducts, codes_of, mixed
from sources.own_files.conform import ATTRIBUTE_PREFIX
from sources.own_files.schema import KINDS
from sources.own_files.stage import T1_SHARE, T2_SHARE
from sources.own_files.staging import SourceInfo, StageWriter, is_staged, new_stage, stage_path

LOG_VERSION = 1
"""Part of the fingerprint: raise it when the same files would be staged otherwise."""
EVENT_COLUMNS = ("user_id", "product_id", "event_type", "event_time")
"""The text columns that every batch has; a log adds those in which it speaks of the product."""
TIMESTAMP = ARROW_TYPES["timestamp"]


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a log, and the window [start, end) that it was published for."""

    path: Path
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """Facts about products in the records of a batch, beside the actions themselves.

    Attributes:
        columns: columns of the kind `products` by name, or `attributes.<name>`; [N] each.
        broken: rules, and which records break them; bool [N].
        repaired: cells that are taken for null, by rule; bool [N].
    """

    columns: dict[str, pa.ChunkedArray]
    broken: dict[str, pa.ChunkedArray] = field(default_factory=dict)
    repaired: dict[str, pa.ChunkedArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishedLog:
    """A published log's format: the readers of its files, times and facts.

    Attributes:
        actions: what each event type is called in `behaviors`.
        read: the batches of a file, with EVENT_COLUMNS.
        time_us: int64 [N] microseconds of its cells in `event_time`, null for one that cannot be read.
        facts: what a batch says of products; None for a log that has ids only.
        facts_are_timeless: true where a fact holds for the whole log, and not from the record on that states it.
        ignored: columns that have no place in the own-files form.
    """

    name: str
    actions: Mapping[str, str]
    read: Callable[[Path], Iterator[TextBatch]]
    time_us: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    facts: Callable[[pa.Table], ProductFacts] | None = None
    facts_are_timeless: bool = False
    ignored: tuple[str, ...] = ()


def stage_log(
    log: PublishedLog,
    files: Sequence[LogFile],
    settings: Settings,
    *,
    negatives: int = 0,
    progress: Step = UNWATCHED,
) -> Path:
    """The staged folder of a log, made now unless it was staged from the same files before.

    Args: negatives: products sampled as not clicked beside each click (`sources.datasets.sampled_negatives`); 0: no
        impressions.

    Raises:
        InputError: a file cannot be read to its end, or there is no good record at all.
        BatchRejected: more than half of the records are refused.
    """
    if negatives < 0:
        raise InputError(f"negatives={negatives}: give 0 or more")
    fingerprint = _fingerprint(files, f"{LOG_VERSION} {log.name} {negatives}")
    if is_staged(settings, log.name, fingerprint):
        return stage_path(settings, log.name)
    with new_stage(settings, log.name) as writer:
        seen, repaired = SeenProducts(), Counter[str]()
        for file in files:
            for batch in log.read(file.path):
                repaired += _stage_batch(writer, log, file, batch, seen)
                progress.update(writer.staged["behaviors"], note="behaviors")
        writer.check_share("behaviors", ", ".join(str(file.path) for file in files))
        if not writer.staged["behaviors"]:
            raise InputError(f"{files[0].path}: there is no record in it")
        if negatives:
            sampler = NegativeSampler(seen, negatives)
            for rows in writer.read_back("behaviors"):
                writer.write("impressions", sampler.impressions(rows))
                progress.update(writer.staged["impressions"], note="impressions")
        writer.describe(_info(log, files, writer, negatives, fingerprint, dict(repaired)))
    return stage_path(settings, log.name)


def _stage_batch(
    writer: StageWriter, log: PublishedLog, file: LogFile, batch: TextBatch, seen: SeenProducts
) -> Counter[str]:
    """Stage the good records of a batch and refuse the others; gives how many cells were taken for null, by rule."""
    cells = batch.cells
    times = log.time_us(cells["event_time"])
    facts = log.facts(cells) if log.facts else ProductFacts({})
    good = refuse_broken(writer, "behaviors", batch, _broken(log, file, cells, times, facts))
    kept, times = cells.filter(good), times.filter(good)
    writer.write("behaviors", _behaviors(log, kept, times))
    columns = {name: column.filter(good) for name, column in facts.columns.items()}
    states = _new_states(seen, kept["product_id"], times, columns)
    if columns:
        writer.write("products", _products(log, kept["product_id"], columns, *states))
    return Counter({rule: pc.sum(cell.filter(good)).as_py() or 0 for rule, cell in facts.repaired.items()})


def _broken(
    log: PublishedLog, file: LogFile, cells: pa.Table, times: pa.ChunkedArray, facts: ProductFacts
) -> dict[str, pa.ChunkedArray]:
    """For each rule a mask of the records that break it, bool [N]."""
    start, end = (pa.scalar(moment, TIMESTAMP).cast(pa.int64()) for moment in (file.start, file.end))
    return {
        "user_id_missing": pc.equal(cells["user_id"], ""),
        "user_id_unreadable": pc.invert(is_whole_number(cells["user_id"])),
        "product_id_missing": pc.equal(cells["product_id"], ""),
        "product_id_unreadable": pc.invert(is_whole_number(cells["product_id"])),
        "event_type_unknown": pc.invert(pc.is_in(cells["event_type"], pa.array(log.actions))),
        "event_timestamp_unreadable": pc.is_null(times),
        "event_timestamp_outside_window": pc.or_(pc.less(times, start), pc.greater_equal(times, end)),
        **facts.broken,
    }


def _behaviors(log: PublishedLog, cells: pa.Table, times: pa.ChunkedArray) -> pa.Table:
    number = pc.index_in(cells["event_type"], pa.array(log.actions))
    action = pa.array(log.actions.values()).take(number)
    parts = (cells["user_id"], cells["product_id"], action, times.cast(pa.string()))
    columns = {
        "behavior_id": pc.binary_join_element_wise(*parts, "-"),
        "user_id": cells["user_id"],
        "action": action,
        "product_id": cells["product_id"],
        "query_id": pa.nulls(len(cells), pa.string()),
        "event_timestamp": times.cast(TIMESTAMP),
    }
    return pa.table(columns, schema=KINDS["behaviors"].schema())


def _new_states(
    seen: SeenProducts, products: pa.ChunkedArray, times: pa.ChunkedArray, columns: dict[str, pa.ChunkedArray]
) -> tuple[pa.Array, pa.ChunkedArray, pa.Array]:
    """The records that say something new of their product, when they were made, and since when it is known.

    Of several that do at one time the last in the file stands.
    """
    ids, moments = products.cast(pa.int64()).to_numpy(), times.to_numpy()
    codes = mixed(np.zeros(len(ids), np.int64), *(codes_of(column) for column in columns.values()))
    begins, since = seen.take(ids, moments, codes)
    new = np.flatnonzero(begins)
    order = np.lexsort((new, moments[new], ids[new]))
    same = (np.diff(ids[new][order]) == 0) & (np.diff(moments[new][order]) == 0)  # as the one behind it
    last = np.sort(order[np.append(~same, True)[: len(order)]])
    rows = pa.array(new[last])
    return rows, times.take(rows), pa.array(since[new[last]])


def _products(
    log: PublishedLog,
    products: pa.ChunkedArray,
    columns: dict[str, pa.ChunkedArray],
    rows: pa.Array,
    changed: pa.ChunkedArray,
    since: pa.Array,
) -> pa.Table:
    """The states of products that begin in the given records."""
    count = len(rows)
    always = pa.repeat(pa.scalar(TIMELESS, TIMESTAMP), count)
    said = {name: column.take(rows) for name, column in columns.items()}
    single = {name: said.pop(name) for name in list(said) if name.startswith(ATTRIBUTE_PREFIX)}
    stated = {
        "product_id": products.take(rows),
        "image_names": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.string())),
        "listed_at": always if log.facts_are_timeless else since.cast(TIMESTAMP),
        "event_timestamp": always if log.facts_are_timeless else changed.cast(TIMESTAMP),
        "attributes": _attributes(single, count),
        "deleted": pa.repeat(pa.scalar(False), count),
        **said,
    }
    schema = KINDS["products"].schema()
    absent = {entry.name: pa.nulls(count, entry.type) for entry in schema if entry.name not in stated}
    return pa.table({**stated, **absent}).select(schema.names).cast(schema)


def _attributes(columns: dict[str, pa.ChunkedArray], count: int) -> pa.Array:
    """One map a row, with every column as an attribute."""
    names = [name.removeprefix(ATTRIBUTE_PREFIX) for name in columns]
    offsets = pa.array(np.arange(count + 1) * len(names), pa.int32())
    by_column = pa.chunked_array([chunk for column in columns.values() for chunk in column.chunks], pa.string())
    by_row = np.arange(count * len(names)).reshape(len(names), count).T.ravel()
    items = by_column.take(pa.array(by_row, pa.int64())).combine_chunks()
    return pa.MapArray.from_arrays(offsets, pa.array(names * count, pa.string()), items)


def _info(
    log: PublishedLog,
    files: Sequence[LogFile],
    writer: StageWriter,
    negatives: int,
    fingerprint: str,
    repaired: dict[str, int],
) -> SourceInfo:
    window = writer.span("behaviors")
    assert window is not None
    start, end = window
    notes = f"{log.name}: {', '.join(file.path.name for file in files)}; an action's id is what it says."
    kind = "real behaviour log"
    if negatives:
        kind = "real behaviour log, sampled negatives"
        notes += (
            f" Impressions are the clicks, and beside each up to {negatives} products sampled uniformly from those seen"
            " before it: nobody knows what was shown, so that figures on them compare models on this sample only."
        )
    return SourceInfo(
        log.name,
        negatives > 0,
        kind,
        window,
        start + T1_SHARE * (end - start),
        start + T2_SHARE * (end - start),
        notes,
        fingerprint,
        ignored={"behaviors": list(log.ignored)} if log.ignored else {},
        repaired={rule: count for rule, count in repaired.items() if count},
    )


def _fingerprint(files: Sequence[LogFile], stated: str) -> str:
    """Hash of everything that the stage is made from."""
    digest = hashlib.blake2b(stated.encode(), digest_size=16)
    for file in files:
        digest.update(f"{file.path.name}\0{file.path.stat().st_size}\0".encode())
        with file.path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
