"""Figures on judged queries, as lines on the terminal: the `judged` task of `moonlake evaluate encoder`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from moonlake.lake.lake import Lake

if TYPE_CHECKING:
    from models.evaluation.judged import Figure
    from models.evaluation.representations import Represent

BM25 = "bm25"
"""What is measured where there is no encoder."""
CANDIDATES = {"judged": "the products judged for a query", "all": "all products on sale; unjudged ones count as wrong"}
GAINS = {"exponential": "2^grade - 1", "esci": "1, 0.1, 0.01 and 0, as the ESCI challenge has them"}


def evaluate_judged(lake: Lake, name: str, represent: Represent | None, at: datetime) -> dict[str, Any]:
    """Measure on the judged queries of the lake, print it, and give all figures as JSON.

    Args: represent: None for BM25 alone.
    """
    from models.evaluation.judged import SETTINGS
    from models.evaluation.judged import evaluate_judged as evaluate

    found = evaluate(lake, represent, at)
    typer.echo(
        f"{name}: {found.queries:,} judged queries, {found.judgments:,} judgments, pool of {found.pool:,}; "
        f"{found.left_out:,} left out"
    )
    for candidates, gain in SETTINGS:
        typer.echo(f"  nDCG@10 over {CANDIDATES[candidates]}; gains {GAINS[gain]}:")
        for one in found.figures:
            if (one.candidates, one.gain) == (candidates, gain):
                typer.echo(_line(one, ""))
        for one in found.differences:
            if (one.candidates, one.gain) == (candidates, gain):
                typer.echo(_line(one, "+"))
        if weights := found.weights.get((candidates, gain)):
            chosen = ", ".join(f"{weight:g}" for weight in weights)
            typer.echo(f"    the encoder's weight in the blend, chosen on the queries of the other folds: {chosen}")
    return {"subject": name} | found.as_json()


def _line(figure: Figure, sign: str) -> str:
    value, low, high = figure.ndcg
    return f"    {figure.subject:<18} {value:{sign}.4f}  (95% interval {low:{sign}.4f} to {high:{sign}.4f})"
