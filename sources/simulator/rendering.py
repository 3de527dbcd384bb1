"""Pictures of styles: the same thing never looks the same twice.

Angle, size, place, mirror, light and background are drawn anew for every picture and say nothing about the style, so
that raw pixels compare backgrounds, and an encoder has something to learn. All pictures of a batch are drawn at once.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moonlake.arrays import UInt8s
from sources.simulator.styles import CATEGORIES, Styles

BATCH = 64
JPEG_QUALITY = 88
EDGE_SHARPNESS = 14.0
GRAIN = 0.06

Reals = NDArray[np.floating[Any]]
Silhouette = Callable[[Reals, Reals, Reals, Reals], Reals]


def render(styles: Styles, rng: np.random.Generator, *, pixels: int = 64, clutter: float = 0.3) -> list[bytes]:
    """One fresh JPEG picture of each style.

    Args: clutter: 0 is a plain studio background, 1 a strongly coloured and patterned one, as in a shopper's snapshot.
    """
    files: list[bytes] = []
    for start in range(0, len(styles), BATCH):
        rows = np.arange(start, min(start + BATCH, len(styles)))
        files.extend(_jpeg(picture) for picture in _draw(styles.take(rows), rng, pixels, clutter))
    return files


def _jpeg(picture: UInt8s) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _draw(styles: Styles, rng: np.random.Generator, pixels: int, clutter: float) -> UInt8s:
    """Pictures, uint8 [N, P, P, 3]: at every pixel a weighted sum of a few colours, as one matrix product."""
    count = len(styles)
    axis = np.linspace(-1.0, 1.0, pixels, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]  # downwards, to the right
    u, v = _object_frame(x, y, rng, count)  # [N, P, P]

    distance = np.empty_like(u)
    for index, name in enumerate(CATEGORIES):
        rows = np.flatnonzero(styles.category == index)
        shape = (_wide(styles.proportion[rows]), _wide(styles.detail[rows]))
        distance[rows] = SILHOUETTES[name](u[rows], v[rows], *shape)
    inside = np.clip(0.5 - EDGE_SHARPNESS * distance, 0.0, 1.0)  # [N, P, P]
    lit = inside * _finish(styles, u, v, rng)
    accented = lit * _pattern(styles, u, v)
    base = _colour(styles.hue, styles.lightness)  # [N, 3]
    accent = _colour(styles.accent_hue, 1.0 - styles.lightness) - base

    layers, colours = _background(x, y, rng, count, clutter)
    outside = 1.0 - inside
    grain = rng.random(inside.shape, dtype=np.float32) - 0.5
    weights = np.stack([lit, accented, grain, *(outside * layer for layer in layers)], axis=-1)  # [N, P, P, K]
    palette = np.stack([base, accent, np.full((count, 3), GRAIN, np.float32), *colours], axis=1)  # [N, K, 3]
    light = 1.0 + 0.25 * clutter * rng.standard_normal((count, 1, 1), dtype=np.float32)
    cast = 1.0 + 0.07 * rng.standard_normal((count, 1, 3), dtype=np.float32)
    palette *= np.clip(light, 0.6, 1.3) * cast
    picture = weights.reshape(count, pixels * pixels, -1) @ (255.0 * palette)
    return np.clip(picture + 0.5, 0.0, 255.0).astype(np.uint8).reshape(count, pixels, pixels, 3)


def _object_frame(x: Reals, y: Reals, rng: np.random.Generator, count: int) -> tuple[Reals, Reals]:
    """Coordinates of every pixel as the object sees them: random angle, size, place and mirror, [N, P, P] each."""
    angle = _wide((0.28 * rng.standard_normal(count)).astype(np.float32))
    size = _wide(rng.uniform(0.55, 0.95, count).astype(np.float32))
    shift_x, shift_y = (_wide(0.12 * rng.standard_normal(count, dtype=np.float32)) for _ in range(2))
    mirror = _wide(rng.choice(np.array([-1.0, 1.0], np.float32), count))
    dx, dy = x - shift_x, y - shift_y
    u = mirror * (np.cos(angle) * dx + np.sin(angle) * dy) / size
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / size
    return u, v


def _wide(values: Reals) -> Reals:
    return np.asarray(values, np.float32)[:, None, None]


def _colour(hue: Reals, lightness: Reals) -> Reals:
    """RGB in [0, 1], float32 [N, 3]: full circle of hues, from dark over vivid to pale."""
    offsets = np.array([0.0, 1 / 3, 2 / 3], np.float32)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] - offsets))  # [N, 3]
    value = 0.35 + 0.6 * lightness[:, None]
    saturation = 0.95 - 0.45 * lightness[:, None]
    return np.asarray(value * (1.0 - saturation * (1.0 - wave)), np.float32)


def _pattern(styles: Styles, u: Reals, v: Reals) -> Reals:
    """Share of the second colour at every pixel, float32 [N, P, P]."""
    second = np.zeros_like(u)
    for index, wave in _WAVES.items():
        rows = np.flatnonzero(styles.pattern == index)
        turn = _wide(np.pi * styles.angle[rows])
        step = _wide(6.0 + 12.0 * styles.frequency[rows])
        along = step * (np.cos(turn) * u[rows] + np.sin(turn) * v[rows])
        across = step * (np.cos(turn) * v[rows] - np.sin(turn) * u[rows])
        second[rows] = np.clip(0.5 + 3.0 * wave(along, across), 0.0, 1.0)
    return second


_WAVES: dict[int, Callable[[Reals, Reals], Reals]] = {
    1: lambda along, _: np.sin(along),
    2: lambda along, across: 2.0 * np.cos(along) * np.cos(across) - 1.0,
    3: lambda along, across: np.sin(along) * np.sin(across),
}


def _finish(styles: Styles, u: Reals, v: Reals, rng: np.random.Generator) -> Reals:
    """Brightness of the surface, float32 [N, P, P]: shading, and what a material does to light."""
    side = _wide(rng.uniform(-0.25, 0.25, len(styles)).astype(np.float32))
    brightness = 1.0 + side * u - 0.12 * v
    glossy, woven, speckled = (np.flatnonzero(styles.material == index) for index in (1, 2, 3))
    brightness[glossy] += 0.9 * np.exp(-6.0 * ((u[glossy] + 0.25) ** 2 + (v[glossy] + 0.2) ** 2))
    brightness[woven] *= 1.0 + 0.22 * np.sign(np.sin(34.0 * u[woven])) * np.sign(np.sin(34.0 * v[woven]))
    grain = rng.random((len(speckled), *u.shape[1:]), dtype=np.float32)
    brightness[speckled] *= np.where(grain < 0.12, 0.45, 1.0)
    return brightness


def _background(
    x: Reals, y: Reals, rng: np.random.Generator, count: int, clutter: float
) -> tuple[list[Reals], list[Reals]]:
    """Backgrounds as layers [N, P, P] and their colours [N, 3]: a gradient of two colours, and soft blobs of others."""
    plain = np.float32(0.92) - 0.06 * rng.random((count, 3), dtype=np.float32)
    wild = rng.random((4, count, 3), dtype=np.float32)
    strength = np.asarray(clutter * rng.random((count, 1), dtype=np.float32) ** 0.5, np.float32)
    first, second, *blobs = (plain + strength * (colour - plain) for colour in wild)  # [N, 3] each
    turn = _wide(2 * np.pi * rng.random(count, dtype=np.float32))
    ramp = np.clip(0.5 + 0.5 * (np.cos(turn) * x + np.sin(turn) * y), 0.0, 1.0)
    layers: list[Reals] = [np.ones_like(ramp), ramp]
    colours: list[Reals] = [first, second - first]
    for blob in blobs:
        cx, cy = (_wide(rng.uniform(-1.0, 1.0, count).astype(np.float32)) for _ in range(2))
        layers.append(np.exp(-8.0 * (x - cx) ** 2) * np.exp(-8.0 * (y - cy) ** 2))
        colours.append(blob - first)
    return layers, colours


# Silhouettes: signed distance (below 0 inside) at object coordinates u, v in about [-1, 1], v downwards.
# `a` (proportion) and `b` (detail) in [0, 1] are the free parameters of the style.


def _union(*parts: Reals) -> Reals:
    return np.asarray(functools.reduce(np.minimum, parts))


def _overlap(*parts: Reals) -> Reals:
    return np.asarray(functools.reduce(np.maximum, parts))


def _box(u: Reals, v: Reals, half_width: Reals | float, half_height: Reals | float) -> Reals:
    return _overlap(np.abs(u) - half_width, np.abs(v) - half_height)


def _ring(u: Reals, v: Reals, radius: Reals | float, thickness: float) -> Reals:
    return np.abs(np.hypot(u, v) - radius) - thickness


def _tshirt(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    body = _box(u, v - 0.1, 0.42, 0.5 + 0.3 * a)
    sleeve = _overlap(np.abs(v + 0.45 - 0.45 * np.abs(u)) - 0.2, np.abs(u) - (0.55 + 0.45 * b))
    neck = np.hypot(u, v + 0.4 + 0.3 * a) - 0.17
    return _overlap(np.minimum(body, sleeve), -neck)


def _dress(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    skirt = _overlap(np.abs(u) - (0.18 + (0.15 + 0.5 * a) * (v + 0.2)), np.abs(v - 0.3) - 0.55)
    top = _box(u, v + 0.5, 0.22 + 0.2 * b, 0.34)
    return _union(skirt, top)


def _mug(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    body = _box(u + 0.12, v, 0.35 + 0.2 * a, 0.55 + 0.2 * (1 - a))
    return _union(body, _ring(u - 0.3 - 0.2 * a, v, 0.22 + 0.2 * b, 0.08))


def _bag(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    body = _box(u, v - 0.3, 0.5 + 0.4 * a, 0.55 - 0.2 * a)
    handle = _overlap(_ring(u, v + 0.1, 0.28 + 0.3 * b, 0.06), v - 0.1)
    return _union(body, handle)


def _shoe(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    sole = _overlap(((u / 0.9) ** 2 + ((v - 0.3) / (0.3 + 0.12 * a)) ** 2) - 1.0, v - 0.42)
    ankle = _box(u + 0.5, v, 0.28, 0.3 + 0.45 * b)
    return _union(0.4 * sole, ankle)


def _lamp(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    shade = _overlap(np.abs(u) - (0.25 + 0.2 * a + (0.1 + 0.5 * b) * (v + 0.7)), np.abs(v + 0.4) - 0.38)
    stem = _box(u, v - 0.4, 0.06, 0.5)
    foot = _box(u, v - 0.85, 0.3 + 0.2 * a, 0.07)
    return _union(shade, stem, foot)


def _vase(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    radius = 0.3 + 0.2 * a + (0.1 + 0.16 * b) * np.sin(3.2 * v + 0.6)
    return _overlap(np.abs(u) - radius, np.abs(v) - 0.85)


def _cushion(u: Reals, v: Reals, a: Reals, b: Reals) -> Reals:
    power = 1.2 + 4.0 * b
    spread = (np.abs(u) / 0.85) ** power + (np.abs(v) / (0.4 + 0.45 * a)) ** power
    return np.asarray(0.5 * (np.minimum(spread, 16.0) ** (1.0 / power) - 1.0))


SILHOUETTES: dict[str, Silhouette] = {
    "tshirt": _tshirt,
    "dress": _dress,
    "mug": _mug,
    "bag": _bag,
    "shoe": _shoe,
    "lamp": _lamp,
    "vase": _vase,
    "cushion": _cushion,
}
