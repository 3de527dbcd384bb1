"""Taobao, REES46 and OTTO in their published formats: each dirt has its rule, and the counts add up."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moonlake.errors import BatchRejected, InputError, SchemaMismatch
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from sources.datasets import taobao
from sources.datasets.behavior_log import LogFile, stage_log
from sources.datasets.log_files import read_csv
from sources.datasets.otto import stage_otto
from sources.datasets.rees46 import stage_rees46
from sources.datasets.taobao import stage_taobao
from sources.own_files.staging import SourceInfo

REES46_HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
STAGE = {"taobao_user_behavior": stage_taobao, "rees46": stage_rees46, "otto_sessions": stage_otto}


def rules(folder: Path) -> dict[str, int]:
    return dict(Counter(pq.read_table(folder / "refused")["rule"].to_pylist()))


def rows(folder: Path, kind: str = "behaviors") -> list[dict[str, Any]]:
    return pq.read_table(folder / kind).to_pylist()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def view(
    second: int, product: int, category: str = "a.b", brand: str = "apple", price: str = "10.50", user: str = "7"
) -> str:
    return f"2019-10-01 00:00:{second:02d} UTC,view,{product},20530,{category},{brand},{price},{user},s-{second}\n"


def test_taobao_rows_become_behaviours_and_categories(tmp_path: Path, settings: Settings) -> None:
    log = ["1,10,100,pv,1511848894", "1,10,100,fav,1511848894", "1,11,101,cart,1511848951", "2,10,100,buy,1511848980"]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(log))
    folder = stage_taobao(tmp_path, settings)
    assert [(row["user_id"], row["product_id"], row["action"]) for row in rows(folder)] == [
        ("1", "10", "click"),
        ("1", "10", "favorite"),
        ("1", "11", "cart"),
        ("2", "10", "purchase"),
    ]
    assert rows(folder)[0]["event_timestamp"] == at("2017-11-28T06:01:34")
    products = {row["product_id"]: (row["category"], row["event_timestamp"]) for row in rows(folder, "products")}
    assert products == {"10": ("100", TIMELESS), "11": ("101", TIMELESS)}
    info = SourceInfo.read(folder)
    assert not info.simulated
    assert info.window == (at("2017-11-28T06:01:34"), at("2017-11-28T06:03:00"))
    assert info.staged["impressions"] == 0


def test_taobao_dirt_is_refused_by_name(tmp_path: Path, settings: Settings) -> None:
    good = [f"{user},10,100,pv,1511848894" for user in range(12)]
    dirt = {
        "field_count_wrong": ["1,10,100,pv", "1,10,100,pv,1511848894,x"],
        "user_id_missing": [",10,100,pv,1511848894"],
        "user_id_unreadable": ["abc,10,100,pv,1511848894"],
        "product_id_missing": ["1,,100,pv,1511848894"],
        "product_id_unreadable": ["1,007,100,pv,1511848894"],
        "event_type_unknown": ["1,10,100,PV,1511848894", "1,10,100,,1511848894"],
        "event_timestamp_unreadable": ["1,10,100,pv,yesterday", "1,10,100,pv,"],
        # One second before the first and at the end of the last day in China; the published file has negative ones.
        "event_timestamp_outside_window": [f"1,10,100,pv,{second}" for second in (1511539199, 1512316800, -2134949234)],
        "category_id_unreadable": ["1,10,shoes,pv,1511848894"],
    }
    kept = ["1,12,100,pv,1511539200", "1,12,100,pv,1512316799", "2,13,,pv,1511848894"]
    (tmp_path / "UserBehavior.csv").write_text("\n".join([*good, *chain(*dirt.values()), *kept]))
    folder = stage_taobao(tmp_path, settings)
    assert rules(folder) == {rule: len(lines) for rule, lines in dirt.items()}
    info = SourceInfo.read(folder)
    assert info.staged["behaviors"] == len(good) + len(kept)
    assert info.refused["behaviors"] == sum(len(lines) for lines in dirt.values())
    assert info.repaired == {"category_empty": 1}
    values = {row["rule"]: row["value"] for row in rows(folder, "refused")}
    assert json.loads(values["user_id_unreadable"])["user_id"] == "abc"
    assert json.loads(values["field_count_wrong"]) == "1,10,100,pv,1511848894,x"


def test_rees46_products_get_a_state_from_each_event_on_that_says_something_new(
    tmp_path: Path, settings: Settings
) -> None:
    log = [
        view(0, 1),
        view(1, 1),
        view(2, 2, "", "", "0.00"),
        view(3, 1, price="12.00"),
        view(4, 2),
        view(5, 1, price="12"),
    ]
    (tmp_path / "2019-Oct.csv").write_text(REES46_HEADER + "".join(log))
    bought = "2019-11-02 10:00:00 UTC,purchase,1,20530,a.b,apple,12.0,7,s\n"
    carted = "2019-11-02 10:00:01 UTC,cart,1,20530,a.b,apple,,7,s\n"
    (tmp_path / "2019-Nov.csv.gz").write_bytes(gzip.compress((REES46_HEADER + bought + carted).encode()))
    folder = stage_rees46(tmp_path, settings)
    assert [row["action"] for row in rows(folder)] == ["click"] * 6 + ["purchase", "cart"]
    first = at("2019-10-01T00:00:00")
    states = [
        (row["product_id"], row["event_timestamp"], row["category"], row["brand"], row["price_cents"], row["listed_at"])
        for row in rows(folder, "products")
    ]
    assert states == [
        ("1", first, "a.b", "apple", 1_050, first),
        ("2", first.replace(second=2), None, None, None, first.replace(second=2)),
        ("1", first.replace(second=3), "a.b", "apple", 1_200, first),
        ("2", first.replace(second=4), "a.b", "apple", 1_050, first.replace(second=2)),
        ("1", at("2019-11-02T10:00:01"), "a.b", "apple", None, first),
    ]
    assert rows(folder, "products")[0]["attributes"] == [("category_id", "20530")]
    info = SourceInfo.read(folder)
    assert info.repaired == {"category_empty": 1, "brand_empty": 1, "price_zero": 1, "price_empty": 1}
    assert info.ignored == {"behaviors": ["user_session"]}


def test_of_two_states_within_one_second_the_later_one_stands(tmp_path: Path, settings: Settings) -> None:
    log = [view(0, 1), view(0, 2), view(1, 1, price="11"), view(1, 1, price="12"), view(2, 1, price="12")]
    (tmp_path / "2019-Oct.csv").write_text(REES46_HEADER + "".join(log))
    folder = stage_rees46(tmp_path, settings)
    states = [
        (row["product_id"], row["event_timestamp"].second, row["price_cents"]) for row in rows(folder, "products")
    ]
    assert states == [("1", 0, 1_050), ("2", 0, 1_050), ("1", 1, 1_200)]


def test_rees46_dirt_is_refused_by_name(tmp_path: Path, settings: Settings) -> None:
    dirt = {
        "price_negative": view(1, 3, price="-1.00"),
        "price_unreadable": view(1, 3, price="cheap"),
        "user_id_missing": view(1, 3, user=""),
        "event_type_unknown": view(1, 3).replace("view", "remove_from_cart"),
        "event_timestamp_unreadable": view(1, 3).replace("2019-10-01", "2019-02-30"),
        "event_timestamp_outside_window": view(1, 3).replace("2019-10-01", "2019-11-01"),
        "text_unreadable": view(1, 3, brand="caf\xe9"),
        "field_count_wrong": view(1, 3, brand="a,b"),
    }
    good = [view(second, 3) for second in range(20)]
    (tmp_path / "2019-Oct.csv").write_bytes((REES46_HEADER + "".join([*good, *dirt.values()])).encode("latin-1"))
    folder = stage_rees46(tmp_path, settings)
    assert rules(folder) == dict.fromkeys(dirt, 1)
    assert SourceInfo.read(folder).staged["behaviors"] == len(good)
    assert SourceInfo.read(folder).staged["products"] == 1


def test_rees46_months_are_known_by_their_names(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match="holds no month"):
        stage_rees46(tmp_path, settings)
    (tmp_path / "2019-Oct.csv").write_text(REES46_HEADER + view(0, 1))
    (tmp_path / "2019-Oct.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="holds 2019-Oct twice"):
        stage_rees46(tmp_path, settings)
    (tmp_path / "2019-Oct.csv.gz").rename(tmp_path / "2019-Okt.csv.gz")
    with pytest.raises(InputError, match="2019-Okt is no month"):
        stage_rees46(tmp_path, settings)
    (tmp_path / "2019-Okt.csv.gz").unlink()
    (tmp_path / "2019-Oct.csv").write_text("event_time,event_type\n")
    with pytest.raises(SchemaMismatch, match="product_id"):
        stage_rees46(tmp_path, settings)
    assert not settings.staging.exists() or not list(settings.staging.glob("rees46"))


def event(aid: object = 1, ts: object = 1659304800025, kind: object = "clicks") -> dict[str, object]:
    return {"aid": aid, "ts": ts, "type": kind}


def test_otto_events_are_read_and_each_dirt_refused_by_name(tmp_path: Path, settings: Settings) -> None:
    good = [event(aid, 1659304800025 + aid, "orders" if aid == 3 else "clicks") for aid in range(1, 12)]
    broken: dict[str, list[Any]] = {
        "product_id_missing": [event(None), {"ts": 1659304800025, "type": "clicks"}],
        "product_id_unreadable": [event("shoe"), event(True), event(1.5), event(-4)],
        "event_type_unknown": [event(kind="views"), event(kind=None)],
        "event_timestamp_unreadable": [event(ts=None), event(ts="now"), event(ts=1659304800.5)],
        "event_timestamp_outside_window": [event(ts=1659304800), event(ts=1661724000000), event(ts=1659304799999)],
        "event_unreadable": ["no event"],
    }
    lines = [{"session": 5, "events": [*good, *chain(*broken.values())]}, {"session": 6, "events": []}]
    text = "\n".join([*map(json.dumps, lines), '{"session": 7, "events": [', '{"session": 8}', "", "[]"])
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(BatchRejected, match="18 of 29 rows cannot be read"):
        stage_otto(tmp_path, settings)
    (tmp_path / "train.jsonl.gz").unlink()
    more = json.dumps({"session": 9, "events": [event(aid) for aid in range(1, 21)]})
    (tmp_path / "train.jsonl").write_text(f"{text}\n{more}\n")
    folder = stage_otto(tmp_path, settings)
    assert rules(folder) == {rule: len(found) for rule, found in broken.items()} | {"json_unreadable": 3}
    assert [row["action"] for row in rows(folder)[:4]] == ["click", "click", "purchase", "click"]
    assert rows(folder)[0]["event_timestamp"] == at("2022-07-31T22:00:00.026")
    assert {row["user_id"] for row in rows(folder)} == {"5", "9"}
    assert rows(folder, "products") == []


def test_a_log_read_in_small_blocks_gives_what_one_block_gives(tmp_path: Path, settings: Settings) -> None:
    kinds = ("pv", "fav", "cart", "buy")
    log = [f"{n % 7},{n % 31},{n % 31 % 5},{kinds[n % 4]},{1511848894 + n // 3}" for n in range(900)]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(log))
    whole = stage_taobao(tmp_path, settings, negatives=2)
    before = {kind: rows(whole, kind) for kind in ("products", "behaviors", "impressions")}
    in_blocks = replace(taobao.LOG, read=lambda path: read_csv(path, taobao.COLUMNS, header=False, block_bytes=500))
    small = settings.model_copy(update={"home": tmp_path / "small"})
    folder = stage_log(in_blocks, [LogFile(tmp_path / "UserBehavior.csv", *taobao.WINDOW)], small, negatives=2)
    assert {kind: rows(folder, kind) for kind in before} == before


def test_the_same_files_are_staged_once_and_sampled_negatives_are_labelled(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "UserBehavior.csv").write_text(
        "1,10,100,pv,1511848894\n1,11,100,pv,1511848895\n2,10,100,pv,1511848896\n"
    )
    first = stage_taobao(tmp_path, settings)
    stamp = (first / "source.json").stat().st_mtime_ns
    assert (stage_taobao(tmp_path, settings) / "source.json").stat().st_mtime_ns == stamp
    sampled = stage_taobao(tmp_path, settings, negatives=1)
    info = SourceInfo.read(sampled)
    assert info.simulated
    assert "sampled" in info.kind
    assert "nobody knows what was shown" in info.notes
    assert [(row["product_id"], row["clicked"]) for row in rows(sampled, "impressions")] == [
        ("10", True),
        ("11", True),
        ("10", False),
        ("10", True),
        ("11", False),
    ]
    with pytest.raises(InputError, match="negatives=-1"):
        stage_taobao(tmp_path, settings, negatives=-1)


@pytest.mark.parametrize(
    ("name", "records", "refused", "repaired"),
    [
        ("taobao_user_behavior", 10_000, {"event_timestamp_outside_window": 4}, {}),
        ("rees46", 8_717, {}, {"category_empty": 2_823, "brand_empty": 1_232, "price_zero": 9}),
        ("otto_sessions", 862, {}, {}),
    ],
)
def test_every_record_of_a_real_extract_is_staged_or_refused_by_name(
    name: str, records: int, refused: Any, repaired: Any, shared_data: Path, settings: Settings
) -> None:
    folder = STAGE[name](shared_data / name, settings)
    info = SourceInfo.read(folder)
    assert info.staged["behaviors"] + info.refused["behaviors"] == records
    assert rules(folder) == refused
    assert info.repaired == repaired
    assert not info.simulated
