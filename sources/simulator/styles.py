"""Latent styles: what simulated products look like, and how alike two of them are.

A style is a point in a mixed space: a category (the silhouette), its proportions, colours, a pattern and a finish. The
pictures are drawn from it, the words of titles are read off it, and shoppers compare by it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moonlake.arrays import Float32s, Float64s, Int64s

CATEGORIES = ("tshirt", "dress", "mug", "bag", "shoe", "lamp", "vase", "cushion")
COLOURS = ("red", "orange", "yellow", "lime", "green", "teal", "blue", "indigo", "purple", "pink")
PATTERNS = ("plain", "striped", "dotted", "checked")
MATERIALS = ("matte", "glossy", "woven", "speckled")

CATEGORY_WEIGHT = 1.0
HUE_WEIGHT = 0.9
PATTERN_WEIGHT = 0.6
"""Square roots of the parts that category, hue and pattern have in the similarity of two styles."""
MATERIAL_WEIGHT = 0.4
LIGHTNESS_WEIGHT = 0.4
SHAPE_WEIGHT = 0.4
PATTERN_DETAIL_WEIGHT = 0.35


@dataclass(frozen=True, slots=True)
class Styles:
    """N styles as parallel arrays; all but the class numbers lie in [0, 1], hues on a circle.

    Attributes:
        category, pattern, material: int64 [N], index into CATEGORIES, PATTERNS, MATERIALS.
        proportion, detail: float32 [N], two free parameters of the silhouette.
        frequency, angle: float32 [N], of the pattern; without meaning for a plain style.
    """

    category: Int64s
    pattern: Int64s
    material: Int64s
    hue: Float32s
    accent_hue: Float32s
    lightness: Float32s
    proportion: Float32s
    detail: Float32s
    frequency: Float32s
    angle: Float32s

    def __len__(self) -> int:
        return len(self.category)

    def take(self, rows: Int64s) -> Styles:
        """The styles of these rows, in their order."""
        return Styles(*(getattr(self, entry.name)[rows] for entry in fields(self)))

    def vectors(self) -> Float32s:
        """Latent vectors, float32 [N, 28], unit norm: their cosine is how alike two styles are."""
        patterned = (self.pattern > 0).astype(np.float32)[:, None]
        blocks = (
            CATEGORY_WEIGHT * np.eye(len(CATEGORIES), dtype=np.float32)[self.category],
            HUE_WEIGHT * _circle(self.hue),
            PATTERN_WEIGHT * np.eye(len(PATTERNS), dtype=np.float32)[self.pattern],
            MATERIAL_WEIGHT * np.eye(len(MATERIALS), dtype=np.float32)[self.material],
            LIGHTNESS_WEIGHT * _arc(self.lightness),
            SHAPE_WEIGHT * _arc(self.proportion),
            SHAPE_WEIGHT * _arc(self.detail),
            PATTERN_DETAIL_WEIGHT * patterned * _circle(self.accent_hue),
            PATTERN_DETAIL_WEIGHT * patterned * _arc(self.frequency),
        )
        return unit(np.concatenate(blocks, axis=1))

    def words(self) -> dict[str, list[str]]:
        """Words for the styles: one each for colour, pattern, material and category, [N] lists."""
        colour = np.round(self.hue * len(COLOURS)).astype(int) % len(COLOURS)
        shade = np.where(self.lightness < 0.25, "dark ", np.where(self.lightness > 0.75, "light ", ""))
        return {
            "colour": [f"{shade[row]}{COLOURS[colour[row]]}" for row in range(len(self))],
            "pattern": [PATTERNS[index] for index in self.pattern],
            "material": [MATERIALS[index] for index in self.material],
            "category": [CATEGORIES[index] for index in self.category],
        }


def sample_styles(count: int, rng: np.random.Generator, *, signatures: Styles | None = None) -> Styles:
    """Random styles, [count]; with signatures (one a row), hue, pattern and material often follow them."""
    hue = rng.random(count, dtype=np.float32)
    pattern = rng.integers(len(PATTERNS), size=count)
    material = rng.integers(len(MATERIALS), size=count)
    if signatures is not None:
        follows_hue, follows_pattern, follows_material = rng.random((3, count)) < 0.5
        hue = np.where(follows_hue, _turned(signatures.hue, 0.06 * rng.standard_normal(count)), hue)
        pattern = np.where(follows_pattern, signatures.pattern, pattern)
        material = np.where(follows_material, signatures.material, material)
    return Styles(
        category=rng.integers(len(CATEGORIES), size=count),
        pattern=pattern,
        material=material,
        hue=hue,
        accent_hue=_turned(hue, rng.uniform(0.2, 0.8, count)),
        **{name: rng.random(count, dtype=np.float32) for name in _LINEAR},
    )


def near_styles(styles: Styles, rng: np.random.Generator) -> Styles:
    """Styles close to the given ones: what a shopper has in mind who would be glad of these, [N]."""
    count = len(styles)

    def moved(values: Float32s) -> Float32s:
        return np.clip(values + 0.06 * rng.standard_normal(count), 0.0, 1.0).astype(np.float32)

    linear: dict[str, Any] = {name: moved(getattr(styles, name)) for name in _LINEAR}
    other_material = rng.random(count) < 0.1
    return replace(
        styles,
        hue=_turned(styles.hue, 0.025 * rng.standard_normal(count)),
        accent_hue=_turned(styles.accent_hue, 0.03 * rng.standard_normal(count)),
        **linear,
        material=np.where(other_material, rng.integers(len(MATERIALS), size=count), styles.material),
    )


def unit(vectors: Float32s) -> Float32s:
    """Rows of unit norm, float32 [N, D]."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


_LINEAR = ("lightness", "proportion", "detail", "frequency", "angle")


def _turned(hue: Float32s, by: Float64s) -> Float32s:
    return np.asarray((hue + by) % 1.0, dtype=np.float32)


def _circle(values: Float32s) -> Float32s:
    return np.stack([np.cos(2 * np.pi * values), np.sin(2 * np.pi * values)], axis=1).astype(np.float32)


def _arc(values: Float32s) -> Float32s:
    """[0, 1] on half a circle: constant norm, and a distance that grows with the difference."""
    return np.stack([np.cos(np.pi * values), np.sin(np.pi * values)], axis=1).astype(np.float32)
