"""Open Bandit in both layouts: what each row becomes, which rule each dirt breaks, and one catalogue a campaign."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from moonlake.errors import BatchRejected, InputError, SchemaMismatch
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES, TIMELESS
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from sources.datasets.open_bandit import stage_open_bandit
from sources.own_files.staging import SourceInfo

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

HEADER = (
    ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3,"
    "user-item_affinity_0,user-item_affinity_1"
)
ITEM_HEADER = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3"
ITEMS = ["0,0,-0.5,a1,b1,c1", "1,1,0.25,a1,b2,c1", "2,2,1e-3,a2,b1,c1"]
SALTED = ["0,0,-0.5,x7,y1,z9", "1,1,0.25,x7,y2,z9", "2,2,0.001,x8,y1,z9"]
"""The same items in the file of another policy: equal numbers, other hashes, the same groups."""


def shown(
    time: str = "2019-11-24 00:03:13.442536+00:00", item: str = "1", position: str = "3", click: str = "0",
    propensity: str = "0.5", user: str = "u0,u1,u2,u3",
) -> str:  # fmt: skip
    return f"0,{time},{item},{position},{click},{propensity},{user},0.0,1.0"


GOOD = [shown(), shown("2019-11-25 07:00:00+00:00", item="0", position="1", click="1", propensity="1.65e-04")]
Files = Mapping[str, list[str]]
Lay = Callable[[Files], Path]
FLAT: Files = {"random_men.csv": [HEADER, *GOOD], "random_men_item_context.csv": [ITEM_HEADER, *ITEMS]}


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """A function that writes files of lines, compressed where the name says so, and gives their folder."""

    def write(files: Files) -> Path:
        folder = tmp_path / "data"
        for name, lines in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = "\n".join([*lines, ""]).encode(errors="surrogateescape")
            path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return folder

    return write


def rows(folder: Path, kind: str = "impressions") -> list[dict[str, Any]]:
    return pq.read_table(folder / kind).to_pylist()


def test_a_row_is_an_impression_of_a_product_by_everybody_with_these_features(lay: Lay, settings: Settings) -> None:
    folder = stage_open_bandit(lay(FLAT), settings)
    first, second = rows(folder)
    moment = datetime(2019, 11, 24, 0, 3, 13, 442536, tzinfo=UTC)
    assert first == {
        "impression_id": "random-men-1574553793442536-1-3",
        "request_id": "random-men-1574553793442536-1-3",
        "user_id": "u0-u1-u2-u3",
        "query_id": None,
        "product_id": "men-1",
        "position": 3,
        "propensity": 0.5,
        "clicked": False,
        "event_timestamp": moment,
        "label_time": moment,
    }
    assert (second["product_id"], second["position"], second["clicked"]) == ("men-0", 1, True)
    assert second["propensity"] == 0.000165
    assert second["event_timestamp"] == datetime(2019, 11, 25, 7, tzinfo=UTC)
    assert rows(folder, "users") == [{"user_id": "u0-u1-u2-u3", "segment": "u0", "event_timestamp": TIMELESS}]
    product = rows(folder, "products")[0]
    assert (product["product_id"], product["category"], product["event_timestamp"]) == ("men-0", "a1", TIMELESS)
    assert dict(product["attributes"]) == {
        "campaign": "men",
        "item_feature_0": "-0.5",
        "item_feature_1": "a1",
        "item_feature_2": "b1",
        "item_feature_3": "c1",
    }
    assert (product["title"], product["image_names"], product["merchant_id"], product["brand"]) == (
        None,
        [],
        None,
        None,
    )
    info = SourceInfo.read(folder)
    assert (info.simulated, info.kind) == (False, "real impressions")
    assert info.window == (first["event_timestamp"], second["event_timestamp"])
    assert info.t1 == first["event_timestamp"]
    assert info.t2 == moment + 0.7 * (second["event_timestamp"] - moment)
    assert info.ignored == {"impressions": ["user-item_affinity_*"]}


def test_the_published_folders_and_flat_names_plain_or_compressed_say_the_same(lay: Lay, settings: Settings) -> None:
    log, items = FLAT.values()
    folder = lay(
        {
            "flat/random_men.csv": log,
            "flat/random_men_item_context.csv": items,
            "packed/random_men.csv.gz": log,
            "packed/random_men_item_context.csv.gz": items,
            "obd/random/men/men.csv": log,
            "obd/random/men/item_context.csv": items,
            "obd_packed/random/men/men.csv.gz": log,
            "obd_packed/random/men/item_context.csv.gz": items,
        }
    )
    staged = [
        [rows(stage_open_bandit(folder / layout, settings), kind) for kind in ("impressions", "products", "users")]
        for layout in ("flat", "packed", "obd", "obd_packed")
    ]
    assert staged[0][0]
    assert staged[1:] == staged[:1] * 3


def test_policies_and_campaigns_stay_apart_and_share_products_and_users(lay: Lay, settings: Settings) -> None:
    log = [HEADER, *GOOD]
    files = {f"{policy}/{campaign}/{campaign}.csv": log for policy in ("random", "bts") for campaign in ("men", "all")}
    items = {"random": [ITEM_HEADER, *ITEMS], "bts": [ITEM_HEADER, *SALTED, "3,3,9.0,x9,y3,z9"]}
    folder = lay(files | {f"{Path(path).parent}/item_context.csv": items[path.split("/")[0]] for path in files})
    staged = stage_open_bandit(folder, settings)
    impressions = rows(staged)
    assert len({row["impression_id"] for row in impressions}) == len(impressions) == 8
    named = Counter(tuple(row["impression_id"].split("-")[:2]) for row in impressions)
    assert named == {(policy, campaign): 2 for policy in ("random", "bts") for campaign in ("men", "all")}
    assert {row["product_id"] for row in impressions} == {"men-0", "men-1", "all-0", "all-1"}
    assert len(rows(staged, "users")) == 1
    products = rows(staged, "products")
    assert len(products) == 2 * (3 + 4)
    distinct = {json.dumps(row, sort_keys=True, default=str) for row in products}
    assert len(distinct) == 2 * 4, "what a second file says again is said in the words of the first"
    assert {row["category"] for row in products if row["product_id"] == "men-2"} == {"a2"}
    assert {row["category"] for row in products if row["product_id"] == "men-3"} == {"x9"}


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (["0,0,-0.6,x7,y1,z9", *SALTED[1:]], "item_feature_0 of the items differ"),
        ([SALTED[0], "1,1,0.25,x8,y2,z9", SALTED[2]], "item_feature_1 of the items differ"),
        ([*SALTED[:2], "2,2,0.001,x7,y3,z9"], "item_feature_1, item_feature_2 of the items differ"),
    ],
)
def test_two_files_that_list_other_items_for_one_campaign_are_refused(
    items: list[str], named: str, lay: Lay, settings: Settings
) -> None:
    other = {"bts_men.csv": [HEADER, *GOOD], "bts_men_item_context.csv": [ITEM_HEADER, *items]}
    with pytest.raises(InputError, match=f"bts_men_item_context.csv: {named}"):
        stage_open_bandit(lay({**FLAT, **other}), settings)
    assert not (settings.staging / "open_bandit").exists()


def test_dirt_is_refused_by_name_and_the_counts_add_up(lay: Lay, settings: Settings) -> None:
    good = [shown(position=position, item=str(item)) for item in range(10) for position in "123"]
    dirt = {
        "field_count_wrong": ["1,2", shown() + ",7"],
        "user_feature_0_unreadable": [shown(user=",u1,u2,u3")],
        "user_feature_1_unreadable": [shown(user="u0,\udcff,u2,u3")],
        "user_feature_2_unreadable": [shown(user="u0,u1,u-2,u3")],
        "item_id_unreadable": [shown(item=""), shown(item="1.0"), shown(item="-1")],
        "position_unknown": [shown(position="0"), shown(position="4"), shown(position="")],
        "click_unreadable": [shown(click="2"), shown(click=""), shown(click="yes")],
        "propensity_score_unreadable": [shown(propensity=""), shown(propensity="nan"), shown(propensity="inf")],
        "propensity_score_outside_range": [shown(propensity=value) for value in ("0.0", "-0.1", "1.01", "1e999")],
        "event_timestamp_unreadable": [shown(value) for value in ("", "yesterday", "2019-11-31 00:00:00+00:00")],
        "event_timestamp_outside_window": [
            shown("2019-11-23 23:59:59.999999+00:00"),
            shown("2019-12-01 00:00:00+00:00"),
            shown("1970-01-01 00:00:00+00:00"),
        ],
    }
    dirty_items = ["3,3,1,a1,b1,c1,d1", "4,x,1,a1,b1,c1", "4,,1,a1,b1,c1", "5,5,one,a1,b1,c1", "6,6,1,,b1,c1"]
    good_items = [*ITEMS, *(f"0,{item},0.0,a1,b1,c1" for item in range(10, 20))]
    items = [*good_items, *dirty_items, "7,2,9.9,a9,b9,c9", *ITEMS]
    lines = [HEADER, *(line for broken in dirt.values() for line in broken), *good]
    folder = stage_open_bandit(
        lay({"random_men.csv": lines, "random_men_item_context.csv": [ITEM_HEADER, *items]}), settings
    )
    refused = rows(folder, "refused")
    found = Counter(row["rule"] for row in refused if row["kind"] == "impressions")
    assert found == {rule: len(broken) for rule, broken in dirt.items()}
    of_items = Counter(row["rule"] for row in refused if row["kind"] == "products")
    assert of_items == {
        "field_count_wrong": 1,
        "item_id_unreadable": 2,
        "item_feature_0_unreadable": 1,
        "item_feature_1_unreadable": 1,
        "item_id_repeated": 4,
    }
    info = SourceInfo.read(folder)
    assert info.staged["impressions"] == len(good)
    assert info.staged["impressions"] + info.refused["impressions"] == len(lines) - 1
    assert [row["product_id"] for row in rows(folder, "products")] == [
        f"men-{item}" for item in (0, 1, 2, *range(10, 20))
    ]
    as_it_came = next(row["value"] for row in refused if row["rule"] == "click_unreadable")
    assert json.loads(as_it_came)["click"] == "2"


def test_times_of_another_zone_become_utc_and_one_bad_time_spoils_no_other(lay: Lay, settings: Settings) -> None:
    times = ["2019-11-30 08:00:00.5+09:00", "2019-13-01 00:00:00+00:00", "2019-11-30 23:59:59.999999+00:00"]
    folder = stage_open_bandit(lay({**FLAT, "random_men.csv": [HEADER, *map(shown, times)]}), settings)
    assert [row["event_timestamp"] for row in rows(folder)] == [
        datetime(2019, 11, 29, 23, 0, 0, 500_000, tzinfo=UTC),
        datetime(2019, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC),
    ]


def without(column: str, header: str) -> str:
    return header.replace(column, "something_else")


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({"men.csv": []}, InputError, "holds no log; expected random/men/men.csv or random_men.csv"),
        ({"random_men.csv": FLAT["random_men.csv"]}, InputError, "expected one of random_men_item_context.csv"),
        ({**FLAT, "random/men/men.csv": []}, InputError, "found men.csv, random_men.csv"),
        ({**FLAT, "random_men.csv": [HEADER]}, InputError, "there is no impression in random_men.csv"),
        (
            {**FLAT, "random_men_item_context.csv": [ITEM_HEADER]},
            InputError,
            "item_context.csv: there is no item in it",
        ),
        ({**FLAT, "random_men.csv": []}, InputError, "random_men.csv: cannot be read as CSV"),
        ({**FLAT, "random_men.csv": [without("propensity_score", HEADER), *GOOD]}, SchemaMismatch, "propensity_score"),
        (
            {**FLAT, "random_men_item_context.csv": [without("item_feature_3", ITEM_HEADER), *ITEMS]},
            SchemaMismatch,
            "random_men_item_context.csv: .*item_feature_3",
        ),
        (
            {**FLAT, "random_men.csv": [HEADER, *GOOD, *[shown(click="x")] * 3]},
            BatchRejected,
            "random_men.csv: 3 of 5 rows cannot be read .most by rule click_unreadable",
        ),
    ],
)
def test_unusable_files_are_named_and_nothing_is_staged(
    files: Files, error: type[Exception], says: str, lay: Lay, settings: Settings
) -> None:
    with pytest.raises(error, match=says):
        stage_open_bandit(lay(files), settings)
    assert not (settings.staging / "open_bandit").exists()


def test_the_same_files_are_staged_once_and_changed_ones_anew(lay: Lay, settings: Settings) -> None:
    folder = stage_open_bandit(lay(FLAT), settings)
    written = (folder / "source.json").stat().st_mtime_ns
    assert (stage_open_bandit(lay(FLAT), settings) / "source.json").stat().st_mtime_ns == written
    stage_open_bandit(lay({"random_men.csv": [HEADER, GOOD[1]]}), settings)
    assert [row["clicked"] for row in rows(folder)] == [True]


def test_the_real_extract_is_staged_whole_with_its_clicks_and_propensities(
    shared_data: Path, settings: Settings
) -> None:
    data = shared_data / "zozo_open_bandit"
    folder = stage_open_bandit(data, settings)
    info = SourceInfo.read(folder)
    assert not any(info.refused.values())
    assert (info.staged["impressions"], info.staged["products"], info.staged["users"]) == (20_000, 68, 265)
    assert len({row["product_id"] for row in rows(folder, "products")}) == 34
    impressions = rows(folder)
    clicks = Counter(row["impression_id"].split("-")[0] for row in impressions if row["clicked"])
    assert clicks == {"random": 46, "bts": 69}
    published = []
    for policy in ("random", "bts"):
        with gzip.open(data / f"{policy}_men.csv.gz", "rt") as lines:
            published += list(csv.DictReader(lines))
    for row, line in zip(impressions, published, strict=True):
        assert row["propensity"] == float(line["propensity_score"])
        assert row["event_timestamp"] == datetime.fromisoformat(line["timestamp"])
        assert (row["product_id"], str(row["position"])) == (f"men-{line['item_id']}", line["position"])


@pytest.mark.spark
def test_the_real_extract_is_ingested_whole_and_again_without_a_commit(
    spark: SparkSession, settings: Settings, lake: Lake, shared_data: Path, written_at: datetime
) -> None:
    from spark_jobs import ingest_behaviors, ingest_catalogue

    folder = stage_open_bandit(shared_data / "zozo_open_bandit", settings)

    def ingest(moment: datetime) -> dict[str, tuple[int, int, int, int]]:
        jobs = (ingest_catalogue, ingest_behaviors)
        reports = [report for job in jobs for report in job.run(SparkLake(spark, settings), folder, written_at=moment)]
        return {one.table: (one.written, one.rejected, one.duplicates, one.unchanged) for one in reports if one.rows_in}

    assert ingest(written_at) == {
        "products": (34, 0, 34, 0),
        "users": (265, 0, 0, 0),
        "impressions": (20_000, 0, 0, 0),
    }
    versions = {table: lake.version(table) for table in TABLES}
    assert ingest(written_at + timedelta(days=1)) == {
        "products": (0, 0, 34, 34),
        "users": (0, 0, 0, 265),
        "impressions": (0, 0, 0, 20_000),
    }
    assert {table: lake.version(table) for table in TABLES} == versions
    written = lake.read("impressions", ["clicked", "propensity", "content_id", "query_id"])
    assert sum(written["clicked"].to_pylist()) == 115
    assert (written["query_id"].null_count, written["content_id"].null_count) == (20_000, 0)
    assert written["propensity"].null_count == 0
