"""REES46 behaviour of a multi-category store: a file a month, with category, brand and price as of each event.

`2019-Oct.csv`, also as the `.csv.gz` that Kaggle ships, and every other month that lies in the folder. A product whose
category, brand or price differs from what the event before said has changed: it has a state from each such event on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.datasets.behavior_log import LogFile, ProductFacts, PublishedLog, stage_log
from sources.datasets.log_files import TextBatch, not_text, read_csv

NAME = "rees46"
COLUMNS = ("event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price", "user_id")
IGNORED = ("user_session",)
ACTIONS = {"view": "click", "cart": "cart", "purchase": "purchase"}
TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"
MONTH_FILE = re.compile(r"(\d{4}-[A-Z][a-z]{2})\.csv(\.gz)?")


def stage_rees46(folder: Path, settings: Settings, *, negatives: int = 0, progress: Step = UNWATCHED) -> Path:
    """The staged folder of all months in `folder`, oldest first. Arguments and errors as for `stage_log`.

    Raises: InputError: also when a month is there twice, or none is.
    """
    return stage_log(LOG, month_files(folder), settings, negatives=negatives, progress=progress)


def month_files(folder: Path) -> list[LogFile]:
    """The files of a folder that are named after their month, oldest first, each with its month as its window."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder that holds 2019-Oct.csv or other months")
    months: dict[datetime, Path] = {}
    for path in sorted(folder.iterdir()):
        if named := MONTH_FILE.fullmatch(path.name):
            month = _month(path, named[1])
            if month in months:
                raise InputError(f"{folder} holds {named[1]} twice: {months[month].name} and {path.name}; keep one")
            months[month] = path
    if not months:
        raise InputError(f"{folder} holds no month; expected files such as 2019-Oct.csv or 2019-Nov.csv.gz")
    return [LogFile(path, month, (month + timedelta(days=31)).replace(day=1)) for month, path in sorted(months.items())]


def _month(path: Path, name: str) -> datetime:
    try:
        return datetime.strptime(name, "%Y-%b").replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"{path}: {name} is no month; expected a name such as 2019-Oct.csv") from None


def written_time_us(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 [N] microseconds of times such as "2019-10-01 00:00:00 UTC"; null for anything else."""
    parsed = pc.strptime(cells, format=TIME_FORMAT, unit="s", error_is_null=True)
    same = pc.equal(pc.strftime(parsed, format=TIME_FORMAT), cells)  # the 30th of February is read as some day in March
    return pc.multiply(pc.if_else(same, parsed, None).cast(pa.int64()), 1_000_000)


def _read(path: Path) -> Iterator[TextBatch]:
    return read_csv(path, COLUMNS, header=True)


def _facts(cells: pa.Table) -> ProductFacts:
    """Category, brand and price; an empty cell and a price of zero say that it is not known."""
    texts = {
        "category": cells["category_code"],
        "brand": cells["brand"],
        "attributes.category_id": cells["category_id"],
    }
    empty = {name: pc.equal(column, "") for name, column in texts.items()}
    price = cells["price"]
    no_price = pc.equal(price, "")
    readable = pc.match_substring_regex(price, r"^-?[0-9]{1,12}(\.[0-9]+)?$")
    amount = pc.if_else(readable, price, None).cast(pa.float64())
    zero = pc.fill_null(pc.equal(amount, 0.0), False)
    cents = pc.round(pc.multiply(amount, 100.0)).cast(pa.int64())
    columns = {name: pc.if_else(empty[name], None, column) for name, column in texts.items()}
    return ProductFacts(
        columns | {"price_cents": pc.if_else(zero, None, cents)},
        broken={
            "text_unreadable": pc.or_(
                pc.or_(*(not_text(texts[name]) for name in ("category", "brand"))),
                not_text(texts["attributes.category_id"]),
            ),
            "price_unreadable": pc.invert(pc.or_(no_price, readable)),
            "price_negative": pc.less(amount, 0.0),
        },
        repaired={
            "category_empty": empty["category"],
            "brand_empty": empty["brand"],
            "price_empty": no_price,
            "price_zero": zero,
        },
    )


LOG = PublishedLog(NAME, ACTIONS, _read, written_time_us, _facts, ignored=IGNORED)
