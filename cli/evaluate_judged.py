"""Figures on judged queries, as lines on the terminal: the `judged` task of `moonlake evaluate encoder`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.evaluation.judged import Figure
    from workflows.encoder_figures import JudgedEvaluation

CANDIDATES = {"judged": "the products judged for a query", "all": "all products on sale; unjudged ones count as wrong"}
GAINS = {"exponential": "2^grade - 1", "esci": "1, 0.1, 0.01 and 0, as the ESCI challenge has them"}


def judged_lines(found: JudgedEvaluation) -> Iterator[str]:
    """Every ranking with its interval, setting by setting; of whole vectors first."""
    from models.evaluation.judged import SETTINGS

    figures = found.figures
    yield (
        f"{found.subject}: {figures.queries:,} judged queries, {figures.judgments:,} judgments, "
        f"pool of {figures.pool:,}; {figures.left_out:,} left out"
    )
    for candidates, gain in SETTINGS:
        yield f"  nDCG@10 over {CANDIDATES[candidates]}; gains {GAINS[gain]}:"
        for one in figures.figures:
            if (one.candidates, one.gain) == (candidates, gain):
                yield _line(one, "")
        for one in figures.differences:
            if (one.candidates, one.gain) == (candidates, gain):
                yield _line(one, "+")
        if weights := figures.weights.get((candidates, gain)):
            chosen = ", ".join(f"{weight:g}" for weight in weights)
            yield f"    the encoder's weight in the blend, chosen on the queries of the other folds: {chosen}"
    if found.prefix is not None:
        yield from judged_lines(found.prefix)


def _line(figure: Figure, sign: str) -> str:
    return f"    {figure.subject:<18} {figure.ndcg:{sign}.4f}"
