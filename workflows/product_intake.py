"""Products submitted one by one: a folder submitted, the intake waited for, and how long it takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import RecordRefused
from moonlake.lake.lake import Lake, WriteReport
from moonlake.lake.product_events import ProductEvent, submit
from sources.own_files.product_payload import read_products

EVENTS_AT_ONCE = 100
LOOK_SECONDS = 0.5
QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of submitting a folder.

    Attributes:
        event_ids: the records that were submitted.
        refused: records that could not be read or broke a rule; they are in `rejects`.
    """

    event_ids: tuple[str, ...]
    refused: int


@dataclass(frozen=True, slots=True)
class Intake:
    """The outcomes of records that were submitted.

    Attributes:
        outcomes: number of records by outcome.
        waiting: records that have none yet.
        seconds_to_servable: quantiles of the time from submission until servable; empty where no record is servable.
    """

    outcomes: dict[str, int]
    waiting: int
    seconds_to_servable: dict[str, float]


def submit_folder(lake: Lake, folder: Path, *, source: str, clock: Clock) -> Submitted:
    """Submit the products of a folder that is in the form of docs/own_files.md."""
    event_ids: list[str] = []
    refused = 0
    waiting: list[ProductEvent] = []

    def send() -> None:
        nonlocal refused
        refused += submit(lake, waiting, written_at=clock()).rejected
        event_ids.extend(event.event_id for event in waiting)
        waiting.clear()

    for found in read_products(folder):
        if isinstance(found, RecordRefused):
            refused += 1
            record = [(found.rule, {"folder": str(folder), "record": str(found)})]
            lake.keep_rejects("product_events", record, source=source, written_at=clock())
            continue
        waiting.append(ProductEvent(uuid4().hex, found[0], "upsert", found[1], source, clock()))
        if len(waiting) == EVENTS_AT_ONCE:
            send()
    send()
    return Submitted(tuple(event_ids), refused)


def submit_deletes(lake: Lake, product_ids: Iterable[str], *, source: str, now: datetime) -> WriteReport:
    """Submit that products are off sale from now on."""
    events = [ProductEvent(uuid4().hex, product_id, "delete", "{}", source, now) for product_id in product_ids]
    return submit(lake, events, written_at=now)


def wait_for(lake: Lake, event_ids: Sequence[str], *, seconds: float) -> Intake:
    """The outcomes of records when all have one, or when the time is over."""
    wanted = pa.array(sorted(set(event_ids)), pa.string())
    until = time.monotonic() + seconds
    while True:
        found = _intake(lake, pc.field("event_id").isin(wanted), set(wanted.to_pylist()))
        if not found.waiting or time.monotonic() > until:
            return found
        time.sleep(LOOK_SECONDS)


def intake_since(lake: Lake, since: datetime) -> Intake:
    """The outcomes of the records that were submitted since a moment."""
    handed_in = lake.read("product_events", ["event_id"], where=pc.field("created_at") >= since)["event_id"]
    return _intake(lake, pc.field("handed_in_at") >= since, set(handed_in.to_pylist()))


def _intake(lake: Lake, where: pc.Expression, handed_in: set[str]) -> Intake:
    columns = ["event_id", "outcome", "handed_in_at", "event_timestamp"]
    rows = lake.read("product_arrivals", columns, where=where).to_pylist()
    times = [
        (row["event_timestamp"] - row["handed_in_at"]).total_seconds() for row in rows if row["outcome"] == "servable"
    ]
    quantiles = {name: float(np.quantile(times, at)) for name, at in QUANTILES.items()} if times else {}
    waiting = len(handed_in - {row["event_id"] for row in rows})
    return Intake(dict(sorted(Counter(row["outcome"] for row in rows).items())), waiting, quantiles)
