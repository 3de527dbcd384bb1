"""One batch of records after another into the lake and online."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.inference import shared_embedder
from moonlake.embeddings import releases
from moonlake.embeddings.contents import CONTENT_UNREADABLE, Content, read_images
from moonlake.embeddings.spaces import Space
from moonlake.lake.product_events import ProductEvent, record_of
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.row_rules import broken_rules
from moonlake.schema.tables import EMBEDDINGS, PRODUCT_ARRIVALS, PRODUCT_EVENTS, PRODUCT_IMAGES, PRODUCTS, TIMELESS
from moonlake.spark.lake import SparkLake
from moonlake.spark.small_writes import append_few, judge
from spark_jobs.intake.metrics import Metrics
from spark_jobs.intake.records import Batch, IntakeRecord, Known, Record, Refused, process_records

SOURCE = "stream_products"
WARM_UP_WRITES = 2


class Intake:
    """Takes records in, batch by batch. Handing in a batch again changes nothing that was done of it before."""

    def __init__(
        self,
        lake: SparkLake,
        serve: Callable[[datetime], object],
        clock: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        """Args: serve: brings the online store up to a moment."""
        self.spark_lake, self.settings = lake, lake.settings
        self.serve, self.clock, self.metrics = serve, clock, metrics
        self.lake = lake.lake

    def warm_up(self) -> None:
        """Have done what the first products would wait for: encoders loaded, and Spark warm."""
        for space in self._live_spaces():
            shared_embedder(space.artifact, self.settings.workers).embed_readable(["warm"], [[]])
        now = self.clock()
        with TemporaryDirectory() as home:
            scratch = self.settings.model_copy(update={"home": Path(home), "lake_uri": None})
            for name in range(WARM_UP_WRITES):
                event = ProductEvent(str(name), str(name), "upsert", '{"title": "warm"}', SOURCE, now)
                rows = process_records([Record.read(event, now)], Known()).states()
                judge(self.spark_lake.session, PRODUCTS.name, rows)
                append_few(SparkLake(self.spark_lake.session, scratch), PRODUCTS.name, rows, written_at=now)

    def take(self, rows: pa.Table) -> None:
        """Rows of `product_events` into the lake and online, in the order in which they were submitted."""
        began = self.clock()
        records, refused = _read(rows)
        batch = process_records(records, self._known(records))
        self._judge_states(batch)
        images = batch.image_rows()
        vectors, refused_vectors = self._embed(batch, dict(zip(*_pairs(images), strict=True)))
        with ThreadPoolExecutor(2) as pool:  # a product is seen only when its images and vectors are there
            for writing in [
                pool.submit(self._append, PRODUCT_IMAGES.name, images, began),
                pool.submit(self._append, EMBEDDINGS.name, vectors, began),
            ]:
                writing.result()
        self._append(PRODUCTS.name, batch.states(), began)
        self.serve(self.clock())
        for table, rule, record in (*refused, *batch.refused):
            self.lake.keep_rejects(table, [(rule, record)], source=SOURCE, written_at=began)
        # Under the name of the job that would come upon them too.
        self.lake.keep_rejects(EMBEDDINGS.name, refused_vectors, source="embed_contents", written_at=began)
        self._settle(batch)

    def _append(self, name: str, rows: pa.Table, written_at: datetime) -> list[bool]:
        return append_few(self.spark_lake, name, rows, written_at=written_at)

    def _known(self, records: Iterable[Record]) -> Known:
        records = list(records)
        events = [record.event for record in records]

        def found(name: str, column: str, values: Iterable[str], columns: Iterable[str]) -> pa.Table:
            wanted = pa.array(sorted(set(values)), pa.string())
            return self.lake.read(name, list(columns), where=pc.field(column).isin(wanted))

        arrived = found(
            PRODUCT_ARRIVALS.name, "event_id", (event.event_id for event in events), ["event_id", "record_hash"]
        )
        states: dict[str, list[Mapping[str, Any]]] = {}
        ids = (event.product_id for event in events)
        for row in found(PRODUCTS.name, "product_id", ids, PRODUCTS.names).sort_by("created_at").to_pylist():
            states.setdefault(row["product_id"], []).append({**row, "attributes": sorted(row["attributes"])})
        named = [name for record in records for name in record.images_elsewhere]
        images = found(PRODUCT_IMAGES.name, "image_id", named, ["image_id"])["image_id"].to_pylist() if named else []
        hashes = dict(zip(arrived["event_id"].to_pylist(), arrived["record_hash"].to_pylist(), strict=True))
        return Known(hashes, states, frozenset(images))

    def _judge_states(self, batch: Batch) -> None:
        """Refuse the states that break a rule of the table."""
        standing = [taken for taken in batch.records if taken.state is not None]
        for taken, rule in zip(standing, judge(self.spark_lake.session, PRODUCTS.name, batch.states()), strict=True):
            if rule is not None:
                taken.refuse(rule)
                batch.refused.append((PRODUCTS.name, rule, record_of(taken.record.event)))

    def _live_spaces(self) -> list[Space]:
        """The spaces that some use runs on."""
        ids = dict.fromkeys(one.space_id for one in releases.running(self.lake).values())
        return [releases.find(self.lake, space_id) for space_id in ids]

    def _embed(self, batch: Batch, files: Mapping[str, bytes]) -> tuple[pa.Table, list[tuple[str, dict[str, str]]]]:
        """Vectors, in each live space, of the contents that have none there; and the rules by which others get none."""
        contents = {taken.content.content_id: taken.content for taken in batch.records if taken.content}
        vectors: list[dict[str, Any]] = []
        refused: list[tuple[str, dict[str, str]]] = []
        for space in self._live_spaces():
            wanted = self._without_vector(contents, space)
            if not wanted:
                continue
            elsewhere = {one for content in wanted for one in content.image_ids} - files.keys()
            known = {**read_images(self.lake, elsewhere), **files} if elsewhere else files
            embedder = shared_embedder(space.artifact, self.settings.workers)
            images = [[known[one] for one in content.image_ids if one in known] for content in wanted]
            made, readable = embedder.embed_readable([content.text for content in wanted], images)
            for content, vector, good in zip(wanted, made, readable, strict=True):
                identity = {"content_id": content.content_id, "space_id": space.space_id}
                if good:
                    vectors.append({**identity, "vector": vector, "event_timestamp": TIMELESS})
                else:
                    refused.append((CONTENT_UNREADABLE, identity))
        made_rows = pa.Table.from_pylist(vectors, arrow_schema(EMBEDDINGS, EMBEDDINGS.facts))
        rules = judge(self.spark_lake.session, EMBEDDINGS.name, made_rows)
        for rule, row in zip(rules, vectors, strict=True):
            if rule is not None:
                refused.append((rule, {name: row[name] for name in EMBEDDINGS.key}))
        return made_rows.filter(pa.array([rule is None for rule in rules], pa.bool_())), refused

    def _without_vector(self, contents: Mapping[str, Content], space: Space) -> list[Content]:
        found = self._with_vector(contents, space.space_id)
        return [content for content_id, content in contents.items() if content_id not in found]

    def _with_vector(self, content_ids: Iterable[str], space_id: str) -> set[str]:
        wanted = pa.array(sorted(content_ids), pa.string())
        where = (pc.field("space_id") == space_id) & pc.field("content_id").isin(wanted)
        return set(self.lake.read(EMBEDDINGS.name, ["content_id"], where=where)["content_id"].to_pylist())

    def _settle(self, batch: Batch) -> None:
        """Record what became of each record: the last step, after which the batch is not taken in again."""
        live = [space.space_id for space in self._live_spaces()]
        ids = {taken.content.content_id for taken in batch.records if taken.content}
        served = set.intersection(*(self._with_vector(ids, space_id) for space_id in live)) if live else set()
        now = self.clock()
        rows = []
        for taken in batch.records:
            outcome = _outcome(taken, served)
            rows.append(taken.as_row(outcome, now))
            self.metrics.record(outcome, (now - taken.record.handed_in_at).total_seconds())
        if rows:
            facts = pa.Table.from_pylist(rows, arrow_schema(PRODUCT_ARRIVALS, PRODUCT_ARRIVALS.facts))
            self.lake.append(PRODUCT_ARRIVALS.name, facts, written_at=now)
        self.metrics.write()


def _outcome(taken: IntakeRecord, served: set[str]) -> str:
    if taken.content is None:
        return "refused"
    if taken.state is None:
        return "unchanged"
    return "servable" if taken.content.content_id in served else "without_vector"


def _read(rows: pa.Table) -> tuple[list[Record], list[Refused]]:
    """The records in the order in which they were submitted, and those that no writer of ours would have let in."""
    rows = rows.select(PRODUCT_EVENTS.names)
    rules = broken_rules(PRODUCT_EVENTS, rows)
    records: list[Record] = []
    refused: list[Refused] = []
    for rule, row in zip(rules, rows.to_pylist(), strict=True):
        handed_in_at = row.pop("created_at")
        event = ProductEvent(**row)
        if rule is not None:
            refused.append((PRODUCT_EVENTS.name, rule, record_of(event)))
        else:
            records.append(Record.read(event, handed_in_at))
    return sorted(records, key=lambda record: record.handed_in_at), refused


def _pairs(images: pa.Table) -> tuple[list[str], list[bytes]]:
    return images["image_id"].to_pylist(), images["image_bytes"].to_pylist()
