"""Every id column of the contracts is known; what goes with a product or user is that, and what others have stays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonlake.lake.lake import Lake
from moonlake.maintenance.erasure import RECORDS, is_id, kind_of, names_of, names_that_go, parallel_lists
from moonlake.maintenance.erasure_search import Search, search_home
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings

Row = dict[str, Any]
Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
CONTENTS = {name: str(number) * 32 for number, name in enumerate(("own", "shared", "query", "anyones"), 1)}
IMAGES = {name: name * 32 for name in "abc"}


def test_every_column_of_ids_is_known_by_its_name() -> None:
    looks_like_ids = {
        f"{table.name}.{column.name}"
        for table in TABLES.values()
        for column in table
        if column.name.removesuffix("s").endswith(("_id", "_key", "_ref")) or column.name in ("product", "user")
    }
    known = {f"{table.name}.{column.name}" for table in TABLES.values() for column in table if is_id(column.name)}
    assert looks_like_ids - known == set(), "say in erasure.py what these ids are of: KINDS or OTHER_IDS"


def test_ids_that_go_stand_in_columns_that_can_be_erased() -> None:
    for table in TABLES.values():
        for column in table:
            if kind_of(column.name):
                assert column.type in ("string", "list<string>"), f"{table.name}.{column.name}"
        of_ids = [column for column in table if kind_of(column.name) and column.type == "list<string>"]
        parallel = parallel_lists(table)
        assert not parallel or {column.name for column in of_ids} <= set(parallel), table.name
        assert not parallel or {"times_us", "event_timestamp"} <= set(table.names), table.name


def test_texts_that_hold_whole_records_are_known() -> None:
    raw = {
        table.name: column.name
        for table in TABLES.values()
        for column in table
        if column.type == "string" and "as JSON" in column.meaning and "the record" in column.meaning
    }
    assert raw == RECORDS


@pytest.fixture
def shop(settings: Settings, write_rows: Write) -> Lake:
    own, shared = CONTENTS["own"], CONTENTS["shared"]
    first: Row = {"product_id": "p1", "content_id": own, "image_ids": [IMAGES["a"], IMAGES["b"]]}
    then: Row = {"product_id": "p1", "content_id": shared, "image_ids": [IMAGES["b"], IMAGES["c"]]}
    other: Row = {"product_id": "p2", "content_id": shared, "image_ids": [IMAGES["b"]]}
    write_rows(settings, "products", [first, then, other])
    asked: list[Row] = [
        {"query_id": "q1", "content_id": CONTENTS["query"], "image_ids": [IMAGES["c"]]},
        {"query_id": "q2", "content_id": CONTENTS["anyones"]},
    ]
    write_rows(settings, "queries", asked)
    shown = [
        {"impression_id": "i1", "user_id": "u1", "product_id": "p1", "query_id": "q1"},
        {"impression_id": "i2", "user_id": "u1", "product_id": "p2", "query_id": "q2"},
        {"impression_id": "i3", "user_id": "u2", "product_id": "p1", "query_id": "q2"},
    ]
    write_rows(settings, "impressions", shown)
    write_rows(settings, "behaviors", [{"behavior_id": "b1", "user_id": "u1", "product_id": "p1", "query_id": "q1"}])
    return Lake(settings)


def test_a_product_takes_what_it_alone_has(shop: Lake) -> None:
    assert names_that_go(shop, "product", ["p1"]) == {
        "product": {"p1"},
        "unit": {"product:p1"},
        "impression": {"i1", "i3"},
        "event": set(),
        "content": {CONTENTS["own"]},
        "image": {IMAGES["a"]},
    }


def test_a_user_takes_the_queries_that_nobody_else_made(shop: Lake) -> None:
    names = names_that_go(shop, "user", ["u1"])
    assert len(names.pop("pair")) == 18
    assert names == {
        "user": {"u1"},
        "impression": {"i1", "i2"},
        "behavior": {"b1"},
        "query": {"q1"},
        "content": {CONTENTS["query"]},
        "image": set(),
    }


def plant(settings: Settings, name: str, content: Any) -> None:
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


def ids(**columns: list[Any]) -> pa.Table:
    return pa.table(columns)


def stored_online(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE t (value BLOB)")
        conn.execute("INSERT INTO t VALUES (?)", (bytes(20) + b"\x0a" + bytes([len(text)]) + text.encode(),))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lake/users/part-old.parquet", ids(user_id=["other", "user-0007"])),
        ("lake/behavior_sequences/part.parquet", ids(user_ids=[[], ["x", "user-0007"]])),
        ("lake/users/_delta_log/0.json", json.dumps({"add": {"stats": '{"minValues":{"user_id":"user-0007"}}'}})),
        ("training_sets/t/rows/part.parquet", ids(note=["so said user-0007, twice"])),
        ("artifacts/m/vocabulary.parquet", ids(feature=["product_id", "user_id"], id=["user-0007", "user-0007"])),
        ("logs/spark.log", "failed for user-0007."),
        ("exports/rows.jsonl", '{"a": 1}\n{"who": ["user-0007"]}\n'),
        ("anything", b"\x00\x01user-0007\x00"),
        ("lake/broken.parquet", b"no Parquet"),
    ],
)
def test_a_leftover_is_found_wherever_it_lies(settings: Settings, name: str, content: Any) -> None:
    plant(settings, name, content)
    (store,) = search_home(settings, names_of("user", ["user-0007"]))
    assert (store.files, list(store.found)) == (1, [name])


def test_a_leftover_in_sqlite_is_found_also_in_its_free_pages(settings: Settings) -> None:
    path = settings.home / "feast" / "online.db"
    stored_online(path, "u77")
    names = names_of("user", ["u77"])
    assert search_home(settings, names)[0].found == {"feast/online.db": 1}
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("PRAGMA secure_delete = OFF")
        conn.execute("DELETE FROM t")
    assert search_home(settings, names)[0].found == {"feast/online.db": 1}
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("VACUUM")
    assert search_home(settings, names)[0].found == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lake/products/part.parquet", ids(product_id=["100"], price_cents=[100], merchant_id=["100"])),
        ("lake/products/part.parquet", ids(title=["100 candles"], user_ids=[["1000", None]])),
        ("lake/products/_delta_log/0.json", '{"add":{"stats":"{\\"minValues\\":{\\"product_id\\":\\"100\\"}}"}}'),
        ("artifacts/m/vocabulary.parquet", ids(feature=["product_id"], id=["100"])),
        ("logs/spark.log", "took 100 ms"),
    ],
)
def test_the_same_text_that_means_something_else_is_not_found(settings: Settings, name: str, content: Any) -> None:
    plant(settings, name, content)
    (store,) = search_home(settings, names_of("user", ["100"]))
    assert (store.files, store.found) == (1, {})


def test_a_record_names_by_the_keys_of_its_json() -> None:
    search = Search(names_of("user", ["7"]))
    assert search.in_text('{"user_id": "7"}')
    assert search.in_text('{"payload": "{\\"user_id\\": \\"7\\"}"}')
    assert not search.in_text('{"product_id": "7", "price": 7}')
    assert search.in_text('{"user_id": "7", "text": "cut o')
