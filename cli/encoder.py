"""`moonlake train encoder`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.lake import Lake
from moonlake.moments import parse_moment
from moonlake.settings import Settings


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


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise InputError(f"image size {text!r}: expected height x width in pixels, such as 64x64")
    return int(height), int(width)
