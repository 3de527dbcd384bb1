"""Geometry of vectors in their space: norm, uniformity, alignment, duplicates, and the number of directions in use."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from moonlake.arrays import Float32s, Float64s

RANDOM_PAIRS = 200_000


@dataclass(frozen=True, slots=True)
class Geometry:
    """Figures of N vectors.

    Attributes:
        norm, largest_norm_error: mean L2 norm of the vectors as given, and the largest distance of one from 1: what
            rounding to the storage type (or a broken encoder) leaves. All other figures are of unit norm restored.
        mean_cosine: of random pairs; 1 is a collapsed space.
        uniformity: log of the mean of exp(-2 d^2) over random pairs; more negative is more even on the sphere, 0 is
            collapsed (Wang and Isola 2020, t = 2).
        alignment: mean d^2 of known pairs, 0 to 4; smaller is closer; None where no pairs are known (same paper,
            alpha = 2).
        duplicates: share of vectors that are equal to another in every bit.
        effective_rank: exp of the entropy of the singular values that sum to 1 (Roy and Vetterli 2007); 1 is a line,
            D is all directions alike.
        missing: rows of zeros, left out of all of these.
    """

    vectors: int
    dimension: int
    missing: int
    norm: float
    largest_norm_error: float
    mean_cosine: float
    uniformity: float
    alignment: float | None
    duplicates: float
    effective_rank: float

    def as_json(self) -> dict[str, float | None]:
        """The fields by name."""
        return asdict(self)


def geometry(vectors: Float32s, *, pairs: tuple[Float32s, Float32s] | None = None, seed: int = 0) -> Geometry:
    """The figures of vectors of distinct contents.

    Args:
        vectors: float32 [N, D]; at least two that are not zeros.
        pairs: float32 [P, D] twice, of known pairs (query and product) row by row.
        seed: of the random pairs.
    """
    there = vectors[np.any(vectors, axis=1)]
    if len(there) < 2:
        raise ValueError(f"geometry of {len(there)} vectors: expected at least two that are not zeros")
    norms = np.linalg.norm(there.astype(np.float64), axis=1)
    units = there / norms[:, None]
    cosine = _random_cosines(units, seed)
    return Geometry(
        vectors=len(there),
        dimension=there.shape[1],
        missing=len(vectors) - len(there),
        norm=float(norms.mean()),
        largest_norm_error=float(np.abs(norms - 1).max()),
        mean_cosine=float(cosine.mean()),
        uniformity=float(np.log(np.exp(-2 * (2 - 2 * cosine)).mean())),
        alignment=None if pairs is None else alignment(*pairs),
        duplicates=_duplicates(there),
        effective_rank=effective_rank(units),
    )


def alignment(first: Float32s, second: Float32s) -> float | None:
    """Mean squared distance of pairs of unit vectors, row by row; None when no pair has both."""
    both = np.any(first, axis=1) & np.any(second, axis=1)
    if not both.any():
        return None
    return float(np.square(first[both].astype(np.float64) - second[both]).sum(1).mean())


def effective_rank(vectors: NDArray[np.floating]) -> float:
    """exp of the entropy of the singular values of [N, D], made to sum to 1."""
    rows = vectors.astype(np.float64)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(rows.T @ rows), 0, None))  # [D]
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _random_cosines(units: Float64s, seed: int) -> Float64s:
    """Cosines of random pairs of different rows: every pair when there are few."""
    count = len(units)
    if count * (count - 1) // 2 <= RANDOM_PAIRS:
        return np.asarray((units @ units.T)[np.triu_indices(count, 1)])
    rng = np.random.default_rng(seed)
    first = rng.integers(count, size=RANDOM_PAIRS)
    second = (first + rng.integers(1, count, size=RANDOM_PAIRS)) % count
    return np.asarray(np.einsum("pd,pd->p", units[first], units[second]))


def _duplicates(vectors: Float32s) -> float:
    _, count = np.unique(vectors, axis=0, return_counts=True)
    return float(count[count > 1].sum() / len(vectors))
