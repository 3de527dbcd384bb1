"""Taobao UserBehavior (Alibaba Tianchi data set 649): 100M actions of nine days, with the category of each item.

`UserBehavior.csv`, without a header: user, item, category, behaviour (pv, cart, fav, buy), time in seconds. The nine
days, 2017-11-25 to 2017-12-03, are days in China; the published file has times decades away from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.datasets.behavior_log import LogFile, ProductFacts, PublishedLog, stage_log
from sources.datasets.log_files import TextBatch, find_file, is_whole_number, read_csv

NAME = "taobao"
FILES = ("UserBehavior.csv", "UserBehavior.csv.gz")
COLUMNS = ("user_id", "product_id", "category_id", "event_type", "event_time")
ACTIONS = {"pv": "click", "fav": "favorite", "cart": "cart", "buy": "purchase"}
WINDOW = (datetime(2017, 11, 24, 16, tzinfo=UTC), datetime(2017, 12, 3, 16, tzinfo=UTC))
"""From the first moment of 2017-11-25 to the last of 2017-12-03, China Standard Time (UTC+8)."""


def stage_taobao(folder: Path, settings: Settings, *, negatives: int = 0, progress: Step = UNWATCHED) -> Path:
    """The staged folder of the log in `folder`. Arguments and errors as for `stage_log`."""
    file = LogFile(find_file(folder, FILES), *WINDOW)
    return stage_log(LOG, [file], settings, negatives=negatives, progress=progress)


def seconds_us(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 [N] microseconds of whole seconds since 1970, which may lie before it; null for anything else."""
    readable = pc.match_substring_regex(cells, "^-?[0-9]{1,11}$")
    return pc.multiply(pc.if_else(readable, cells, None).cast(pa.int64()), 1_000_000)


def _read(path: Path) -> Iterator[TextBatch]:
    return read_csv(path, COLUMNS, header=False)


def _facts(cells: pa.Table) -> ProductFacts:
    """The category of the item: it has one in the whole log."""
    category = cells["category_id"]
    empty = pc.equal(category, "")
    broken = pc.invert(pc.or_(empty, is_whole_number(category)))
    return ProductFacts(
        {"category": pc.if_else(empty, None, category)},
        broken={"category_id_unreadable": broken},
        repaired={"category_empty": empty},
    )


LOG = PublishedLog(NAME, ACTIONS, _read, seconds_us, _facts, facts_are_timeless=True)
