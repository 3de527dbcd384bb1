"""Myntra in its published, dirty form: a real catalogue on which behaviour is simulated, and labelled so."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moonlake.embeddings.images import decode, inspect, perceptual_hash
from moonlake.errors import InputError, SchemaMismatch
from moonlake.settings import Settings
from sources.datasets.myntra import MIN_HASH_DISTANCE, stage_myntra
from sources.datasets.myntra_files import COLUMNS, read_myntra
from sources.own_files.staging import SourceInfo
from sources.simulator.augmentation import snapshot
from sources.simulator.clicks import ClickModel
from sources.simulator.rendering import render
from sources.simulator.styles import sample_styles

HEADER = ",".join(COLUMNS)
Staged = tuple[Settings, Path]


def line(row: int, name: str = "Puma Men Shirt") -> str:
    colour = ("Black", "Red", "Blue", "NA")[row % 4]
    return f"{row},Men,Apparel,Topwear,{('Tshirts', 'Shirts', '')[row % 3]},{colour},,2012,Casual,{name}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 products: most fine, some with the dirt of the real file."""
    folder = tmp_path_factory.mktemp("myntra")
    lines = [line(row) for row in range(120)]
    lines[3] += ", Pack of 2, Blue"  # nobody quoted the commas
    lines[4] = "4,Men,Apparel"
    lines[5] = f"{lines[5]}\r"
    lines.append(line(7))  # a double
    (folder / "styles.csv").write_bytes(("\ufeff" + "\n".join([HEADER, *lines, ""])).encode())
    files = render(sample_styles(120, np.random.default_rng(0)), np.random.default_rng(1), pixels=40, clutter=0.0)
    files[10] = files[11] = files[12]  # products with the same picture
    files[13] = b"this is no picture"
    grey = io.BytesIO()
    Image.open(io.BytesIO(files[14])).convert("L").resize((53, 80)).save(grey, "JPEG")
    files[14] = grey.getvalue()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for row, file in enumerate(files):
            if row != 15:
                archive.writestr(f"{row}.jpg", file)
    return folder


@pytest.fixture(scope="module")
def staged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """90 of the products, staged."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    return settings, stage_myntra(data, settings, products=90, seed=3)


def test_it_is_labelled_a_real_catalogue_with_simulated_behaviour(staged: Staged) -> None:
    info = SourceInfo.read(staged[1])
    assert info.simulated
    assert info.kind == "real catalogue, simulated behaviour"
    assert info.window is not None
    assert info.t1 is not None
    assert info.t2 is not None
    assert info.window[0] < info.t1 < info.t2 < info.window[1]


def test_names_with_commas_are_joined_and_short_rows_refused(data: Path, staged: Staged) -> None:
    files = read_myntra(data)
    by_id = {row["id"]: row for row in files.rows}
    assert by_id["3"]["productDisplayName"] == "Puma Men Shirt, Pack of 2, Blue"
    assert by_id["5"]["productDisplayName"] == "Puma Men Shirt"
    assert (by_id["2"]["articleType"], by_id["3"]["baseColour"], by_id["1"]["season"]) == (None, None, None)
    assert files.refused == [["4", "Men", "Apparel"]]
    assert len(files.rows) == 120
    info = SourceInfo.read(staged[1])
    doubled = "7" in pq.read_table(staged[1] / "products")["product_id"].to_pylist()
    assert (info.staged["products"], info.refused["products"]) == (90 + doubled, 1)


def test_every_product_names_its_picture_and_only_those_that_exist_are_staged(data: Path, staged: Staged) -> None:
    products = pq.read_table(staged[1] / "products").to_pylist()
    assert all(row["image_names"] == [f"{row['product_id']}.jpg"] for row in products)
    images = set(pq.read_table(staged[1] / "images")["name"].to_pylist())
    named = {name for row in products for name in row["image_names"]}
    assert named - images <= {"15.jpg"}


def test_query_pictures_are_neither_in_the_catalogue_nor_close_to_it(staged: Staged) -> None:
    images = {row["name"]: row["image_bytes"] for row in pq.read_table(staged[1] / "images").to_pylist()}
    catalogue = [
        int(inspect(image_bytes).perceptual_hash, 16)
        for name, image_bytes in images.items()
        if not name.startswith("query-") and name != "13.jpg"
    ]
    queries = [image_bytes for name, image_bytes in images.items() if name.startswith("query-")]
    assert len(queries) > 100
    for image_bytes in queries:
        mine = int(inspect(image_bytes).perceptual_hash, 16)
        assert min((mine ^ other).bit_count() for other in catalogue) >= MIN_HASH_DISTANCE


def test_shoppers_click_what_looks_like_what_they_saw(staged: Staged) -> None:
    settings, folder = staged
    model = ClickModel.open(settings.truth / "myntra")
    requests = pq.read_table(settings.truth / "myntra" / "requests.parquet")["request_id"].to_pylist()
    of_request = {name: row for row, name in enumerate(requests)}
    of_product = {name: row for row, name in enumerate(model.catalogue.product_ids)}
    impressions = pq.read_table(folder / "impressions")
    request = np.array([of_request[name] for name in impressions["request_id"].to_pylist()])
    product = np.array([of_product[name] for name in impressions["product_id"].to_pylist()])
    similarity = model.similarity(request, product[:, None])[:, 0]
    clicked = impressions["clicked"].to_numpy(zero_copy_only=False)
    assert similarity[clicked].mean() > similarity[~clicked].mean() + 0.1


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    data: Path, staged: Staged, settings: Settings
) -> None:
    again = stage_myntra(data, settings, products=90, seed=3)
    for kind in ("products", "images", "queries", "impressions", "behaviors"):
        assert pq.read_table(again / kind).equals(pq.read_table(staged[1] / kind)), kind
    other = pq.read_table(stage_myntra(data, settings, products=90, seed=4) / "products")
    assert not other.equals(pq.read_table(staged[1] / "products"))


@pytest.mark.parametrize("count", [0, 97])
def test_more_products_than_can_be_given_are_refused(data: Path, settings: Settings, count: int) -> None:
    with pytest.raises(InputError, match="choose from 1 to 95"):
        stage_myntra(data, settings, products=count)


def test_a_folder_that_is_not_the_data_set_is_one_clear_line(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match=r"holds no styles\.csv"):
        stage_myntra(tmp_path, settings)
    (tmp_path / "styles.csv").write_text("id,gender\n1,Men\n")
    with pytest.raises(InputError, match="holds no pictures"):
        stage_myntra(tmp_path, settings)
    (tmp_path / "images").mkdir()
    with pytest.raises(SchemaMismatch, match="column masterCategory is missing; found id, gender"):
        stage_myntra(tmp_path, settings)
    assert not settings.staging.exists()


def test_a_snapshot_is_another_picture_of_the_same_size_every_time() -> None:
    files = render(sample_styles(1, np.random.default_rng(0)), np.random.default_rng(1), clutter=0.0)
    studio = decode(files[0])
    rng = np.random.default_rng(2)
    taken = [decode(snapshot(studio, rng, size=(60, 80))) for _ in range(4)]
    assert {picture.size for picture in taken} == {(60, 80)}
    assert len({perceptual_hash(picture) for picture in taken}) > 1


@pytest.mark.slow
def test_the_real_extract_is_staged_whole(shared_data: Path, settings: Settings) -> None:
    folder = stage_myntra(shared_data / "myntra_fashion", settings, products=200)
    info = SourceInfo.read(folder)
    assert (info.staged["products"], info.refused["products"]) == (200, 0)
    images = pq.read_table(folder / "images").to_pylist()
    assert sum(not row["name"].startswith("query-") for row in images) == 200
    assert {inspect(row["image_bytes"]).format for row in images} == {"JPEG"}
