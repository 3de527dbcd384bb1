"""Image files of a source, one by one: from a folder, a zip or a table. Nothing is decoded and nothing is unpacked."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moonlake.errors import InputError
from moonlake.schema.tables import MAX_IMAGE_BYTES

MAX_UNPACKED_RATIO = 20
"""A zip that unpacks to more than this many times its size (and to more than UNPACKED_FLOOR_BYTES) is a bomb, for
image files hardly compress."""
UNPACKED_FLOOR_BYTES = 100_000_000

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, ValueError, EOFError, OSError)
"""What reading a zip raises that is damaged, encrypted, or packed in an unknown way."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file with its bytes, or with the rule by which it is refused."""

    name: str
    image_bytes: bytes = b""
    refused: str | None = None


def find_image_files(folder: Path) -> Path | None:
    """`images.zip` or the folder `images` in a folder; None when there is neither.

    Raises: InputError: there are both.
    """
    found = [path for path in (folder / "images.zip", folder / "images") if path.exists()]
    if len(found) > 1:
        raise InputError(f"{folder} holds images twice: images.zip and images/; keep one")
    return found[0] if found else None


def read_image_files(path: Path, names: frozenset[str] | None = None) -> Iterator[ImageFile]:
    """The files of a folder or zip in order of name, or those named, each with its path inside as its name.

    Raises: InputError: not a readable zip, or a zip bomb.
    """
    return _folder(path, names) if path.is_dir() else _zip(path, names)


def image_file_names(path: Path) -> frozenset[str]:
    """The names that `read_image_files` would give. Raises InputError as it does."""
    if path.is_dir():
        return frozenset(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    with _open_zip(path) as archive:
        return frozenset(_inner_name(member.filename) for member in archive.infolist() if not member.is_dir())


def _folder(root: Path, names: frozenset[str] | None) -> Iterator[ImageFile]:
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if (names is not None and name not in names) or (file.is_dir() and not file.is_symlink()):
            continue
        if not file.resolve().is_relative_to(root.resolve()) or not file.is_file():
            yield ImageFile(name, refused="image_outside_folder")
        elif not _is_utf8(name):
            yield ImageFile(name, refused="name_unreadable")
        elif file.stat().st_size > MAX_IMAGE_BYTES:
            yield ImageFile(name, refused="image_too_large")
        else:
            yield ImageFile(name, file.read_bytes())


def _zip(path: Path, names: frozenset[str] | None) -> Iterator[ImageFile]:
    with _open_zip(path) as archive:
        for member in sorted(archive.infolist(), key=lambda entry: entry.filename):
            name = _inner_name(member.filename)
            if member.is_dir() or (names is not None and name not in names):
                continue
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                yield ImageFile(name, refused="image_outside_folder")
            elif member.file_size > MAX_IMAGE_BYTES:
                yield ImageFile(name, refused="image_too_large")
            else:
                yield _member(archive, member, name)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> ImageFile:
    try:
        with archive.open(member) as stream:
            image_bytes = stream.read(MAX_IMAGE_BYTES + 1)
    except _DAMAGED:
        return ImageFile(name, refused="image_unreadable")
    return ImageFile(name, image_bytes)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise InputError(f"{path}: not a readable zip file: {error}") from None
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(UNPACKED_FLOOR_BYTES, MAX_UNPACKED_RATIO * path.stat().st_size):
        archive.close()
        raise InputError(f"{path}: would unpack to {unpacked:,} bytes, too much for images; refused as a zip bomb")
    return archive


def _is_utf8(name: str) -> bool:
    """False for a name of other bytes, which Python spells with lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inner_name(name: str) -> str:
    return name.removeprefix("./").removeprefix("images/")
