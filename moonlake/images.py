"""Decode a hostile image safely. A merchant's file is looked at before it is trusted, whatever its name says."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from moonlake.contents import stable_hash
from moonlake.errors import ImageRefused
from moonlake.tables import MAX_IMAGE_BYTES

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000
HASH_SIDE = 8


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file turned out to hold. `width` and `height` are in pixels after EXIF rotation."""

    image_id: str
    format: str
    width: int
    height: int
    perceptual_hash: str


def decode(image_bytes: bytes, *, largest_side: int | None = None) -> Image.Image:
    """The first picture of a file, upright and RGB; transparency is laid on white.

    Args:
        largest_side: let a JPEG be decoded at a smaller scale, not below this many pixels, which is much faster.

    Raises: ImageRefused: the file is empty, too large, not an image of FORMATS, too many pixels, or broken.
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
            form = picture.format or "unknown"
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageRefused(
                    "image_too_many_pixels", f"{picture.width} x {picture.height} pixels, over {MAX_PIXELS:,}"
                )
            if largest_side is not None:
                picture.draft("RGB", (largest_side, largest_side))
            return form, _upright_rgb(picture)
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused("image_too_many_pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 Pillow's decoders raise almost anything on a hostile file
        raise ImageRefused("image_unreadable", f"not a readable {', '.join(FORMATS)} image: {error}") from None


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "RGB":
        return upright
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")
