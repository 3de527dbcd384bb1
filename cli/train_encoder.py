"""`moonlake train encoder`: stages 0, 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.errors import InputError
from moonlake.names import require_name
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.train_encoder import TrainedEncoder, encoder_folder, read_stage_config
from workflows.train_encoder import train_encoder as train


class Attention(StrEnum):
    """The tokens of the prompt that each token sees."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"


class PairSource(StrEnum):
    """The origin of the pairs of stages 1 and 2."""

    BEHAVIOR = "behavior"
    CATALOGUE = "catalogue"


def train_encoder(
    name: Annotated[str, typer.Argument(help="Name of the embedding space, and of the artifact's folder.")],
    before: Annotated[str, typer.Option(help="T1: events of this moment and later are not read, with a time zone.")],
    stage: Annotated[int, typer.Option(min=0, max=2, help="0 describes products, 1 and 2 learn from behaviour.")] = 1,
    parent: Annotated[
        str | None, typer.Option("--from", help="Encoder to go on from: a space, an artifact's folder or its name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the stage's configuration.")] = None,
    pairs: Annotated[
        PairSource | None, typer.Option(help="Learn from what users chose, or from the catalogue's own texts.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="'tiny', or a Hugging Face image-text-to-text model: name or folder.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Optimiser steps; 0 leaves it untrained.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs or products of one step.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Height x width of every image, such as 64x64.")] = None,
    attention: Annotated[Attention | None, typer.Option(help="What a token of the prompt sees.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and data: same weights, on one machine.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="CPU threads; 0 leaves them as they are.")] = None,
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints; 0 writes one every two minutes only.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a checkpoint lies.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Train an encoder; stages 1 and 2 register its embedding space as `building`.

    A run that was killed goes on by the same command. Under `torchrun --nproc-per-node N -m cli.app train encoder ...`
    every process computes its part of each batch.
    """
    from models.training.loop import Run

    settings = Settings.from_environment()
    given: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed, "threads": threads}
    described = {"backbone": backbone, **_size(image_size), "attention": attention.value if attention else None}
    if pairs is not None:
        given["pairs"] = pairs.value
    stage_config = read_stage_config(stage, config, given, described)
    run = Run(folder=settings.run(require_name("encoder", name)), fresh=fresh, checkpoint_steps=checkpoint_steps)
    start = encoder_folder(settings, parent) if parent else None
    if start is not None and any(value is not None for value in described.values()):
        raise InputError(f"--from {parent} takes its encoder over: leave out --backbone, --image-size and --attention")
    moments = {"before": parse_moment(before), "written_at": datetime.now(UTC)}
    trained = train(settings, name, stage_config, parent=start, run=run, progress=progress_on(), **moments)
    if trained is not None:
        give(trained.as_json(), _lines(trained), as_json=as_json, output=output)


def _lines(trained: TrainedEncoder) -> Iterator[str]:
    """The artifact or the space that came out, and the command to go on with."""
    name, folder, until = trained.name, trained.folder, trained.artifact.trained_until
    if trained.space is None:
        yield f"stage 0 of {name}: artifact {folder}, trained until {until}"
        yield f"next: moonlake train encoder NAME --stage 1 --from {name} --before T1"
        return
    yield f"{trained.space}: artifact {folder}, trained until {until}"
    if trained.is_known_space:
        yield f"NOTE: the same weights are the space {trained.space.name} already; {name} is a further name of it"
    yield f"next: moonlake job embed_contents --space {name}"


def _size(text: str | None) -> dict[str, int | None]:
    if text is None:
        return {"image_height": None, "image_width": None}
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise InputError(f"image size {text!r}: expected height x width in pixels, such as 64x64")
    return {"image_height": int(height), "image_width": int(width)}
