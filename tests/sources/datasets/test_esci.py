"""Amazon's judged queries: what the files say is staged, dirt is refused by name, and nothing is staged twice."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moonlake.errors import BatchRejected, InputError, SchemaMismatch
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings
from sources.datasets.esci import GRADES, stage_esci
from sources.own_files.staging import SourceInfo

HEADER = "query,asin,esci_label,rating"
PRODUCT = {
    "asin": "B0",
    "title": "Oak chair",
    "description": "",
    "bullet_points": "Solid.\nHeavy.",
    "brand": "Oaky",
    "color": None,
    "price": 19.99,
    "category": ["Home", "Chairs"],
    "rating": 4.5,
}
Lay = Callable[[Sequence[Any], Sequence[str]], Path]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """A function that writes the two files and gives their folder; a product that is a text is a line as it is."""

    def write(products: Sequence[Any], judgments: Sequence[str]) -> Path:
        with gzip.open(tmp_path / "products.jsonl.gz", "wt", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in products)
        text = "\n".join([HEADER, *judgments]) + "\n"
        (tmp_path / "judgments.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
        return tmp_path

    return write


def test_products_queries_and_judgments_are_staged_as_the_files_say(lay: Lay, settings: Settings) -> None:
    bare = {"asin": "B1", "title": "Pine chair"}
    single = {"asin": "B2", "title": "Ash chair", "category": "Chairs"}
    rows = ["oak chair,B0,E,100.000", '"chair, oak",B0,S,10.000', "oak chair,B1,C,1.000", "oak chair,B9,I,0.000"]
    folder = stage_esci(lay([PRODUCT, bare, single], rows), settings)
    oak, pine, ash = pq.read_table(folder / "products").to_pylist()
    assert (oak["product_id"], oak["title"], oak["brand"], oak["category"]) == ("B0", "Oak chair", "Oaky", "Chairs")
    assert (oak["price_cents"], oak["event_timestamp"], oak["image_names"]) == (1999, TIMELESS, [])
    assert oak["attributes"] == [("bullet_points", "Solid.\nHeavy."), ("category_path", "Home > Chairs")]
    assert (ash["category"], ash["attributes"]) == ("Chairs", [("category_path", "Chairs")])
    assert (pine["category"], pine["price_cents"], pine["attributes"]) == (None, None, [])
    queries = pq.read_table(folder / "queries").to_pylist()
    assert [(row["query_id"], row["text"], row["modality"]) for row in queries] == [
        ("oak chair", "oak chair", "text"),
        ("chair, oak", "chair, oak", "text"),
    ]
    judgments = pq.read_table(folder / "judgments").to_pylist()
    assert [(row["query_id"], row["product_id"], row["grade"], row["label"]) for row in judgments] == [
        ("oak chair", "B0", 3, "E"),
        ("chair, oak", "B0", 2, "S"),
        ("oak chair", "B1", 1, "C"),
        ("oak chair", "B9", 0, "I"),
    ]
    info = SourceInfo.read(folder)
    assert (info.simulated, info.window, info.ignored) == (
        False,
        None,
        {"products": ["rating"], "judgments": ["rating"]},
    )


def test_dirt_is_refused_by_name_and_the_counts_add_up(lay: Lay, settings: Settings) -> None:
    products = [
        PRODUCT,
        PRODUCT | {"asin": "B1"},
        PRODUCT | {"asin": "B2"},
        PRODUCT | {"asin": "B3"},
        PRODUCT | {"price": "cheap"},
        PRODUCT | {"price": float("inf")},
        PRODUCT | {"bullet_points": "a\0b"},
        "not json",
    ]
    rows = ["q,B0,E,1", "q,B1,E,1", "q,B2,E,1", "q,B3,X,1", "too,few", "\udcff,B0,E,1"]
    folder = stage_esci(lay(products, rows), settings)
    refused = Counter((row["kind"], row["rule"]) for row in pq.read_table(folder / "refused").to_pylist())
    assert refused == {
        ("products", "price_cents_unreadable"): 2,
        ("products", "attributes_unreadable"): 1,
        ("products", "json_unreadable"): 1,
        ("judgments", "grade_unreadable"): 1,
        ("judgments", "field_count_wrong"): 1,
        ("judgments", "query_id_unreadable"): 1,
        ("queries", "query_id_unreadable"): 1,
    }
    info = SourceInfo.read(folder)
    assert info.staged["products"] + info.refused["products"] == len(products)
    assert info.staged["judgments"] + info.refused["judgments"] == len(rows)
    assert (info.staged["queries"], info.refused["queries"]) == (1, 1)


def test_the_same_files_are_not_staged_again_and_others_are(lay: Lay, settings: Settings) -> None:
    written = (stage_esci(lay([PRODUCT], ["q,B0,E,1"]), settings) / "source.json").stat().st_mtime_ns
    assert (stage_esci(lay([PRODUCT], ["q,B0,E,1"]), settings) / "source.json").stat().st_mtime_ns == written
    folder = stage_esci(lay([PRODUCT], ["q,B0,S,1"]), settings)
    assert pq.read_table(folder / "judgments")["grade"].to_pylist() == [2]


@pytest.mark.parametrize(
    ("products", "judgments", "error", "says"),
    [
        ([{"title": "x"}], ["q,B0,E,1"], SchemaMismatch, "products.jsonl.gz: column asin is missing; found title"),
        ([], ["q,B0,E,1"], SchemaMismatch, "products.jsonl.gz: column asin is missing; found no columns"),
        ([PRODUCT], [], InputError, "judgments.csv: there is no row in it"),
        ([PRODUCT], ["q,B0,X,1", "q,B1,E,1", "q,B2,Y,1"], BatchRejected, "2 of 3 rows cannot be read"),
    ],
)
def test_unusable_files_are_named_and_nothing_is_staged(
    lay: Lay,
    settings: Settings,
    products: list[Any],
    judgments: list[str],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        stage_esci(lay(products, judgments), settings)
    assert not (settings.staging / "esci").exists()


def test_the_real_extract_is_staged_whole_and_its_ratings_say_what_its_labels_say(
    shared_data: Path, settings: Settings
) -> None:
    folder = stage_esci(shared_data / "esci_us", settings)
    info = SourceInfo.read(folder)
    assert not any(info.refused.values())
    assert (info.staged["products"], info.staged["queries"], info.staged["judgments"]) == (6_764, 100, 4_438)
    labels = Counter(pq.read_table(folder / "judgments")["label"].to_pylist())
    assert labels == {"E": 2_235, "S": 1_257, "C": 224, "I": 722}
    lines = (shared_data / "esci_us" / "judgments.csv").read_text(encoding="utf-8").splitlines()[1:]
    rated = {tuple(line.rsplit(",", 2)[1:]) for line in lines}
    assert rated == {("E", "100.000"), ("S", "10.000"), ("C", "1.000"), ("I", "0.000")}
    assert {label for label, _ in rated} == set(GRADES)
