"""`moonlake product`: hand new and changed products in, take them in as they come, and see how long it takes."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import typer

from moonlake.lake.lake import Lake
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.lake.product_events import ProductEvent

product_app = typer.Typer(no_args_is_help=True, help="New and changed products.")

EVENTS_AT_ONCE = 100
LOOK_SECONDS = 0.5


@product_app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Folder with products.jsonl, .csv or .parquet, and images.")],
    source: Annotated[str, typer.Option(help="Name of whoever hands them in.")] = "products-add",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until all are taken in.")] = 0,
) -> None:
    """Hand products in, in the form of docs/own_files.md; a stream (`moonlake product watch`) takes them in."""
    from moonlake.errors import RecordRefused
    from moonlake.lake.product_events import hand_in
    from sources.own_files.product_payload import read_products

    lake = Lake(Settings.from_environment())
    handed_in: list[str] = []
    rejected = 0
    waiting: list[ProductEvent] = []

    def send() -> None:
        nonlocal rejected
        report = hand_in(lake, waiting, written_at=datetime.now(UTC))
        rejected += report.rejected
        handed_in.extend(event.event_id for event in waiting)
        waiting.clear()

    for found in read_products(folder):
        if isinstance(found, RecordRefused):
            rejected += 1
            record = [(found.rule, {"folder": str(folder), "record": str(found)})]
            lake.keep_rejects("product_events", record, source=source, written_at=datetime.now(UTC))
            continue
        waiting.append(_event(*found, source))
        if len(waiting) == EVENTS_AT_ONCE:
            send()
    send()
    typer.echo(f"{len(handed_in):,} records handed in, {rejected:,} refused (table rejects)")
    if wait:
        _wait_for(lake, handed_in, wait)


@product_app.command()
def delete(
    product_ids: Annotated[list[str], typer.Argument(help="Products that are no longer sold.")],
    source: Annotated[str, typer.Option(help="Name of whoever hands them in.")] = "products-delete",
) -> None:
    """Hand in that products are off sale from now; what was true before stays (`moonlake erase` takes that too)."""
    from moonlake.lake.product_events import ProductEvent, hand_in

    now = datetime.now(UTC)
    events = [ProductEvent(uuid4().hex, product_id, "delete", "{}", source, now) for product_id in product_ids]
    report = hand_in(Lake(Settings.from_environment()), events, written_at=now)
    typer.echo(f"{report.written:,} records handed in, {report.rejected:,} refused (table rejects)")


@product_app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Take in what there is, and end.")] = False,
) -> None:
    """Take records in as they come, until stopped; after a kill the same command goes on."""
    from spark_jobs import stream_products

    settings = Settings.from_environment()
    with stream_products.stream_session(settings) as spark:
        stream_products.run(spark, settings, clock=lambda: datetime.now(UTC), once=once, say=typer.echo)


@product_app.command()
def status(
    hours: Annotated[float, typer.Option(min=0, help="Look back so far.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Counts of recent records by outcome, of records that wait, and the time from handing in until servable."""
    import numpy as np

    lake = Lake(Settings.from_environment())
    since = datetime.now(UTC) - timedelta(hours=hours)
    arrived = lake.read(
        "product_arrivals", ["event_id", "outcome", "handed_in_at", "event_timestamp"],
        where=pc.field("handed_in_at") >= since,
    )  # fmt: skip
    handed_in = lake.read("product_events", ["event_id"], where=pc.field("created_at") >= since)["event_id"]
    waiting = len(set(handed_in.to_pylist()) - set(arrived["event_id"].to_pylist()))
    rows = arrived.to_pylist()
    outcomes = Counter(row["outcome"] for row in rows)
    times = [
        (row["event_timestamp"] - row["handed_in_at"]).total_seconds() for row in rows if row["outcome"] == "servable"
    ]
    quantiles = (
        {name: float(np.quantile(times, at)) for name, at in (("p50", 0.5), ("p95", 0.95), ("max", 1))} if times else {}
    )
    if as_json:
        typer.echo(json.dumps({"outcomes": outcomes, "waiting": waiting, "seconds_to_servable": quantiles}, indent=2))
        return
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"
    typer.echo(f"records of the last {hours:g} hours: {said}; {waiting:,} not taken in")
    if quantiles:
        typer.echo("product to servable: " + ", ".join(f"{name} {value:.2f} s" for name, value in quantiles.items()))


def _event(product_id: str, payload: str, source: str) -> ProductEvent:
    from moonlake.lake.product_events import ProductEvent

    return ProductEvent(uuid4().hex, product_id, "upsert", payload, source, datetime.now(UTC))


def _wait_for(lake: Lake, event_ids: list[str], seconds: float) -> None:
    """Say what became of records, when all are taken in or the time is over. Ends with status 1 where it is."""
    wanted = pa.array(sorted(set(event_ids)), pa.string())
    until = time.monotonic() + seconds
    while True:
        found = lake.read("product_arrivals", ["event_id", "outcome"], where=pc.field("event_id").isin(wanted))
        if len(found) == len(wanted) or time.monotonic() > until:
            break
        time.sleep(LOOK_SECONDS)
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(Counter(found["outcome"].to_pylist()).items()))
    typer.echo(f"taken in: {said or 'none'}")
    if len(found) < len(wanted):
        left = len(wanted) - len(found)
        typer.echo(f"{left:,} not taken in within {seconds:g} s: is `moonlake product watch` running?")
        raise typer.Exit(1)
