"""`moonlake train encoder`: stages 0, 1 and 2."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment

if TYPE_CHECKING:
    from models.artifacts import Artifact
    from models.training.captioning import PretrainingConfig
    from models.training.contrastive import TrainingConfig
    from models.training.loop import Run


class Attention(StrEnum):
    """What a token of the prompt sees."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"


class PairSource(StrEnum):
    """Where the pairs of stages 1 and 2 come from."""

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
) -> None:
    """Train an encoder; stages 1 and 2 register its embedding space as `building`.

    A run that was killed goes on by the same command. Under `torchrun --nproc-per-node N -m cli.app train encoder ...`
    every process computes its part of each batch.
    """
    from models.training.distributed import is_first, joined
    from models.training.loop import Run

    settings = Settings.from_environment()
    given: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed, "threads": threads}
    described = {"backbone": backbone, **_size(image_size), "attention": attention.value if attention else None}
    if pairs is not None:
        given["pairs"] = pairs.value
    stage_config = _config(stage, config, given, described)
    run = Run(folder=settings.artifacts / "runs" / name, fresh=fresh, checkpoint_steps=checkpoint_steps)
    start = _artifact(settings, parent) if parent else None
    if start is not None and any(value is not None for value in described.values()):
        raise InputError(f"--from {parent} takes its encoder over: leave out --backbone, --image-size and --attention")
    with joined():
        artifact = _train(settings, name, stage, stage_config, run, before=parse_moment(before), parent=start)
        if is_first():
            _report(settings, name, stage, artifact)


def _train(
    settings: Settings,
    name: str,
    stage: int,
    config: PretrainingConfig | TrainingConfig,
    run: Run,
    *,
    before: datetime,
    parent: Path | None,
) -> Artifact:
    from contextlib import nullcontext
    from dataclasses import replace

    from models.training.captioning import PretrainingConfig, pretrain_encoder
    from models.training.contrastive import train_encoder as train
    from models.training.distributed import is_first
    from models.training.progress import shown

    lake, folder = Lake(settings), settings.artifacts / f"encoder-{name}"
    unit = "pairs" if stage else "products"
    progress = shown(f"stage {stage} of {name}", config.steps, unit) if is_first() else nullcontext(None)
    with progress as report:
        watched = replace(run, report=report)
        if isinstance(config, PretrainingConfig):
            return pretrain_encoder(lake, config, folder, before=before, parent=parent, run=watched)
        return train(lake, config, folder, before=before, parent=parent, run=watched)


def _report(settings: Settings, name: str, stage: int, artifact: Artifact) -> None:
    """Say what came out; register the space of an encoder whose vectors are to be compared."""
    from models.encoder.config import read_encoder_artifact
    from moonlake.embeddings.spaces import register

    folder = settings.artifacts / f"encoder-{name}"
    if stage == 0:
        typer.echo(f"stage 0 of {name}: artifact {folder}, trained until {artifact.trained_until}")
        typer.echo(f"next: moonlake train encoder NAME --stage 1 --from {name} --before T1")
        return
    space = register(
        Lake(settings),
        read_encoder_artifact(folder).space,
        name=name,
        artifact=str(folder.absolute()),
        trained_until=artifact.trained_until,
        metrics=artifact.metrics,
        written_at=datetime.now(UTC),
    )
    typer.echo(f"{space}: artifact {folder}, trained until {artifact.trained_until}")
    typer.echo(f"next: moonlake job embed_contents --space {name}")


def _config(
    stage: int, file: Path | None, given: dict[str, Any], encoder: dict[str, Any]
) -> PretrainingConfig | TrainingConfig:
    """The stage's configuration: its defaults, over them the file, over them the options."""
    import tomllib

    from models.training.captioning import PretrainingConfig
    from models.training.contrastive import TrainingConfig
    from models.training.stages import stage_config

    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"--config {file}: {error}") from None
    values |= {key: value for key, value in given.items() if value is not None}
    named = {key: value for key, value in encoder.items() if value is not None}
    if named:
        values["encoder"] = {**values.get("encoder", {}), **named}
    where = str(file or "options")
    if stage == 0:
        return stage_config(PretrainingConfig, values, where=where)
    if values.setdefault("stage", stage) != stage:
        raise InputError(f"{where}: stage {values['stage']}, but --stage {stage}")
    return stage_config(TrainingConfig, values, where=where)


def _artifact(settings: Settings, name: str) -> Path:
    """The artifact's folder of a path, of a name under which one was trained, or of a space."""
    from moonlake.embeddings.releases import find

    for folder in (Path(name), settings.artifacts / f"encoder-{name}"):
        if (folder / "encoder.json").is_file():
            return folder
    return Path(find(Lake(settings), name).artifact)


def _size(text: str | None) -> dict[str, int | None]:
    if text is None:
        return {"image_height": None, "image_width": None}
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise InputError(f"image size {text!r}: expected height x width in pixels, such as 64x64")
    return {"image_height": int(height), "image_width": int(width)}
