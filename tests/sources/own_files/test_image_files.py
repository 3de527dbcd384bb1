"""Image files are taken one by one, and hostile archives are refused without being unpacked."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from moonlake.errors import InputError
from moonlake.schema.tables import MAX_IMAGE_BYTES
from sources.own_files.image_files import find_image_files, image_file_names, read_image_files


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


def found(path: Path) -> dict[str, str | bytes | None]:
    return {file.name: file.refused or file.image_bytes for file in read_image_files(path)}


def test_folder_and_zip_give_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "shoes").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"one")
    (folder / "shoes" / "b.jpg").write_bytes(b"two")
    packed = archive(tmp_path / "images.zip", {"images/a.jpg": b"one", "images/shoes/b.jpg": b"two", "images/": b""})
    assert found(folder) == found(packed) == {"a.jpg": b"one", "shoes/b.jpg": b"two"}
    assert image_file_names(folder) == image_file_names(packed) == {"a.jpg", "shoes/b.jpg"}


def test_only_the_names_asked_for_are_read(tmp_path: Path) -> None:
    packed = archive(tmp_path / "images.zip", {"a.jpg": b"one", "b.jpg": b"two"})
    assert [file.name for file in read_image_files(packed, frozenset({"b.jpg"}))] == ["b.jpg"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\..\\b.jpg", "images/../../x.jpg"])
def test_a_member_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    rules = {file.refused for file in read_image_files(archive(tmp_path / "images.zip", {name: b"data"}))}
    assert rules == {"image_outside_folder"}


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").symlink_to(tmp_path / "secret")
    assert found(folder) == {"a.jpg": "image_outside_folder"}


def test_too_large_a_file_is_refused_unread(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\0" * (MAX_IMAGE_BYTES + 1))
    packed = archive(tmp_path / "images.zip", {"a.jpg": b"\0" * (MAX_IMAGE_BYTES + 1)})
    assert found(folder) == found(packed) == {"a.jpg": "image_too_large"}


def test_a_zip_bomb_is_refused_whole(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "images.zip", {f"{row}.jpg": b"\0" * 9_000_000 for row in range(12)})
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="zip bomb"):
        list(read_image_files(bomb))


def test_a_damaged_member_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    packed = archive(tmp_path / "images.zip", {"a.jpg": bytes(range(256)) * 8, "b.jpg": b"fine"})
    data = bytearray(packed.read_bytes())
    data[60] ^= 0xFF  # inside the compressed bytes of a.jpg
    packed.write_bytes(data)
    assert found(packed) == {"a.jpg": "image_unreadable", "b.jpg": b"fine"}


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_is_refused_wherever_its_bytes_are_damaged(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w", packing) as target:
        target.writestr("a.jpg", bytes(range(256)) * 8)
        assert target.fp is not None
        start_of_b = target.fp.tell()
        target.writestr("b.jpg", b"fine")
    whole = (tmp_path / "images.zip").read_bytes()
    for at in range(0, start_of_b, 3):
        data = bytearray(whole)
        data[at] ^= 0xFF
        (tmp_path / "images.zip").write_bytes(data)
        seen = found(tmp_path / "images.zip")
        assert seen["b.jpg"] == b"fine"
        assert seen["a.jpg"] in ("image_unreadable", bytes(range(256)) * 8)


def test_a_member_that_says_a_smaller_size_than_it_has_is_refused(tmp_path: Path) -> None:
    packed = archive(tmp_path / "images.zip", {"a.jpg": b"\0" * 50_000_000, "b.jpg": b"fine"})
    packed.write_bytes(packed.read_bytes().replace(struct.pack("<I", 50_000_000), struct.pack("<I", 100)))
    assert found(packed) == {"a.jpg": "image_unreadable", "b.jpg": b"fine"}


def test_a_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(b"fine")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"one")
    assert found(folder) == {"b.jpg": b"fine", "caf\udce9.jpg": "name_unreadable"}


def test_a_zip_whose_names_are_not_what_it_says_is_one_clear_line(tmp_path: Path) -> None:
    packed = archive(tmp_path / "images.zip", {"caf\u00e9.jpg": b"one"})
    packed.write_bytes(packed.read_bytes().replace("caf\u00e9".encode(), b"caf\xff\xff"))
    with pytest.raises(InputError, match=r"images\.zip: not a readable zip file"):
        found(packed)


def test_a_file_that_is_no_zip_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_text("hello")
    with pytest.raises(InputError, match=r"images\.zip: not a readable zip file"):
        image_file_names(tmp_path / "images.zip")


def test_images_that_are_there_twice_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    archive(tmp_path / "images.zip", {"a.jpg": b"one"})
    with pytest.raises(InputError, match="twice"):
        find_image_files(tmp_path)
