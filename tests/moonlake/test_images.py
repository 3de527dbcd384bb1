from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from moonlake.errors import ImageRefused
from moonlake.images import decode, inspect


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


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
    ],
)
def test_a_hostile_file_is_refused_by_a_named_rule(image_bytes: bytes, rule: str) -> None:
    with pytest.raises(ImageRefused) as refused:
        inspect(image_bytes)
    assert refused.value.rule == rule


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    facts = inspect(encoded(picture(40, 30), "JPEG", exif=exif))
    assert (facts.width, facts.height) == (30, 40)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(decode(encoded(clear))).min() == 255


def test_the_perceptual_hash_stays_close_for_the_same_picture_and_far_for_another() -> None:
    def bits(image_bytes: bytes) -> int:
        return int(inspect(image_bytes).perceptual_hash, 16)

    smooth = picture(9, 8).resize((90, 80), Image.Resampling.BICUBIC)
    other = picture(9, 8, seed=1).resize((90, 80), Image.Resampling.BICUBIC)
    again = bits(encoded(smooth.resize((60, 54)), "JPEG", quality=60))
    assert (bits(encoded(smooth)) ^ again).bit_count() <= 8
    assert (bits(encoded(smooth)) ^ bits(encoded(other))).bit_count() > 16
