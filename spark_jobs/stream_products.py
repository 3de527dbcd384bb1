"""Job: records of `product_events` into the lake as they come: checked, written, embedded, and served online.

Exactly once in effect: a batch that was cut off comes again whole, and every step leaves out what it finds done. A
record that cannot be read goes to `rejects` and stops nothing. Files dropped in `<home>/incoming` become records.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from moonlake.errors import ContractError
from moonlake.files import exclusive
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.lake.product_events import ProductEvent, submit
from moonlake.logs import running
from moonlake.schema.tables import PRODUCT_EVENTS
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from moonlake.spark.session import session
from moonlake.spark.writes import create_table
from spark_jobs.intake.metrics import Metrics

DROPPED = "incoming"
"""Source of records that came as files."""
VIEWS = ("product_profile_v1", "content_embedding_v1")
"""Feature views that are brought up to date after each batch."""
POLL = "200 milliseconds"
LOOK_SECONDS = 0.5
LIBRARIES = ("spark_jobs.materialize_features", "spark_jobs.intake.batch")
FILES_PER_BATCH = 100
BYTES_PER_BATCH = "64m"
"""A batch passes through the memory of this process."""

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
Say = Callable[[str], None]


@contextmanager
def stream_session(settings: Settings) -> Iterator[SparkSession]:
    """A block with a session of Spark; while it starts, the libraries of Feast and of the encoder are read."""
    with ThreadPoolExecutor(1) as pool:
        reading = [pool.submit(import_module, name) for name in LIBRARIES]  # takes as long as the start
        with session(settings, "stream_products") as spark:
            for one in reading:
                one.result()
            yield spark


def run(lake: SparkLake, *, clock: Clock, once: bool = False, say: Say = lambda _: None) -> None:
    """Take records in until the process is stopped, or once all that there are.

    Args:
        clock: says what time it is.
        say: called with a line when the stream listens.

    Raises: ContractError: another stream of this home is at work; with `once` that is as good.
    """
    from moonlake.feast_delta import materialize
    from moonlake.feast_delta.materialization import serve_changes
    from moonlake.feast_delta.store import feature_store
    from spark_jobs.intake.batch import Intake

    folder = lake.settings.streams
    with exclusive(folder / "products.lock", wait=False) as only:
        if not only and once:
            say("another stream is at work, and takes in what there is")
            return
        if not only:
            raise ContractError(f"another stream takes in the product events of {lake.settings.home}: stop it first")
        create_table(lake, PRODUCT_EVENTS)
        lake.settings.incoming.mkdir(parents=True, exist_ok=True)
        materialize.run(lake.settings, clock(), VIEWS)
        serve = partial(serve_changes, feature_store(lake.settings), VIEWS)
        intake = Intake(lake, serve, clock, Metrics(lake.settings.metrics / "products.prom"))
        if not once:
            intake.warm_up()
        start_files = _start(_dropped(lake), folder / "incoming", once, _hand_in(lake.settings, clock))
        start_records = _start(
            _records(lake), folder / "product_events", once, lambda rows: intake.take(rows.toArrow())
        )
        if once:  # what the files hold is submitted before the records are looked at
            for start in (start_files, start_records):
                start().awaitTermination()
            return
        queries = [start_files(), start_records()]
        say(f"listening to product_events, and to files in {lake.settings.incoming}")
        with _told_to_stop() as stop:
            while all(query.isActive for query in queries) and not stop.wait(LOOK_SECONDS):
                pass
            errors = [] if stop.is_set() else [error for query in queries if (error := query.exception()) is not None]
            for query in queries:
                with suppress(Py4JError, PySparkException):  # a signal to the whole group has ended the JVM too
                    query.stop()
        if errors:
            raise errors[0]
        say("stopped; what came in meanwhile is taken in by the next start")


def _start(
    rows: DataFrame, checkpoint: Path, once: bool, take: Callable[[DataFrame], None]
) -> Callable[[], StreamingQuery]:
    trigger = {"availableNow": True} if once else {"processingTime": POLL}
    writer = rows.writeStream.option("checkpointLocation", str(checkpoint)).trigger(**trigger)
    return writer.foreachBatch(lambda batch, _: take(batch)).start


def _records(lake: SparkLake) -> DataFrame:
    reader = lake.session.readStream.format("delta").option("maxBytesPerTrigger", BYTES_PER_BATCH)
    # Erasure rewrites files of the table: what stays in them was taken in before.
    return reader.option("skipChangeCommits", "true").load(lake.lake.path(PRODUCT_EVENTS.name))


def _dropped(lake: SparkLake) -> DataFrame:
    """Lines of the files in the folder, with the name of each file and when it was last changed."""
    reader = lake.session.readStream.format("text").option("pathGlobFilter", "*.jsonl")
    reader = reader.option("cleanSource", "delete")  # what a file held stands in product_events
    lines = reader.option("maxFilesPerTrigger", FILES_PER_BATCH).load(str(lake.settings.incoming))
    return lines.selectExpr("value", "_metadata.file_name AS file", "_metadata.file_modification_time AS changed_at")


def _hand_in(settings: Settings, clock: Clock) -> Callable[[DataFrame], None]:
    """Lines to records: each holds a product in the form of a payload, with its product_id."""

    def take(lines: DataFrame) -> None:
        lake, now = Lake(settings), clock()
        events: list[ProductEvent] = []
        refused: list[tuple[str, dict[str, str]]] = []
        for line, file, changed_at in zip(*lines.toArrow().to_pydict().values(), strict=True):
            if not line.strip():
                continue
            product_id = _product_id(line)
            if product_id is None:
                refused.append(("payload_unreadable", {"file": file, "line": line}))
                continue
            event_id = stable_hash(f"{file}\0{line}")
            events.append(ProductEvent(event_id, product_id, "upsert", line, DROPPED, changed_at))
        submit(lake, events, written_at=now)
        lake.keep_rejects(PRODUCT_EVENTS.name, refused, source=DROPPED, written_at=now)

    return take


def _product_id(line: str) -> str | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    named = found.get("product_id") if isinstance(found, dict) else None
    return str(named).strip() if isinstance(named, str | int) else None


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """A block in which an interrupt from the keyboard or a scheduler sets the event, and does nothing else."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(one, lambda *_: stop.set()) for one in signals]
    try:
        yield stop
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


def main(argv: Sequence[str] | None = None) -> None:
    """Take in product events until stopped, or what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="take in what there is, and end")
    arguments = parser.parse_args(argv)
    settings = Settings.from_environment()
    with running("stream_products", settings.log_level) as job, stream_session(settings) as spark:
        run(SparkLake(spark, settings), clock=lambda: datetime.now(UTC), once=arguments.once, say=logger.info)
        print(job.report(once=arguments.once))


if __name__ == "__main__":
    main()
