"""Decode a hostile image safely. A merchant's file is looked at before it is trusted, whatever its name says."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from moonlake.errors import ImageRefused
from moonlake.hashing import stable_hash
from moonlake.schema.tables import MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000
MAX_SCANS = 100
"""A JPEG paints over its whole picture with every scan, and one of a hundred bytes will do: a file of the largest size
would take minutes. Cameras and editors make about ten."""
BAND_PIXELS = 1_000_000
"""Transparency is laid on white so many pixels at a time: at once, the largest picture takes over twice the memory."""
HASH_SIDE = 8

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of the EXIF standard; 1 is upright."""

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about a decoded image file. `width` and `height` are in pixels after EXIF rotation."""

    image_id: str
    format: str
    width: int
    height: int
    perceptual_hash: str


def decode(image_bytes: bytes, *, largest_side: int | None = None) -> Image.Image:
    """The first picture of a file, upright and RGB; transparency is laid on white.

    Args:
        largest_side: let a JPEG be decoded at a smaller scale, not below this many pixels, which is much faster.

    Raises: ImageRefused: the file is empty, too large, not an image of FORMATS, too many pixels, too long, or broken.
    """
    return _open(image_bytes, largest_side)[1]


def inspect(image_bytes: bytes) -> ImageFacts:
    """The facts of an image file. Raises ImageRefused as `decode` does."""
    form, picture = _open(image_bytes, None)
    return ImageFacts(stable_hash(image_bytes), form, picture.width, picture.height, perceptual_hash(picture))


def perceptual_hash(picture: Image.Image) -> str:
    """64-bit difference hash as 16 hexadecimal digits: close pictures differ in few bits.

    Source: the dHash of N. Krawetz, "Kind of Like That" (2013).
    """
    small = np.asarray(picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()  # [64]
    return np.packbits(bits).tobytes().hex()


def _open(image_bytes: bytes, largest_side: int | None) -> tuple[str, Image.Image]:
    if not image_bytes:
        raise ImageRefused("image_empty", "the image file is empty")
    if len(image_bytes) > MAX_IMAGE_BYTES:
        raise ImageRefused(
            "image_too_large", f"the image file has {len(image_bytes):,} bytes, over {MAX_IMAGE_BYTES:,}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below is ours and stricter than Pillow's warning
            picture = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
            form = "JPEG" if picture.format == "MPO" else picture.format or "unknown"  # MPO: a JPEG with more behind it
            _require_moderate(picture.size)
            if form == "JPEG" and _scans(image_bytes) > MAX_SCANS:
                raise ImageRefused("image_too_many_scans", f"a JPEG of over {MAX_SCANS} scans")
            if largest_side is not None:
                picture.draft("RGB", (largest_side, largest_side))
            return form, _upright_rgb(picture)
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused("image_too_many_pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 Pillow's decoders raise almost anything on a hostile file
        raise ImageRefused("image_unreadable", f"not a readable {', '.join(FORMATS)} image: {error}") from None


def _require_moderate(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageRefused("image_too_many_pixels", f"{width} x {height} pixels, over {MAX_PIXELS:,}")
    if max(size) > MAX_IMAGE_SIDE_PIXELS:
        raise ImageRefused("image_too_long", f"{width} x {height} pixels, a side over {MAX_IMAGE_SIDE_PIXELS:,}")


def _scans(jpeg: bytes) -> int:
    """The number of scans in the first picture of a JPEG file; counting stops once there are too many."""
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := _JPEG_MARKER.search(jpeg, at)) and found[0][1] != _END_OF_IMAGE:
        scans += found[0][1] == _START_OF_SCAN
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    return scans


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    turn = None
    with suppress(Exception):  # EXIF of garbage says nothing, and the picture is good without it
        turn = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    plain = _rgb(picture)
    return plain if turn is None else plain.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    whole = Image.new("RGB", picture.size)
    rows = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        layer = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        whole.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return whole
