"""Image files as arrays of one size: the first step of every encoder, and of the raw-pixel baseline."""

from __future__ import annotations

import numpy as np
from PIL import Image

from moonlake.arrays import UInt8s
from moonlake.embeddings.images import decode
from moonlake.errors import ImageRefused


def try_pixels(file: bytes, image_size: tuple[int, int]) -> UInt8s | None:
    """`to_pixels`, or None for a file that is refused."""
    try:
        return to_pixels(file, image_size)
    except ImageRefused:
        return None


def to_pixels(file: bytes, image_size: tuple[int, int]) -> UInt8s:
    """uint8 [H, W, 3]: the picture, resized whole. Raises ImageRefused for a file that is not a picture."""
    height, width = image_size
    picture = decode(file, largest_side=max(image_size))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)
