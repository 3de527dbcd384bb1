"""`moonlake train encoder` and `moonlake evaluate encoder`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.lake import Lake
from moonlake.moments import parse_moment
from moonlake.settings import Settings

if TYPE_CHECKING:
    from models.evaluate_encoder import Recall


class Attention(StrEnum):
    """What a token of the prompt sees."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"


def train_encoder(
    name: Annotated[str, typer.Argument(help="Name of the embedding space, and of the artifact's folder.")],
    before: Annotated[str, typer.Option(help="T1: pairs of this moment and later are not read, with a time zone.")],
    backbone: Annotated[
        str, typer.Option(help="'tiny', or a Hugging Face image-text-to-text model: name or folder.")
    ] = "tiny",
    steps: Annotated[int | None, typer.Option(min=0, help="Optimiser steps; 0 leaves it untrained.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs of one step.")] = None,
    image_size: Annotated[str, typer.Option(help="Height x width that every image is resized to.")] = "64x64",
    attention: Annotated[Attention, typer.Option(help="What a token of the prompt sees.")] = Attention.BIDIRECTIONAL,
    seed: Annotated[int, typer.Option(help="Same seed and data: same weights, on one machine.")] = 0,
) -> None:
    """Train an encoder on the pairs of the lake, and register its embedding space as `building`."""
    from dataclasses import replace

    from models.encoder_config import EncoderConfig, read_encoder_artifact
    from models.train_encoder import TrainingConfig
    from models.train_encoder import train_encoder as train
    from moonlake.spaces import register

    settings = Settings.from_environment()
    lake = Lake(settings)
    height, width = _size(image_size)
    encoder = EncoderConfig(backbone=backbone, image_height=height, image_width=width, attention=attention.value)
    config = TrainingConfig(encoder=encoder, seed=seed)
    given: dict[str, Any] = {"steps": steps, "batch_size": batch_size}
    config = replace(config, **{key: value for key, value in given.items() if value is not None})
    folder = settings.artifacts / f"encoder-{name}"
    artifact = train(lake, config, folder, before=parse_moment(before), show_progress=True)
    space = register(
        lake,
        read_encoder_artifact(folder).space,
        name=name,
        artifact=str(folder.absolute()),
        trained_until=artifact.trained_until,
        metrics=artifact.metrics,
        written_at=datetime.now(UTC),
    )
    typer.echo(f"{space}: artifact {folder}, trained until {artifact.trained_until}")
    typer.echo(f"next: moonlake job embed_contents --space {name}")


def evaluate_encoder(
    space: Annotated[str, typer.Argument(help="Embedding space by name or id; 'live'; or 'pixels', the baseline.")],
    start: Annotated[str, typer.Option(help="First moment of the test, with a time zone.")],
    end: Annotated[str, typer.Option(help="First moment after it.")],
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
) -> None:
    """Image-search recall: how often the product bought after an image query is among the nearest 1, 10 and 50."""
    from models.evaluate_encoder import PIXELS, embedder_vectors, lake_vectors, pixel_baseline
    from models.evaluate_encoder import evaluate_encoder as evaluate
    from moonlake.spaces import find

    lake = Lake(Settings.from_environment())
    trained_until = None
    if space == PIXELS:
        represent = pixel_baseline(lake)
    else:
        found = find(lake, space)
        trained_until = found.trained_until
        if found.status == "building":
            from models.inference import Embedder

            represent = embedder_vectors(lake, Embedder.open(found.artifact))
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


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise InputError(f"image size {text!r}: expected height x width in pixels, such as 64x64")
    return int(height), int(width)
