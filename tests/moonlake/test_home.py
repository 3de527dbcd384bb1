"""The Python API on a tiny home: what it gives is what the lake holds, and docs/python_api.md does what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import moonlake
from models.inference import Embedder
from moonlake import Home
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError, MissingDependency, NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python_api.md"
SHORT = {"Pull a training set", "Look vectors up", "Search", "Score", "Hand a product in"}
LINES = 5


@pytest.fixture(scope="module")
def home(home_of_0_1_0: Settings) -> Home:
    """The home of 0.1.0, opened as a user does."""
    return moonlake.open(home_of_0_1_0.home)


@pytest.fixture(scope="module")
def lake(home_of_0_1_0: Settings) -> Lake:
    """The lake of it."""
    return Lake(home_of_0_1_0)


@pytest.fixture(scope="module")
def products(lake: Lake) -> list[str]:
    """The products on sale with a vector in the live space, which the released snapshot has."""
    [snapshot] = Path(lake.root).parent.glob("snapshots/*")
    return sorted(Snapshot.open(snapshot).products)


def sections() -> Iterator[tuple[str, str]]:
    """The titles of the page, and the Python below each."""
    for section in PAGE.read_text().split("\n## "):
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            yield section.partition("\n")[0], code


def test_every_example_of_the_page_runs_and_the_stories_take_five_lines(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(home.settings.home))
    names: dict[str, Any] = {}
    said = {}
    for title, code in sections():
        exec(compile(code, f"{PAGE.name}, {title}", "exec"), names)
        said[title] = capsys.readouterr().out
        if title in SHORT:
            assert len(code.splitlines()) <= LINES, title
    assert said.keys() >= SHORT
    assert sum(int(line.split()[0]) for line in said["Pull a training set"].splitlines()) == len(names["mine"]) == 770
    assert said["Look vectors up"] == "(3, 16) ('nobody',)\n"
    assert len(said["Search"].splitlines()) == 3
    assert {line.split()[0] for line in said["Score"].splitlines()} == {"p000001", "p000002"}
    assert said["Hand a product in"] == "None None\n"


def test_a_table_stays_at_its_version(home: Home, lake: Lake) -> None:
    first, latest = home.table("products", version=0), home.table("products")
    assert (first.version, latest.version) == (0, lake.version("products"))
    assert len(first) < len(latest) == len(lake.read("products"))
    assert first.to_arrow().equals(lake.read("products", version=0))
    assert latest.schema == latest.to_arrow().schema
    assert repr(first) == "<table products at version 0: 0 rows. One row per product and change of it.>"
    long_ago = datetime(2100, 1, 1, tzinfo=UTC)
    assert home.table("products", version=long_ago).version == latest.version
    assert home.tables()["products"] == latest.version


def test_a_table_comes_as_any_frame(home: Home) -> None:
    columns, cheap = ["product_id", "price_cents"], pc.field("price_cents") < 5000
    rows = home.table("products").to_arrow(columns, where=cheap)
    assert rows.column_names == columns
    assert len(rows)
    assert pc.all(pc.less(rows["price_cents"], 5000)).as_py()
    pandas = home.table("products").to_pandas(columns, where=cheap)
    polars = home.table("products").to_polars(columns, where=cheap)
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert pandas.to_dict("list") == polars.to_dict(as_series=False) == rows.to_pydict()


def test_a_table_that_is_not_there_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="products has not been written yet at"):
        moonlake.open(tmp_path).table("products")
    with pytest.raises(NotFound, match="no version 99"):
        home.table("products", version=99)
    with pytest.raises(NotFound, match="nothings"):
        home.table("nothings")
    assert moonlake.open(tmp_path).tables() == {}


@pytest.mark.parametrize("name", ["ctr-train", "ctr-pointers"])
@pytest.mark.parametrize("rows", [1, 7, 100_000])
def test_batches_are_all_rows_in_order(home: Home, name: str, rows: int) -> None:
    found = home.training_set(name)
    for columns in (None, ["clicked", "impression_id", "behavior_product_ids"]):
        if rows == 1 and columns is None:
            continue  # slow, and the same as with columns
        batches = list(found.batches(rows, columns))
        assert {len(batch) for batch in batches[:-1]} <= {rows}
        assert 1 <= len(batches[-1]) <= rows
        assert pa.concat_tables(batches).equals(found.read(columns))


def test_a_training_set_comes_as_any_frame(home: Home) -> None:
    found = home.training_set("ctr-pointers")
    columns = ["impression_id", "clicked", "behavior_product_ids"]
    rows = found.to_arrow(columns)
    assert rows.equals(found.read(columns))
    assert found.to_polars(columns).to_dict(as_series=False) == rows.to_pydict()
    assert found.to_pandas(columns)["impression_id"].tolist() == rows["impression_id"].to_pylist()
    assert repr(found).startswith("<training set ctr-pointers: 770 rows of ")


def test_training_sets_and_columns_that_are_not_there_are_named(home: Home) -> None:
    with pytest.raises(NotFound, match=r"no training set 'x' in .*: ctr-pointers, ctr-test, ctr-train"):
        home.training_set("x")
    with pytest.raises(NotFound, match="no training set"):
        home.training_set("../training_sets/ctr-train")
    with pytest.raises(NotFound, match=r"no columns \['x'\]"):
        next(home.training_set("ctr-train").batches(5, ["x"]))
    with pytest.raises(InputError, match="batches of 0 rows"):
        next(home.training_set("ctr-train").batches(0))
    with pytest.raises(InputError, match="has no time zone"):
        home.build_training_set("x", "2026-02-15", "2026-02-16")


def test_vectors_are_those_of_the_lake_in_the_order_asked_for(home: Home, lake: Lake, products: list[str]) -> None:
    asked = [products[3], "nobody", products[0], products[3]]
    found = home.vectors(products=asked)
    assert found.ids == tuple(asked)
    assert found.values.dtype == np.dtype(np.float32)
    assert found.found.tolist() == [True, False, True, True]
    assert np.isnan(found.values[1]).all()
    rows = lake.read("products").sort_by("event_timestamp").to_pylist()
    latest = {row["product_id"]: row["content_id"] for row in rows}
    stored = {row["content_id"]: row["vector"] for row in lake.read("embeddings").to_pylist()}
    for name, values in zip(asked, found.values.tolist(), strict=True):
        assert name == "nobody" or values == stored[latest[name]]
    assert found.missing == ("nobody",)
    assert repr(found) == f"<vectors of space {found.space_id[:12]}: 3 of 4 found, length 16>"
    contents = home.vectors(contents=[latest[products[0]], "0" * 32], space="tiny")
    assert contents.values[0].tolist() == found.values[2].tolist()
    assert contents.missing == ("0" * 32,)
    assert len(home.vectors(products=[])) == 0
    with pytest.raises(NotFound, match="no embedding space 'x'"):
        home.vectors(products=asked, space="x")
    with pytest.raises(InputError, match="one of the two"):
        home.vectors()


def test_a_product_that_went_off_sale_has_no_vector(home: Home, settings: Settings, write_rows: Any) -> None:
    """A lake of its own, with the space and vectors of the home."""
    day = datetime(2026, 1, 1, tzinfo=UTC)
    [space] = home.lake.read("embedding_spaces").slice(0, 1).to_pylist()
    [vector] = home.lake.read("embeddings").slice(0, 1).to_pylist()
    write_rows(settings, "embedding_spaces", [space])
    write_rows(settings, "embeddings", [vector])
    product = {"content_id": vector["content_id"], "event_timestamp": day}
    here = [{**product, "product_id": name} for name in ("stays", "goes")]
    gone = {**product, "product_id": "goes", "deleted": True, "event_timestamp": day.replace(day=2)}
    write_rows(settings, "products", [*here, gone])
    found = Home(settings).vectors(products=["stays", "goes"], space=space["space_id"])
    assert found.missing == ("goes",)


def test_the_nearest_of_a_product_are_those_by_cosine(home: Home, products: list[str]) -> None:
    asked = products[5]
    pool = home.vectors(products=products).values
    scores = pool @ pool[5]
    scores[5] = -2
    hits = home.nearest(product=asked, k=4)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:4], abs=1e-5)
    for hit in hits:
        assert hit.score == pytest.approx(scores[products.index(hit.product_id)], abs=1e-5)
    assert len(home.nearest(product=asked, k=1000)) == len(products) - 1


def test_a_text_and_a_picture_are_searched_by_their_vector(home: Home, lake: Lake, products: list[str]) -> None:
    image = lake.read("product_images", ["image_bytes"]).slice(0, 1)["image_bytes"][0].as_py()
    [space] = home.spaces()
    [vector] = Embedder.open(space.artifact).embed(["a lamp"], [[image]])
    best = np.argmax(home.vectors(products=products).values @ vector)
    assert home.nearest(text="a lamp", image=image, k=1)[0].product_id == products[best]
    with pytest.raises(InputError, match="expected a product, or an image, a text or both"):
        home.nearest()
    with pytest.raises(InputError, match="expected a product, or an image, a text or both"):
        home.nearest(product="p", text="t")
    with pytest.raises(InputError, match=r"picture none\.jpg cannot be read"):
        home.nearest(image="none.jpg")
    with pytest.raises(NotFound, match="'nobody' is not on sale"):
        home.nearest(product="nobody")


def test_scores_are_those_of_the_released_model(home: Home) -> None:
    asked = json.loads((ROOT / "tests" / "fixtures" / "home-0.1.0.json").read_text())["ranking"]
    now = datetime.fromisoformat(asked["now"])
    scored = home.score(asked["user_id"], asked["product_ids"], asked["query_id"], at=now)
    assert dict(scored) == pytest.approx(dict(asked["ranked"]), abs=1e-5)
    assert [one.score for one in scored] == sorted((one.score for one in scored), reverse=True)


def test_a_submitted_product_waits_in_product_events(settings: Settings, tmp_path: Path) -> None:
    home = Home(settings)
    (tmp_path / "a.jpg").write_bytes(b"picture")
    sent = home.submit({"product_id": "p", "title": "Lamp"}, images=[tmp_path / "a.jpg"], source="mine")
    [event] = home.table("product_events").to_arrow().to_pylist()
    assert (event["event_id"], event["product_id"], event["source"]) == (sent.event_id, "p", "mine")
    payload = json.loads(event["payload"])
    assert payload == {"product_id": "p", "title": "Lamp", "images": {"a.jpg": "cGljdHVyZQ=="}}
    assert (sent.refused_by, home.outcome(sent)) == (None, None)
    assert home.submit({"product_id": ""}).refused_by == "product_id_short"
    with pytest.raises(InputError, match=r"product_id, found \['title'\]"):
        home.submit({"title": "Lamp"})


def test_without_a_checkout_search_and_scores_say_so_in_one_sentence(home: Home, tmp_path: Path) -> None:
    alone = moonlake.open(home.settings.home, checkout=tmp_path)
    said = f"runs from a checkout of moonlake, and {tmp_path} is none: set MOONLAKE_CHECKOUT"
    with pytest.raises(MissingDependency, match=said):
        alone.nearest(product="p")
    with pytest.raises(MissingDependency, match=said):
        alone.score("u", ["p"])


def test_the_face_is_named_and_loaded_only_when_it_is_asked_for() -> None:
    found_in = {name for names in moonlake._FOUND_IN.values() for name in names}
    assert sorted([*found_in, "__version__"]) == sorted(moonlake.__all__)
    for name in moonlake.__all__:
        assert getattr(moonlake, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moonlake.nothing  # noqa: B018
    program = "import sys, moonlake; print([name for name in ('pyarrow', 'numpy', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
