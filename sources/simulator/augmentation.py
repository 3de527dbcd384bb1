"""A shopper's snapshot of a product, made from a studio picture: another background, angle, light and sharpness."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from moonlake.arrays import Float32s

Picture = Image.Image
STUDIO_WHITE = 236
"""A pixel whose every channel is above this is background of a studio picture."""


def snapshot(picture: Picture, rng: np.random.Generator, *, size: tuple[int, int] = (60, 80)) -> bytes:
    """A JPEG file of the thing in a studio picture as it might look elsewhere; every call gives another one.

    Random mirror, turn, crop, background, colour cast, contrast, brightness, blur and JPEG quality.
    """
    placed = _on_background(picture.resize(size, Image.Resampling.BILINEAR), rng)
    if rng.random() < 0.5:
        placed = ImageOps.mirror(placed)
    placed = placed.rotate(float(rng.uniform(-20.0, 20.0)), Image.Resampling.BILINEAR, fillcolor=_corner(placed))
    placed = _cropped(placed, rng)
    for enhance in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness):
        placed = enhance(placed).enhance(float(rng.uniform(0.75, 1.25)))
    if rng.random() < 0.4:
        placed = placed.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    buffer = io.BytesIO()
    placed.save(buffer, format="JPEG", quality=int(rng.integers(60, 92)))
    return buffer.getvalue()


def darkest_channel(pixels: Float32s) -> Float32s:
    """The smallest of the three channels of every pixel, float32 [...] from [..., 3]."""
    return np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _on_background(picture: Picture, rng: np.random.Generator) -> Picture:
    """The thing cut out by its white background and laid on a gradient of two random colours, with a colour cast."""
    pixels = np.asarray(picture, np.float32)  # [H, W, 3]
    thing = Image.fromarray(((darkest_channel(pixels) < STUDIO_WHITE) * np.uint8(255)).astype(np.uint8))
    mask = np.asarray(thing.filter(ImageFilter.GaussianBlur(0.7)), np.float32)[..., None] / 255.0
    height, width = pixels.shape[:2]
    first, second = rng.uniform(30.0, 255.0, (2, 3)).astype(np.float32)
    turn = float(rng.uniform(0.0, 2.0 * np.pi))
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)
    ramp = np.clip(0.5 + 0.5 * (np.cos(turn) * x + np.sin(turn) * y), 0.0, 1.0)[..., None]
    background = first + ramp * (second - first)
    cast = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    mixed: Float32s = (mask * pixels + (1.0 - mask) * background) * cast
    return Image.fromarray(np.clip(mixed, 0.0, 255.0).astype(np.uint8))


def _cropped(picture: Picture, rng: np.random.Generator) -> Picture:
    """65% to 100% of each side, anywhere, back at the first size."""
    width, height = picture.size
    kept_width, kept_height = (side * rng.uniform(0.65, 1.0) for side in (width, height))
    left, top = rng.uniform(0.0, width - kept_width), rng.uniform(0.0, height - kept_height)
    box = (left, top, left + kept_width, top + kept_height)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _corner(picture: Picture) -> tuple[int, int, int]:
    red, green, blue = np.asarray(picture)[0, 0].tolist()
    return red, green, blue
