from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonlake.errors import InputError, RecordRefused
from sources.own_files.product_payload import read_payload, read_products


def write_lines(folder: Path, *lines: str) -> None:
    (folder / "products.jsonl").write_text("\n".join(lines) + "\n")


def test_a_folder_in_the_own_files_form_becomes_payloads_that_read_back(tmp_path: Path) -> None:
    row = {"product_id": 7, "title": "mug", "image_names": "a.jpg|b.jpg", "attributes.colour": "red", "unknown": 1}
    write_lines(tmp_path, json.dumps(row))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/b.jpg", b"bytes of b")
        archive.writestr("images/a.jpg", b"bytes of a")
        archive.writestr("images/other.jpg", b"not named")
    (product,) = read_products(tmp_path)
    assert not isinstance(product, RecordRefused)
    product_id, payload = product
    found = read_payload(payload, product_id)
    assert product_id == "7"
    assert (found.cells["title"], dict(found.cells["attributes"])) == ("mug", {"colour": "red"})
    assert found.images == {"a.jpg": b"bytes of a", "b.jpg": b"bytes of b"}
    assert found.image_names == ["a.jpg", "b.jpg"]


def test_typed_columns_survive(tmp_path: Path) -> None:
    rows = pa.table({
        "product_id": ["1"], "listed_at": pa.array([1_767_225_600_000_000], pa.timestamp("us", "UTC")),
        "attributes": pa.array([[("material", "oak")]], pa.map_(pa.string(), pa.string())), "deleted": [True],
    })  # fmt: skip
    pq.write_table(rows, tmp_path / "products.parquet")
    (product,) = read_products(tmp_path)
    assert not isinstance(product, RecordRefused)
    product_id, payload = product
    cells = read_payload(payload, product_id).cells
    assert cells["listed_at"].isoformat() == "2026-01-01T00:00:00+00:00"
    assert (dict(cells["attributes"]), cells["deleted"]) == ({"material": "oak"}, True)


def test_rows_that_cannot_be_read_are_named_and_the_others_follow(tmp_path: Path) -> None:
    write_lines(
        tmp_path, "{broken", '{"title": "no id"}', '{"product_id": "p", "image_names": [[1]]}', '{"product_id": "q"}'
    )
    found = list(read_products(tmp_path))
    assert [one.rule for one in found if isinstance(one, RecordRefused)] == [
        "json_unreadable", "product_id_unreadable", "image_names_unreadable"
    ]  # fmt: skip
    assert [one[0] for one in found if not isinstance(one, RecordRefused)] == ["q"]


def test_a_folder_without_products_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds products\.jsonl"):
        list(read_products(tmp_path))


def test_images_without_names_are_taken_in_their_order() -> None:
    assert read_payload('{"title": "x", "images": {"b": "aGk=", "a": "aGk="}}', "p").image_names == ["b", "a"]
