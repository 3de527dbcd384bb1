"""OTTO recommender data set: 220M clicks, carts and orders of four weeks, a session a line of JSON, with ids only.

`train.jsonl` or `otto-recsys-train.jsonl`, also gzipped, with lines such as
`{"session": 0, "events": [{"aid": 1517085, "ts": 1659304800025, "type": "clicks"}]}`; times are in milliseconds. A
session is all that one user did in the four weeks, so it is the user here. The test file is not read: its sessions are
cut where the competition asks what comes next.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.datasets.behavior_log import EVENT_COLUMNS, LogFile, PublishedLog, stage_log
from sources.datasets.log_files import TextBatch, find_file

NAME = "otto"
FILES = ("train.jsonl", "train.jsonl.gz", "otto-recsys-train.jsonl", "otto-recsys-train.jsonl.gz")
ACTIONS = {"clicks": "click", "carts": "cart", "orders": "purchase"}
WINDOW = (datetime(2022, 7, 31, 22, tzinfo=UTC), datetime(2022, 8, 28, 22, tzinfo=UTC))
"""Four weeks, 2022-08-01 to 2022-08-28, in Germany (UTC+2)."""
EVENTS_PER_BATCH = 100_000


def stage_otto(folder: Path, settings: Settings, *, negatives: int = 0, progress: Step = UNWATCHED) -> Path:
    """The staged folder of the log in `folder`. Arguments and errors as for `stage_log`."""
    file = LogFile(find_file(folder, FILES), *WINDOW)
    return stage_log(LOG, [file], settings, negatives=negatives, progress=progress)


def milliseconds_us(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 [N] microseconds of whole milliseconds since 1970; null for anything else."""
    readable = pc.match_substring_regex(cells, "^-?[0-9]{1,15}$")
    return pc.multiply(pc.if_else(readable, cells, None).cast(pa.int64()), 1_000)


def _read(path: Path) -> Iterator[TextBatch]:
    """The events in batches. A line that is no session is refused whole, an event that is none alone."""
    rows: list[tuple[str, ...]] = []
    lines: list[object] = []
    events: list[object] = []
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as stream:
            for line in stream:
                session = _session(line)
                if session is None:
                    if line.strip():
                        lines.append(line.decode(errors="surrogateescape").strip())
                    continue
                user, found = _text(session.get("session")), cast(list[object], session["events"])
                for event in found:
                    if isinstance(event, dict):
                        rows.append((user, *(_text(event.get(name)) for name in ("aid", "type", "ts"))))
                    else:
                        events.append({"session": session.get("session"), "event": event})
                if len(rows) >= EVENTS_PER_BATCH:
                    yield _batch(rows, lines, events)
                    rows, lines, events = [], [], []
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from None
    yield _batch(rows, lines, events)


def _session(line: bytes) -> dict[str, object] | None:
    try:
        session = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return session if isinstance(session, dict) and isinstance(session.get("events"), list) else None


def _text(value: object) -> str:
    """A cell as text, "" for an absent one; what is neither a text nor a whole number stays visible as JSON."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return "" if value is None else json.dumps(value)


def _batch(rows: list[tuple[str, ...]], lines: list[object], events: list[object]) -> TextBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(EVENT_COLUMNS)
    cells = pa.table([pa.array(column, pa.string()) for column in columns], names=list(EVENT_COLUMNS))
    return TextBatch(cells, {"json_unreadable": lines, "event_unreadable": events})


LOG = PublishedLog(NAME, ACTIONS, _read, milliseconds_us)
