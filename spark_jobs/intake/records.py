"""Records of `product_events` as rows of the lake: states of products, their images, and why others are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from moonlake.embeddings.contents import Content, content_of, prompt_text
from moonlake.embeddings.images import inspect
from moonlake.errors import ImageRefused, RecordRefused
from moonlake.hashing import stable_hash
from moonlake.lake.product_events import ProductEvent, record_of
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.contract import Table
from moonlake.schema.tables import PRODUCT_IMAGES, PRODUCTS
from sources.own_files.product_payload import Payload, read_payload

IMAGE_NOT_FOUND = "image_not_found"
"""The rule that a name in `image_names` breaks which no readable image answers; the product is loaded without it."""
MOST_AHEAD = timedelta(hours=1)
"""Clocks of writers may be ahead of ours by so much. A state of a later time would keep true ones from being served."""

SAID = tuple(name for name in PRODUCTS.facts if name not in ("event_timestamp", "source"))
"""What a record says of a product: where all of it stood already, nothing is written."""

Refused = tuple[str, str, Mapping[str, Any]]
"""Table, rule and record, as they go to `rejects`."""


@dataclass(frozen=True, slots=True)
class Known:
    """Rows of the lake that the records of one batch are compared with.

    Attributes:
        record_hashes: of the records that were taken in before, by event_id.
        states: rows of `products` by product_id, of one event time the one written last behind the others.
        image_ids: of the images that are named and are there.
    """

    record_hashes: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    image_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read.

    Attributes:
        handed_in_at: when it was written to `product_events`.
        payload: None for a delete, and where it cannot be read.
        rule: the rule that it breaks which cannot be read.
    """

    event: ProductEvent
    handed_in_at: datetime
    payload: Payload | None
    rule: str | None

    @classmethod
    def read(cls, event: ProductEvent, handed_in_at: datetime) -> Record:
        """The record with its payload, if it has one."""
        if event.kind == "delete":
            return cls(event, handed_in_at, None, None)
        try:
            return cls(event, handed_in_at, read_payload(event.payload, event.product_id), None)
        except RecordRefused as refused:
            return cls(event, handed_in_at, None, refused.rule)

    @property
    def images_elsewhere(self) -> list[str]:
        """Names of images that the payload does not hold: ids of images of the lake."""
        return [name for name in self.payload.image_names if name not in self.payload.images] if self.payload else []


@dataclass(slots=True)
class IntakeRecord:
    """One record that is taken in.

    Attributes:
        state: a row of `products`; None when the record is refused or says nothing new.
        content: None when the record is refused.
    """

    record: Record
    state: dict[str, Any] | None = None
    content: Content | None = None
    rule: str | None = None

    @property
    def record_hash(self) -> str:
        """Hash of everything that the record says."""
        said = asdict(self.record.event)
        return stable_hash("\0".join(str(said[name]) for name in sorted(said)))

    def refuse(self, rule: str) -> None:
        """Take back what was read of the record."""
        self.rule, self.state, self.content = rule, None, None

    def as_row(self, outcome: str, at: datetime) -> dict[str, Any]:
        """The row of `product_arrivals`."""
        return {
            "event_id": self.record.event.event_id,
            "record_hash": self.record_hash,
            "product_id": self.record.event.product_id,
            "content_id": self.content.content_id if self.content else None,
            "outcome": outcome,
            "handed_in_at": self.record.handed_in_at,
            "event_timestamp": at,
        }


@dataclass(slots=True)
class Batch:
    """The outcome of a batch of records.

    Attributes:
        records: those that were not taken in before, in the order in which they were submitted.
        images: rows of `product_images` by image_id.
        refused: images and records that are no part of the lake.
    """

    records: list[IntakeRecord] = field(default_factory=list)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    def states(self) -> pa.Table:
        """The states of products, in the order of their records."""
        rows = [taken.state for taken in self.records if taken.state is not None]
        return pa.Table.from_pylist(rows, _nullable(PRODUCTS))

    def image_rows(self) -> pa.Table:
        """The images of these states."""
        return pa.Table.from_pylist(list(self.images.values()), _nullable(PRODUCT_IMAGES))


def process_records(records: Iterable[Record], known: Known) -> Batch:
    """The outcome of records, taken in the order in which they were submitted."""
    batch = Batch()
    hashes = dict(known.record_hashes)
    states = {product_id: list(rows) for product_id, rows in known.states.items()}
    for record in records:
        taken, event = IntakeRecord(record), record.event
        if (before := hashes.get(event.event_id)) is not None:
            if before != taken.record_hash:
                batch.refused.append((PRODUCTS.name, "event_id_repeated", record_of(event)))
            continue
        hashes[event.event_id] = taken.record_hash
        batch.records.append(taken)
        try:
            _fill(taken, states.setdefault(event.product_id, []), known.image_ids, batch)
        except RecordRefused as refused:
            taken.refuse(refused.rule)
            batch.refused.append((PRODUCTS.name, refused.rule, record_of(event)))
    return batch


def _fill(taken: IntakeRecord, states: list[Mapping[str, Any]], image_ids: frozenset[str], batch: Batch) -> None:
    record, event = taken.record, taken.record.event
    if record.rule is not None:
        raise RecordRefused(record.rule, "the payload cannot be read")
    if record.payload is None:
        state = _deleted(event, states)
    else:
        state = _state(event, record.payload, states)
        state["image_ids"] = _images(event, record.payload, image_ids, batch)
    if state["event_timestamp"] > record.handed_in_at + MOST_AHEAD:
        raise RecordRefused("event_timestamp_ahead", f"{state['event_timestamp']} is after it was submitted")
    content = content_of(prompt_text(state["title"], dict(state["attributes"])), state["image_ids"])
    state |= {"content_id": content.content_id, "source": event.source}
    taken.content = content
    before = _last_until(state["event_timestamp"], states)
    said_before = before is not None and all(before[name] == state[name] for name in SAID)
    # Of the very same moment it is what this record said when its batch was cut off.
    if before is None or not said_before or before["event_timestamp"] == state["event_timestamp"]:
        taken.state = state
        states.append(state)


def _deleted(event: ProductEvent, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = _last_until(event.event_timestamp, states)
    if last is None:
        raise RecordRefused("product_unknown", f"product {event.product_id} is not there to be deleted")
    return {**last, "deleted": True, "event_timestamp": event.event_timestamp}


def _last_until(moment: datetime, states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The state that stands at a moment, of those that are known."""
    earlier = [state for state in reversed(states) if state["event_timestamp"] <= moment]
    return max(earlier, key=lambda state: state["event_timestamp"], default=None)


def _state(event: ProductEvent, payload: Payload, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The product's columns as the payload has them; what it does not say is absent, not as it was."""
    cells = {name: value for name, value in payload.cells.items() if name in PRODUCTS.facts}
    at = cells["event_timestamp"] or event.event_timestamp
    first_listed = min((state["listed_at"] for state in states), default=at)
    return {
        **cells,
        "attributes": sorted(cells["attributes"] or []),
        "deleted": bool(cells["deleted"]),
        "listed_at": cells["listed_at"] or min(first_listed, at),
        "event_timestamp": at,
    }


def _images(event: ProductEvent, payload: Payload, image_ids: frozenset[str], batch: Batch) -> list[str]:
    """Ids of the product's images in order, those that can be read."""
    found = []
    for name in payload.image_names:
        if name in payload.images:
            try:
                found.append(_image(event, payload.images[name], batch))
            except ImageRefused as refused:
                said = {"product_id": event.product_id, "name": name, "event_id": event.event_id}
                batch.refused.append((PRODUCT_IMAGES.name, refused.rule, said))
        elif name in image_ids or name in batch.images:
            found.append(name)
        else:
            said = {"product_id": event.product_id, "name": name, "event_id": event.event_id}
            batch.refused.append((PRODUCT_IMAGES.name, IMAGE_NOT_FOUND, said))
    return found


def _image(event: ProductEvent, image_bytes: bytes | None, batch: Batch) -> str:
    if image_bytes is None:
        raise ImageRefused("image_unreadable", "not base64")
    facts = inspect(image_bytes)
    batch.images.setdefault(facts.image_id, {**asdict(facts), "image_bytes": image_bytes, "source": event.source})
    return facts.image_id


def _nullable(table: Table) -> pa.Schema:
    """The facts of a contract; a null where none may be is for the rules to find."""
    return pa.schema(entry.with_nullable(True) for entry in arrow_schema(table, table.facts))
