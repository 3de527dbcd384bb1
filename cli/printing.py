"""Figures with their intervals, as lines on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from models.evaluation.bootstrap import Estimate, Rate
    from models.evaluation.geometry import Geometry
    from models.evaluation.recall import Segment


def echo_rates(name: str, rates: Sequence[Rate], limits: Sequence[float] | None = None) -> None:
    """One line a cutoff; `limits` is the best that there could be at each."""
    for row, rate in enumerate(rates):
        limit = "" if limits is None else f"  of at most {limits[row]:.4f}"
        typer.echo(f"  {f'{name}@{rate.cutoff}':<7} {rate.value:.4f}  {_interval(rate.low, rate.high)}{limit}")


def echo_estimate(name: str, estimate: Estimate) -> None:
    """One line, with a sign."""
    typer.echo(f"    {name:<19} {estimate.value:+.4f}  {_interval(estimate.low, estimate.high)}")


def echo_segments(segments: Sequence[Segment]) -> None:
    """One line a part."""
    for one in segments:
        figures = "  ".join(f"hit@{rate.cutoff} {rate.value:.4f}" for rate in one.hit_rates)
        typer.echo(f"  {one.division}: {one.part} ({one.purchases:,} purchases)  {figures}")


def echo_geometry(found: Geometry) -> None:
    """How the vectors lie, in two lines."""
    aligned = "" if found.alignment is None else f"  alignment {found.alignment:.3f}"
    typer.echo(f"  pool vectors: uniformity {found.uniformity:.3f}{aligned}  mean cosine {found.mean_cosine:.3f}")
    typer.echo(
        f"    effective rank {found.effective_rank:.1f} of {found.dimension}  duplicates {found.duplicates:.4f}  "
        f"norm {found.norm:.4f} (off 1 by at most {found.largest_norm_error:.1e})  without a vector {found.missing:,}"
    )


def _interval(low: float, high: float) -> str:
    return f"(95% interval {low:.4f} to {high:.4f})"
