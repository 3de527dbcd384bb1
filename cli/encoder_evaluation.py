"""`moonlake evaluate encoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moonlake.lake import Lake
from moonlake.moments import parse_moment
from moonlake.settings import Settings

if TYPE_CHECKING:
    from models.evaluate_encoder import Recall


def evaluate_encoder(
    space: Annotated[str, typer.Argument(help="Embedding space by name or id; 'live'; or 'pixels', the baseline.")],
    start: Annotated[str, typer.Option(help="First moment of the test, with a time zone.")],
    end: Annotated[str, typer.Option(help="First moment after it.")],
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
) -> None:
    """Image-search recall: how often the product bought after an image query is among the nearest 1, 10 and 50."""
    from models.evaluate_encoder import PIXELS
    from models.evaluate_encoder import evaluate_encoder as evaluate
    from models.representations import embedder_vectors, lake_files, lake_vectors, pixel_baseline
    from moonlake.spaces import find

    lake = Lake(Settings.from_environment())
    trained_until = None
    if space == PIXELS:
        represent = pixel_baseline(lake_files(lake))
    else:
        found = find(lake, space)
        trained_until = found.trained_until
        if found.status == "building":
            from models.inference import Embedder

            represent = embedder_vectors(lake_files(lake), Embedder.open(found.artifact))
        else:
            represent = lake_vectors(lake, found.space_id)
    recall = evaluate(
        lake, represent, parse_moment(start), parse_moment(end), trained_until=trained_until, allow_seen=allow_seen
    )
    for line in _lines(space, recall):
        typer.echo(line)


def _lines(subject: str, recall: Recall) -> list[str]:
    label = " (on rows that training may have seen)" if recall.seen else ""
    head = f"{subject}{label}: {recall.purchases} purchases after {recall.queries} image queries, pool of {recall.pool}"
    rates = [
        f"  hit@{rate.cutoff:<3} {rate.value:.4f}  (95% interval {rate.low:.4f} to {rate.high:.4f})"
        for rate in recall.hit_rates
    ]
    return [head, *rates, f"  left out: {recall.left_out}"]
