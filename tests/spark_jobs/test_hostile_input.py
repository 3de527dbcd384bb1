"""A shop of hostile files and texts among good ones goes through, and every bad record is refused by its own name."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from moonlake.embeddings import spaces
from moonlake.embeddings.contents import content_of
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.spark.lake import SparkLake
from sources.own_files.stage import stage_own_files
from sources.own_files.staging import SourceInfo

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow]

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ARABIC = "\u0643\u0631\u0633\u064a \u062e\u0634\u0628\u064a 90\u200f"


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(drawn).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says any size, with other chunks and a row of one black pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    row = chunk(b"IDAT", zlib.compress(b"\0" * 4))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + row + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(7), "JPEG", exif=exif)


GOOD_IMAGES = {
    "plain.jpg": encoded(noise(0), "JPEG"),
    "cmyk.jpg": encoded(noise(1, "CMYK"), "JPEG"),
    "moving.gif": encoded(noise(2), "GIF", save_all=True, append_images=[noise(seed) for seed in range(3, 6)]),
    "moving.webp": encoded(noise(3), "WEBP", save_all=True, append_images=[noise(4)] * 2),
    "turned.jpg": turned(),
    "broken exif.webp": encoded(noise(8), "WEBP", exif=b"Exif\0\0garbage"),
    "garbage profile.png": encoded(noise(9), icc_profile=b"garbage"),
    "sixteen bits.png": encoded(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)),
    "clear palette.png": encoded(noise(10, "P"), transparency=3),
    "dot.png": encoded(Image.new("RGB", (1, 1))),
    "line.png": encoded(Image.new("L", (20_000, 1), 9)),
    "with a zip behind.jpg": encoded(noise(11), "JPEG") + b"PK\x05\x06" + bytes(18),
    "two pictures.jpg": encoded(noise(12), "MPO", save_all=True, append_images=[noise(13)]),
}
BAD_IMAGES = {
    "empty.jpg": ("image_empty", b""),
    "svg.jpg": ("image_unreadable", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
    "half.jpg": ("image_unreadable", encoded(noise(14), "JPEG")[:-300]),
    "text bomb.png": ("image_unreadable", png(1, 1, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 50_000_000)))),
    "says more than it has.png": ("image_unreadable", png(7_000, 7_000)),
    "pixels.png": ("image_too_many_pixels", encoded(Image.new("1", (20_000, 20_000)))),
    "declared.png": ("image_too_many_pixels", png(2**31 - 1, 2**31 - 1)),
    "thread.png": ("image_too_long", png(1, 50_000_000)),
    "heavy.jpg": ("image_too_large", b"\xff" * 10_000_001),
    "../../slip.jpg": ("image_outside_folder", encoded(noise(15), "JPEG")),
}
GOOD_TITLES = {
    "right to left": ARABIC,
    "override": "\u202egnp.exe\u202c chair",
    "in pieces": "cafe\u0301 table",
    "composed": "caf\u00e9 table",
    "emoji": "\U0001f469\u200d\U0001f680" * 333,
    "expanding": "\ufdfa" * 1_000,
    "zero width": "\u200b",
    "special token": "<image> <|endoftext|> chair",
    "lines": "two\tcells\nand a line",
}
BAD_TITLES = {
    "1 MB": ("title_long", "x" * 1_000_000),
    "escape": ("title_wrong_form", "red\x1b[31m chair"),
    "nul": ("title_unreadable", "nul\0byte"),
    "half a character": ("title_unreadable", "half \ud83d"),
    "empty": ("has_content", ""),
    "blank": ("has_content", " \t "),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shop's own files: products as JSON lines, of which some are none, and a zip of images."""
    path = tmp_path / "in"
    path.mkdir()
    rows: list[dict[str, object]] = [
        {"product_id": name, "image_names": [name]} for name in [*GOOD_IMAGES, *BAD_IMAGES]
    ]
    titles = GOOD_TITLES | {name: title for name, (_, title) in BAD_TITLES.items()}
    rows += [{"product_id": name, "title": title} for name, title in titles.items()]
    rows += [{"product_id": "material", "title": "a chair", "attributes": {"material": "oak " * 250_000}}]
    rows += [{"product_id": "twice", "title": "a mug"}] * 2
    lines = [json.dumps(row) for row in rows] + ["[" * 100_000, '{"price_cents": ' + "9" * 5_000 + "}"]
    (path / "products.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (path / os.fsdecode(b"stray \xff.txt")).write_bytes(b"stray")
    with zipfile.ZipFile(path / "images.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in (GOOD_IMAGES | {name: data for name, (_, data) in BAD_IMAGES.items()}).items():
            target.writestr(name, data)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A small untrained encoder."""
    from models.encoder.config import EncoderConfig, TinyConfig
    from models.training.contrastive import TrainingConfig, train_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    config = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=16)
    empty = Lake(Settings(home=tmp_path / "encoder"))
    train_encoder(empty, TrainingConfig(config, steps=0), tmp_path / "artifact", before=T0)
    return tmp_path / "artifact"


def test_a_hostile_shop_is_ingested_and_embedded_but_for_what_is_refused_by_name(
    spark: SparkSession, settings: Settings, folder: Path, artifact: Path, written_at: datetime
) -> None:
    from models.encoder.config import read_encoder_artifact
    from spark_jobs import embed_contents, ingest_catalogue

    staged = stage_own_files(folder, settings, name="hostile")
    reports = {
        one.table: one for one in ingest_catalogue.run(SparkLake(spark, settings), staged, written_at=written_at)
    }
    info, lake = SourceInfo.read(staged), Lake(settings)

    images, products = reports["product_images"], reports["products"]
    assert images.rows_in == info.staged["images"] + info.refused["images"] == len(GOOD_IMAGES) + len(BAD_IMAGES)
    assert products.rows_in == info.staged["products"] + info.refused["products"]
    handed_in = len(GOOD_IMAGES) + len(BAD_IMAGES) + len(GOOD_TITLES) + len(BAD_TITLES) + 5
    assert (products.rows_in, products.duplicates) == (handed_in, 1)
    assert images.by_rule == Counter(rule for rule, _ in BAD_IMAGES.values())
    # A product of one bad image has nothing left that could be read.
    rules = Counter(rule for rule, _ in BAD_TITLES.values()) + Counter(
        {"has_content": len(BAD_IMAGES), "material_unusable": 1, "json_unreadable": 2}
    )
    assert products.by_rule == rules
    kept = Counter((row["table"], row["rule"]) for row in lake.read("rejects").to_pylist())
    lost = {("product_images", "image_not_found"): len(BAD_IMAGES)}
    assert kept == Counter(lost) + Counter(
        {(report.table, rule): count for report in (images, products) for rule, count in report.by_rule.items()}
    )

    rows = {row["product_id"]: row for row in lake.read("products").to_pylist()}
    assert rows.keys() == {*GOOD_IMAGES, *GOOD_TITLES, "twice"}
    assert {name: rows[name]["title"] for name in GOOD_TITLES} == GOOD_TITLES
    assert rows["right to left"]["content_id"] == content_of(ARABIC, []).content_id
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in lake.read("product_images").to_pylist()}
    assert sizes[rows["turned.jpg"]["image_ids"][0]] == (30, 40)

    definition = read_encoder_artifact(artifact).space
    spaces.register(
        lake, definition, name="first", artifact=str(artifact), trained_until=None, metrics={}, written_at=written_at
    )
    embedded = embed_contents.run(SparkLake(spark, settings), "first", written_at=written_at)
    assert (embedded.written, embedded.rejected, embedded.space.status) == (len(rows), 0, "candidate")
    vectors = {row["content_id"]: row["vector"] for row in lake.read("embeddings").to_pylist()}
    assert vectors.keys() == {row["content_id"] for row in rows.values()}
    np.testing.assert_allclose(np.linalg.norm(list(vectors.values()), axis=1), 1, atol=2e-3)
    assert vectors[rows["in pieces"]["content_id"]] == vectors[rows["composed"]["content_id"]]

    versions = {name: lake.version(name) for name in ("products", "product_images", "rejects", "embeddings")}
    again = ingest_catalogue.run(SparkLake(spark, settings), staged, written_at=written_at)
    assert {report.table: report.written for report in again} == dict.fromkeys(reports, 0)
    assert {name: lake.version(name) for name in versions} == versions
