"""The Myntra fashion data set in its published form: `styles.csv`, which is dirty, and a picture `<id>.jpg` a product.

Source: Kaggle, paramaggarwal/fashion-product-images-small.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from moonlake.arrays import Float32s, Int64s
from moonlake.embeddings.images import decode
from moonlake.errors import ImageRefused, InputError, SchemaMismatch
from sources.own_files.image_files import find_image_files, image_file_names, read_image_files
from sources.simulator.augmentation import darkest_channel
from sources.simulator.styles import unit

COLUMNS = (
    "id",
    "gender",
    "masterCategory",
    "subCategory",
    "articleType",
    "baseColour",
    "season",
    "year",
    "usage",
    "productDisplayName",
)
ABSENT = frozenset({"", "NA", "nan"})
STYLE_WEIGHTS = {"articleType": 1.0, "subCategory": 0.5, "gender": 0.5, "baseColour": 0.5, "usage": 0.3, "season": 0.2}
COLOUR_WEIGHT, LAYOUT_WEIGHT = 0.6, 0.7
"""Square roots of the parts that attributes, measured colour and layout have in the similarity of two products."""
THUMBNAIL = (6, 8)
LAYOUT_COMPONENTS = 16


@dataclass(frozen=True, slots=True)
class MyntraRows:
    """Rows of `styles.csv` by column, those that are no rows, and where the pictures are."""

    rows: list[dict[str, str | None]]
    refused: list[list[str]]
    images: Path
    image_names: frozenset[str]


def read_myntra(folder: Path) -> MyntraRows:
    """The rows of a folder with `styles.csv` and `images.zip` or `images/`.

    A product name with commas that nobody quoted is joined again; a row with too few cells is refused.

    Raises:
        InputError: no such folder, no styles.csv, no images.
        SchemaMismatch: styles.csv has other columns than published.
    """
    styles = folder / "styles.csv"
    if not styles.is_file():
        raise InputError(f"{folder} holds no styles.csv; name the folder of the Myntra fashion data set")
    images = find_image_files(folder)
    if images is None:
        raise InputError(f"{folder} holds no pictures; expected images.zip or images/ beside styles.csv")
    rows: list[dict[str, str | None]] = []
    refused: list[list[str]] = []
    with styles.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(line.replace("\0", "") for line in lines)
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in header]:
            raise SchemaMismatch(f"{styles}: column {missing[0]} is missing; found {', '.join(header) or 'no columns'}")
        for cells in reader:
            if len(cells) < len(header):
                refused.extend([cells] if cells else [])
                continue
            whole = [*cells[: len(header) - 1], ",".join(cells[len(header) - 1 :])]
            values = {name: cell.strip() for name, cell in zip(header, whole, strict=True)}
            rows.append({name: None if values[name] in ABSENT else values[name] for name in COLUMNS})
    return MyntraRows(rows, refused, images, image_file_names(images))


def read_pictures(images: Path, ids: list[str]) -> dict[str, Image.Image]:
    """Readable pictures of these products by id, decoded to RGB; those that are none are left out."""
    wanted = {f"{name}.jpg": name for name in ids}
    pictures: dict[str, Image.Image] = {}
    for file in read_image_files(images, frozenset(wanted)):
        try:
            pictures[wanted[file.name]] = decode(file.image_bytes)
        except ImageRefused:
            continue  # its product stays; ingestion refuses the picture by name
    return pictures


def style_vectors(rows: list[dict[str, str | None]], pictures: dict[str, Image.Image]) -> tuple[Float32s, Int64s]:
    """Style of each row, float32 [N, D] of unit norm, and its article type as a number, int64 [N].

    The style that simulated shoppers compare by: attributes of the catalogue, the measured colour of the thing, and
    the main components of a thumbnail. A product without picture has the mean of these.
    """
    blocks = []
    for name, weight in STYLE_WEIGHTS.items():
        _, number = np.unique([row[name] or "" for row in rows], return_inverse=True)
        blocks.append(weight * np.eye(int(number.max()) + 1, dtype=np.float32)[number])
    _, article = np.unique([row["articleType"] or "" for row in rows], return_inverse=True)

    colour = np.full((len(rows), 3), np.nan, np.float32)
    layout = np.full((len(rows), THUMBNAIL[0] * THUMBNAIL[1] * 3), np.nan, np.float32)
    for place, row in enumerate(rows):
        picture = pictures.get(row["id"] or "")
        if picture is not None:
            colour[place], layout[place] = _measure(picture)
    blocks.append(COLOUR_WEIGHT * _standardised(colour) / np.sqrt(3.0))
    centred = layout - np.nanmean(layout, axis=0)
    centred = np.nan_to_num(centred)
    _, axes = np.linalg.eigh(centred.T @ centred)
    main = _standardised(centred @ axes[:, -LAYOUT_COMPONENTS:])
    blocks.append(LAYOUT_WEIGHT * main / np.sqrt(LAYOUT_COMPONENTS))
    return unit(np.concatenate(blocks, axis=1).astype(np.float32)), article.astype(np.int64)


def _measure(picture: Image.Image) -> tuple[Float32s, Float32s]:
    """Mean colour of what is not white, and a thumbnail, both in [0, 1]."""
    pixels = np.asarray(picture, np.float32).reshape(-1, 3) / 255.0
    thing = pixels[darkest_channel(pixels) < 0.92]
    small = np.asarray(picture.resize(THUMBNAIL, Image.Resampling.BOX), np.float32).ravel() / 255.0
    return (thing if len(thing) else pixels).mean(axis=0), small


def _standardised(values: Float32s) -> Float32s:
    """Columns with mean 0 and deviation 1; 0 where a row has no value."""
    deviation = np.maximum(np.nanstd(values, axis=0), 1e-6)
    return np.asarray(np.nan_to_num((values - np.nanmean(values, axis=0)) / deviation), np.float32)
