from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moonlake.embeddings.images import BAND_PIXELS, MAX_SCANS, decode, inspect
from moonlake.errors import ImageRefused

ORIENTATION = 0x0112


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, rows: bytes, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that may lie: its header says any size, its rows are what they are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def many_scans(count: int) -> bytes:
    """A progressive JPEG of which one scan stands there again and again."""
    whole = encoded(Image.new("L", (16, 16)), "JPEG", progressive=True)
    tables = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xc4"]
    second = tables[1:3]
    return whole[:-2] + whole[slice(*second)] * count + whole[-2:]


PIXEL = b"\0\1\2\3"
BOMB = zlib.compress(b"a" * 50_000_000)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "PNG"), ("RGB", "WEBP")],
)
def test_every_mode_and_format_comes_out_as_rgb(mode: str, form: str) -> None:
    image_bytes = encoded(picture(mode=mode), form)
    assert decode(image_bytes).mode == "RGB"
    facts = inspect(image_bytes)
    assert (facts.format, facts.width, facts.height) == (form, 40, 30)


@pytest.mark.parametrize(
    ("image_bytes", "rule"),
    [
        (b"", "image_empty"),
        (b"this is a text file named .jpg", "image_unreadable"),
        (encoded(picture(), "JPEG")[:200], "image_unreadable"),
        (encoded(picture(), "BMP"), "image_unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_unreadable"),
        (b"\xff" * 10_000_001, "image_too_large"),
        (encoded(Image.new("1", (20_000, 20_000))), "image_too_many_pixels"),
        (raw_png(2**31 - 1, 2**31 - 1, b""), "image_too_many_pixels"),
        (encoded(Image.new("1", (1, 20_001))), "image_too_long"),
        (encoded(Image.new("1", (20_001, 1))), "image_too_long"),
        (raw_png(1, 50_000_000, b"", depth=1, colour=0), "image_too_long"),
        (raw_png(7_000, 7_000, b"\0" * 100), "image_unreadable"),
        (raw_png(0, 5, b"\0" * 5), "image_unreadable"),
        (raw_png(1, 1, PIXEL, chunk(b"zTXt", b"k\0\0" + BOMB)), "image_unreadable"),
        (raw_png(1, 1, PIXEL, chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB)), "image_unreadable"),
        (raw_png(1, 1, PIXEL, chunk(b"iCCP", b"k\0\0" + BOMB)), "image_unreadable"),
        (many_scans(MAX_SCANS + 1), "image_too_many_scans"),
    ],
)
def test_a_hostile_file_is_refused_by_a_named_rule(image_bytes: bytes, rule: str) -> None:
    with pytest.raises(ImageRefused) as refused:
        inspect(image_bytes)
    assert refused.value.rule == rule


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_half_a_file_is_refused_and_not_read_as_half_a_picture(form: str) -> None:
    whole = encoded(picture(200, 150), form)
    assert inspect(whole).format == form
    for read in (inspect, lambda part: decode(part, largest_side=32)):
        with pytest.raises(ImageRefused, match="not a readable"):
            read(whole[: len(whole) // 2])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_read(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), (0, number % 256, number // 256)) for number in range(1, 2_000)]
    moving = encoded(Image.new("RGB", (8, 8), "white"), form, save_all=True, append_images=frames)
    assert inspect(moving).format == form
    assert np.asarray(decode(moving)).min() == 255


def test_a_camera_file_of_several_pictures_is_a_jpeg() -> None:
    pictures = [picture(40, 30, seed=number) for number in range(2)]
    facts = inspect(encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:]))
    assert (facts.format, facts.width, facts.height) == ("JPEG", 40, 30)


def test_what_is_appended_to_a_picture_is_never_read() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("../../evil.py", "evil")
    plain = encoded(picture(), "JPEG")
    both = inspect(plain + archive.getvalue() + b"\xff\xda" * 2 * MAX_SCANS)
    assert (both.format, both.perceptual_hash) == ("JPEG", inspect(plain).perceptual_hash)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # rotate by 90 degrees to show
    facts = inspect(encoded(picture(40, 30), "JPEG", exif=exif))
    assert (facts.width, facts.height) == (30, 40)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0\x2a\xff\xff\xff\xff",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x4d\0\0\0\0\0\0",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\2a\0\0\0\0\0\0\0",
    ],
    ids=["garbage", "points outside", "orientation 77", "orientation a"],
)
def test_exif_that_makes_no_sense_turns_nothing(form: str, exif: bytes) -> None:
    facts = inspect(encoded(picture(40, 30), form, exif=exif))
    assert (facts.width, facts.height) == (40, 30)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_of_garbage_changes_no_pixel(form: str) -> None:
    image = picture()
    assert decode(encoded(image, form, icc_profile=b"garbage" * 9)).tobytes() == decode(encoded(image, form)).tobytes()


def test_sixteen_bits_a_channel_come_out_as_their_upper_eight() -> None:
    grey = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50
    seen = np.asarray(decode(encoded(Image.fromarray(grey))))
    assert (seen == (grey >> 8)[..., None]).all()
    colour = raw_png(1, 1, b"\0" + struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC), depth=16)
    assert decode(colour).getpixel((0, 0)) == (0x12, 0x56, 0x9A)
    clear = raw_png(1, 1, b"\0" + struct.pack(">H", 0x1234), chunk(b"tRNS", b"\0\0"), depth=16, colour=0)
    assert decode(clear).getpixel((0, 0)) == (0x12, 0x12, 0x12)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(decode(encoded(clear))).min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_of_several_bands_is_laid_on_white_as_a_whole_one_is(mode: str) -> None:
    image = picture(1_000, 2 * BAND_PIXELS // 1_000 + 7, mode)
    options: dict[str, Any] = {"transparency": bytes(range(256))} if mode == "P" else {}
    if mode != "P":
        image.putalpha(picture(*image.size, "L", seed=1))
    image_bytes = encoded(image, compress_level=0, **options)
    layer = Image.open(io.BytesIO(image_bytes)).convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    assert decode(image_bytes).tobytes() == whole.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_the_smallest_and_the_longest_pictures_are_read(size: tuple[int, int]) -> None:
    image_bytes = encoded(Image.new("L", size, 200))
    facts = inspect(image_bytes)
    assert (facts.width, facts.height) == size
    assert decode(image_bytes, largest_side=64).size == size


def test_the_perceptual_hash_stays_close_for_the_same_picture_and_far_for_another() -> None:
    def bits(image_bytes: bytes) -> int:
        return int(inspect(image_bytes).perceptual_hash, 16)

    smooth = picture(9, 8).resize((90, 80), Image.Resampling.BICUBIC)
    other = picture(9, 8, seed=1).resize((90, 80), Image.Resampling.BICUBIC)
    again = bits(encoded(smooth.resize((60, 54)), "JPEG", quality=60))
    assert (bits(encoded(smooth)) ^ again).bit_count() <= 8
    assert (bits(encoded(smooth)) ^ bits(encoded(other))).bit_count() > 16
