"""The door for new and changed products: records that any outside writer appends to `product_events`, without a JVM.

What stands in a payload is looked at by whoever takes the record in (`spark_jobs/stream_products.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import pyarrow as pa
from deltalake import write_deltalake

from moonlake.lake.lake import PROPERTIES, Lake, WriteReport
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.row_rules import broken_rules
from moonlake.schema.tables import PRODUCT_EVENTS

UNNAMED = "unnamed"
"""Source, in `rejects`, of a record that names none."""
SHOWN_CHARACTERS = 500
"""Of a payload that is refused so much is kept."""


@dataclass(frozen=True, slots=True)
class ProductEvent:
    """One record that asks to add, change or delete a product.

    Attributes:
        event_id: the writer's own id; the same record submitted again has no effect.
        payload: the product as JSON (docs/new_products.md); anything for a delete.
        source: who hands it in.
        event_timestamp: when the product became so, unless the payload says.
    """

    event_id: str
    product_id: str
    kind: Literal["upsert", "delete"]
    payload: str
    source: str
    event_timestamp: datetime


def submit(lake: Lake, events: Sequence[ProductEvent], *, written_at: datetime) -> WriteReport:
    """The report of appending the records in one commit; records that break a rule go to `rejects`.

    Nothing is looked up, so that submission costs the same however many there were before.
    """
    table = PRODUCT_EVENTS
    if not events:
        return lake.nothing_for(table.name)
    nullable = pa.schema(field.with_nullable(True) for field in arrow_schema(table, table.facts))
    rows = pa.Table.from_pylist([asdict(event) for event in events], nullable)
    rules = broken_rules(table, rows)
    for event, rule in zip(events, rules, strict=True):
        if rule is not None:
            source = event.source or UNNAMED
            lake.keep_rejects(table.name, [(rule, record_of(event))], source=source, written_at=written_at)
    good = rows.filter(pa.array([rule is None for rule in rules]))
    if len(good):
        schema = arrow_schema(table)
        stamped = good.append_column("created_at", pa.array([written_at] * len(good), schema.field("created_at").type))
        write_deltalake(
            lake.path(table.name),
            stamped.select(table.names).cast(schema),
            mode="append",
            configuration=PROPERTIES,
            description=table.grain,
        )
    by_rule = dict(Counter(rule for rule in rules if rule is not None))
    return WriteReport(table.name, len(rows), len(good), len(rows) - len(good), 0, 0, lake.version(table.name), by_rule)


def record_of(event: ProductEvent) -> dict[str, str]:
    """The record as `rejects` shows it, its payload cut."""
    return {
        "event_id": event.event_id,
        "product_id": event.product_id,
        "kind": event.kind,
        "payload": event.payload[:SHOWN_CHARACTERS],
        "event_timestamp": event.event_timestamp.isoformat(),
    }
