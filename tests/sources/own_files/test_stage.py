"""A user's own files: every form gives the same rows, dirt is refused by name, and the counts add up."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from moonlake.errors import BatchRejected, InputError, SchemaMismatch
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from sources.own_files.stage import stage_own_files
from sources.own_files.staging import SourceInfo
from sources.own_files.tabular import BATCH_ROWS

DAY = datetime(2026, 2, 1, tzinfo=UTC)
Row = dict[str, Any]
PRODUCTS: list[Row] = [
    {"product_id": "007", "title": "red shoe, left", "image_names": ["a.jpg", "b.jpg"], "price_cents": 1999},
    {"product_id": "8", "title": "blue mug", "image_names": [], "price_cents": None},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty input folder."""
    path = tmp_path / "in"
    path.mkdir()
    return path


def write_csv(path: Path, rows: list[Row], **format_: Any) -> None:
    with path.open("w", newline="", encoding=format_.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, rows[0], **format_)
        writer.writeheader()
        for row in rows:
            cells = {name: "|".join(value) if isinstance(value, list) else value for name, value in row.items()}
            writer.writerow(cells)


def write_lines(path: Path, rows: list[Row]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def staged(folder: Path, settings: Settings, kind: str = "products", **choices: Any) -> list[Row]:
    return pq.read_table(stage_own_files(folder, settings, name="shop", **choices) / kind).to_pylist()


def info(folder: Path, settings: Settings) -> SourceInfo:
    return SourceInfo.read(stage_own_files(folder, settings, name="shop"))


WAYS: dict[str, Callable[[Path], object]] = {
    "csv": lambda folder: write_csv(folder / "products.csv", PRODUCTS),
    "csv with semicolons, BOM and CRLF": lambda folder: write_csv(
        folder / "products.csv", PRODUCTS, delimiter=";", encoding="utf-8-sig", lineterminator="\r\n"
    ),
    "tsv": lambda folder: write_csv(folder / "products.tsv", PRODUCTS, delimiter="\t"),
    "json lines": lambda folder: write_lines(folder / "products.jsonl", PRODUCTS),
    "packed json lines": lambda folder: write_lines(folder / "products.jsonl.gz", PRODUCTS),
    "parquet": lambda folder: pq.write_table(pa.Table.from_pylist(PRODUCTS), folder / "products.parquet"),
    "parquet with a float price": lambda folder: pq.write_table(
        pa.Table.from_pylist(PRODUCTS).set_column(3, "price_cents", pa.array([1999.0, float("nan")])),
        folder / "products.parquet",
    ),
    "delta": lambda folder: write_deltalake(str(folder / "products"), pa.Table.from_pylist(PRODUCTS)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_form_gives_the_same_rows(folder: Path, settings: Settings, way: Callable[[Path], object]) -> None:
    way(folder)
    rows = staged(folder, settings)
    chosen = [{name: row[name] for name in PRODUCTS[0]} for row in rows]
    assert chosen == PRODUCTS


def test_a_folder_of_parquet_files_is_one_table(folder: Path, settings: Settings) -> None:
    (folder / "products").mkdir()
    pq.write_table(pa.table({"product_id": ["a"], "title": ["x"]}), folder / "products" / "1.parquet")
    pq.write_table(pa.table({"product_id": [2], "brand": ["y"]}), folder / "products" / "2.parquet")
    with pytest.raises((InputError, SchemaMismatch)):
        stage_own_files(folder, settings, name="shop")
    pq.write_table(pa.table({"product_id": ["2"], "brand": ["y"]}), folder / "products" / "2.parquet")
    rows = staged(folder, settings)
    assert [(row["product_id"], row["title"], row["brand"]) for row in rows] == [("a", "x", None), ("2", None, "y")]


def test_absent_cells_mean_what_the_page_says(folder: Path, settings: Settings) -> None:
    rows = [
        {"product_id": "a", "listed_at": "2026-02-01", "event_timestamp": "", "deleted": ""},
        {"product_id": "b", "listed_at": "", "event_timestamp": "2026-02-01T00:00:00Z", "deleted": "yes"},
        {"product_id": "c", "listed_at": "", "event_timestamp": "", "deleted": "0"},
    ]
    write_csv(folder / "products.csv", rows)
    write_csv(folder / "users.csv", [{"user_id": "u"}])
    queries = [("t", "red", ""), ("i", "", "a.jpg"), ("p", "red", "a.jpg")]
    write_csv(
        folder / "queries.csv", [dict(zip(("query_id", "text", "image_names"), row, strict=True)) for row in queries]
    )
    products = staged(folder, settings)
    times = [(row["listed_at"], row["event_timestamp"], row["deleted"]) for row in products]
    assert times == [(DAY, DAY, False), (DAY, DAY, True), (TIMELESS, TIMELESS, False)]
    assert [(row["image_names"], row["attributes"]) for row in products] == [([], [])] * 3
    assert staged(folder, settings, "users") == [{"user_id": "u", "segment": None, "event_timestamp": TIMELESS}]
    assert [row["modality"] for row in staged(folder, settings, "queries")] == ["text", "image", "product"]


def test_judgments_have_whole_grades_and_are_true_from_the_beginning(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a"}])
    grades = ["3", "0", "2.0", "2.5", "high"]
    write_csv(folder / "judgments.csv", [{"query_id": "q", "product_id": "a", "grade": grade} for grade in grades])
    rows = staged(folder, settings, "judgments")
    assert [(row["grade"], row["label"], row["event_timestamp"]) for row in rows] == [
        (3, None, TIMELESS),
        (0, None, TIMELESS),
        (2, None, TIMELESS),
    ]
    assert info(folder, settings).refused["judgments"] == 2


def test_ids_of_impressions_are_hashes_that_only_equal_rows_share(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a"}])
    row = {"user_id": "u", "query_id": "q", "product_id": "a", "clicked": 1, "event_timestamp": "2026-02-01"}
    write_csv(
        folder / "impressions.csv", [row, row, {**row, "product_id": "b"}, {**row, "event_timestamp": "2026-02-02"}]
    )
    same, again, other, later = staged(folder, settings, "impressions")
    assert same == again
    assert len({row["impression_id"] for row in (same, other, later)}) == 3
    assert same["request_id"] == other["request_id"] != later["request_id"]
    assert (same["position"], same["label_time"], same["propensity"], same["clicked"]) == (1, DAY, None, True)


def test_attributes_come_as_json_or_as_columns_of_their_own(folder: Path, settings: Settings) -> None:
    row = {"product_id": "a", "attributes": '{"material": "oak"}', "attributes.colour": "red", "attributes.size": ""}
    write_csv(folder / "products.csv", [row])
    assert staged(folder, settings)[0]["attributes"] == [("material", "oak"), ("colour", "red")]


def test_an_attribute_column_that_cannot_be_read_refuses_its_row(folder: Path, settings: Settings) -> None:
    rows = [{"product_id": name, "attributes.material": "oak"} for name in ("a", "b", "c")]
    rows[1]["attributes.material"] = "o\0ak"
    write_csv(folder / "products.csv", rows)
    assert [row["product_id"] for row in staged(folder, settings)] == ["a", "c"]
    (refused,) = pq.read_table(settings.staging / "shop" / "refused").to_pylist()
    assert refused["rule"] == "attributes_unreadable"


def test_a_parquet_file_of_texts_that_are_not_utf_8_loses_these_rows_alone(folder: Path, settings: Settings) -> None:
    titles = pa.array([b"fine", b"latin \xe9", b"fine"]).view(pa.string())
    names = pa.ListArray.from_arrays([0, 0, 0, 1], pa.array([b"\xff.jpg"]).view(pa.string()))
    rows = pa.table({"product_id": ["a", "b", "c"], "title": titles, "image_names": names})
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), folder / "products.parquet")
    assert [row["product_id"] for row in staged(folder, settings)] == ["a", "a"]
    refused = pq.read_table(settings.staging / "shop" / "refused").to_pylist()
    assert [row["rule"] for row in refused] == ["title_unreadable", "image_names_unreadable"]
    assert "latin" in refused[0]["value"]


def test_files_whose_names_are_not_utf_8_stop_nothing(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a"}])
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"one")
    for strange in (folder / "images" / os.fsdecode(b"\xe9.jpg"), folder / os.fsdecode(b"\xe9.csv")):
        strange.write_bytes(b"two")
    assert [row["name"] for row in staged(folder, settings, "images")] == ["a.jpg"]
    (refused,) = pq.read_table(settings.staging / "shop" / "refused").to_pylist()
    assert (refused["rule"], refused["value"]) == ("name_unreadable", '{"name": "\\udce9.jpg"}')
    assert info(folder, settings).ignored == {"files": ["\udce9.csv"]}


def test_dirty_rows_are_refused_by_name_and_the_counts_add_up(folder: Path, settings: Settings) -> None:
    lines = [
        "product_id,title,price_cents,listed_at",
        "1,fine,100,2026-02-01",
        "2,bad price,cheap,2026-02-01",
        "3,bad time,100,01.02.2026",
        "4,too,many,cells,2026-02-01",
        "5,too few",
        "",
        "6,nul\0byte,100,2026-02-01",
        ",empty id,100,2026-02-01",
        "1,fine,100,2026-02-01",
        "7,fine too,,",
        "8,fine too,,",
        "10,fine too,,",
    ]
    (folder / "products.csv").write_bytes("\n".join(lines).encode() + b"\n9,latin \xe9,1,2026-02-01\n")
    found = info(folder, settings)
    refused = pq.read_table(settings.staging / "shop" / "refused").to_pylist()
    assert sorted(row["rule"] for row in refused) == [
        "field_count_wrong",
        "field_count_wrong",
        "listed_at_unreadable",
        "price_cents_unreadable",
        "title_unreadable",
        "title_unreadable",
    ]
    assert (found.staged["products"], found.refused["products"]) == (6, 6)
    by_rule = {row["rule"]: json.loads(row["value"]) for row in refused}
    assert by_rule["price_cents_unreadable"] == {
        "product_id": "2", "title": "bad price", "price_cents": "cheap", "listed_at": "2026-02-01"
    }  # fmt: skip
    ids = [row["product_id"] for row in staged(folder, settings)]
    assert ids == ["1", None, "1", "7", "8", "10"], "an empty id and a double are for ingestion to judge"


def test_a_broken_line_of_json_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "products.jsonl").write_text(
        '{"product_id": "1"}\nnot json\n\n[1]\n{"product_id": 2}\n{"product_id": 3}\n{"product_id": 4}\n'
        f'{{"product_id": 5, "price_cents": {"9" * 5_000}}}\n'
    )
    found = info(folder, settings)
    assert (found.staged["products"], found.refused["products"]) == (4, 3)
    assert [row["product_id"] for row in staged(folder, settings)] == ["1", "2", "3", "4"]


def test_rows_of_all_batches_arrive(folder: Path, settings: Settings) -> None:
    count = BATCH_ROWS + 3
    write_csv(
        folder / "products.csv",
        [{"product_id": row, "price_cents": "x" if row == count - 1 else row} for row in range(count)],
    )
    found = info(folder, settings)
    assert (found.staged["products"], found.refused["products"]) == (count - 1, 1)
    assert [row["product_id"] for row in staged(folder, settings)] == [str(row) for row in range(count - 1)]


def test_images_come_as_files_or_as_a_table(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a", "image_names": "a.jpg"}])
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"one")
    assert staged(folder, settings, "images") == [{"name": "a.jpg", "image_bytes": b"one"}]
    (folder / "images" / "a.jpg").unlink()
    table = pa.table({"name": ["a.jpg", "b.jpg", "a.jpg"], "image_bytes": [b"one", b"two", b"other"]})
    pq.write_table(table, folder / "images" / "part.parquet")
    assert staged(folder, settings, "images") == table.slice(0, 2).to_pylist()
    refused = pq.read_table(settings.staging / "shop" / "refused").to_pylist()
    assert [(row["kind"], row["rule"]) for row in refused] == [("images", "name_conflicting")]


def test_images_in_two_forms_are_an_error(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a"}])
    pq.write_table(pa.table({"name": ["a"], "image_bytes": [b"1"]}), folder / "images.parquet")
    (folder / "images").mkdir()
    with pytest.raises(InputError, match="images twice"):
        stage_own_files(folder, settings, name="shop")


def test_t1_and_t2_are_given_or_cut_the_time_of_the_impressions(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a"}])
    row = {"user_id": "u", "product_id": "a", "clicked": 0}
    days = [{**row, "event_timestamp": (DAY + timedelta(days=day)).isoformat()} for day in (10, 0, 4)]
    write_csv(folder / "impressions.csv", days)
    found = info(folder, settings)
    assert found.window == (DAY, DAY + timedelta(days=10))
    assert (found.t1, found.t2) == (DAY + timedelta(days=5), DAY + timedelta(days=8))
    (folder / "source.json").write_text('{"t1": "2026-02-02T00:00:00Z"}')
    assert info(folder, settings).t1 == DAY + timedelta(days=1)
    given = stage_own_files(folder, settings, name="shop", t1=DAY, t2=DAY + timedelta(days=1))
    assert SourceInfo.read(given).t2 == DAY + timedelta(days=1)
    with pytest.raises(InputError, match="must be before"):
        stage_own_files(folder, settings, name="shop", t1=DAY + timedelta(days=9))


def test_unchanged_files_are_not_staged_again(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", PRODUCTS)
    written = (stage_own_files(folder, settings, name="shop") / "source.json").stat().st_mtime_ns
    assert (stage_own_files(folder, settings, name="shop") / "source.json").stat().st_mtime_ns == written
    write_csv(folder / "products.csv", PRODUCTS[:1])
    assert len(staged(folder, settings)) == 1


def test_what_has_no_place_is_said(folder: Path, settings: Settings) -> None:
    write_csv(folder / "products.csv", [{"product_id": "a", "titel": "x"}])
    (folder / "product.csv").write_text("")
    assert info(folder, settings).ignored == {"products": ["titel"], "files": ["product.csv"]}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", InputError, "the file is empty"),
        ("product_id,title\n", InputError, "the catalogue is empty"),
        ("title\nx\n", SchemaMismatch, "column product_id is missing; found title"),
        ("product_id,title,title\n1,a,b\n", SchemaMismatch, "column title is there twice"),
        ("product_id,deleted\n1,a\n2,b\n3,no\n", BatchRejected, "2 of 3 rows cannot be read .most by rule deleted_un"),
    ],
)
def test_unusable_files_are_one_clear_line_and_nothing_is_staged(
    folder: Path, settings: Settings, text: str, error: type[Exception], says: str
) -> None:
    (folder / "products.csv").write_text(text)
    with pytest.raises(error, match=says) as raised:
        stage_own_files(folder, settings, name="shop")
    assert "products.csv" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (settings.staging / "shop").exists()


def test_a_wrong_path_and_a_folder_without_products_are_named(folder: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        stage_own_files(folder / "nowhere", settings, name="shop")
    with pytest.raises(InputError, match="holds no products"):
        stage_own_files(folder, settings, name="shop")


def test_files_that_are_not_what_their_name_says_are_named(folder: Path, settings: Settings) -> None:
    (folder / "products.parquet").write_text("product_id\n1\n")
    with pytest.raises(InputError, match=r"products\.parquet: cannot be read as Parquet"):
        stage_own_files(folder, settings, name="shop")
    (folder / "products.csv").write_text("product_id\n1\n")
    with pytest.raises(InputError, match="holds products twice"):
        stage_own_files(folder, settings, name="shop")


def test_a_typed_column_of_a_wrong_kind_is_named(folder: Path, settings: Settings) -> None:
    table = pa.table({"product_id": ["a"], "title": pa.array([{"en": "shoe"}])})
    pq.write_table(table, folder / "products.parquet")
    with pytest.raises(SchemaMismatch, match="column title must be string; found struct"):
        stage_own_files(folder, settings, name="shop")
