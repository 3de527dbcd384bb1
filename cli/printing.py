"""Figures with their 95% intervals in brackets, as lines on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.evaluation.bootstrap import Estimate, Rate
    from models.evaluation.geometry import Geometry
    from models.evaluation.recall import Segment


def rate_lines(name: str, rates: Sequence[Rate], limits: Sequence[float] | None = None) -> Iterator[str]:
    """One line a cutoff; `limits` is the best that there could be at each."""
    for row, rate in enumerate(rates):
        limit = "" if limits is None else f"  of at most {limits[row]:.4f}"
        yield f"  {f'{name}@{rate.cutoff}':<7} {rate.estimate:.4f}{limit}"


def estimate_line(name: str, estimate: Estimate) -> str:
    """One line, with a sign."""
    return f"    {name:<19} {estimate:+.4f}"


def segment_lines(segments: Sequence[Segment]) -> Iterator[str]:
    """One line a part."""
    for one in segments:
        figures = "  ".join(f"hit@{rate.cutoff} {rate.value:.4f}" for rate in one.hit_rates)
        yield f"  {one.division}: {one.part} ({one.purchases:,} purchases)  {figures}"


def geometry_lines(found: Geometry) -> Iterator[str]:
    """Two lines on how the vectors lie."""
    aligned = "" if found.alignment is None else f"  alignment {found.alignment:.3f}"
    yield f"  pool vectors: uniformity {found.uniformity:.3f}{aligned}  mean cosine {found.mean_cosine:.3f}"
    yield (
        f"    effective rank {found.effective_rank:.1f} of {found.dimension}  duplicates {found.duplicates:.4f}  "
        f"norm {found.norm:.4f} (off 1 by at most {found.largest_norm_error:.1e})  without a vector {found.missing:,}"
    )
