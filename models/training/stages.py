"""From the lake to an artifact: what all stages of an encoder's training share around their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch

from models.artifacts import Artifact, config_from, read_artifact, write_artifact
from models.encoder.config import ENCODER, EncoderConfig, read_encoder_artifact
from models.encoder.encoder import Encoder
from models.encoder.factory import load_encoder, new_encoder
from models.training.distributed import is_first, wait_for_all
from models.training.loop import Run, RunConfig
from moonlake.errors import InputError
from moonlake.files import publish_folder
from moonlake.lake.lake import Lake

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Trained:
    """The record of training in an encoder's artifact.

    Attributes:
        stage: 0, 1 or 2.
        training: configuration of the stage.
        parent: what the artifact that the stage began from says of its training; None for a new encoder.
    """

    stage: int
    encoder: EncoderConfig
    training: Mapping[str, Any]
    parent: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Start:
    """The starting point of a stage.

    Attributes:
        encoder: new, or as the stage before left it.
        identity: what of it decides the outcome, for the checkpoints.
        parent: the artifact that it was read from.
    """

    encoder: Encoder
    identity: Mapping[str, Any]
    parent: Artifact | None


def start_from(parent: Path | None, config: RunConfig, texts: Sequence[str]) -> Start:
    """The encoder that a stage begins with: of an artifact, or a new one whose tokenizer is trained on `texts`."""
    torch.manual_seed(config.seed)
    if parent is None:
        return Start(new_encoder(config.encoder, texts), {"from": None}, None)
    described = read_encoder_artifact(parent)
    identity = {"from": described.space.space_id}
    return Start(load_encoder(config.encoder, parent, to_train=True), identity, described.artifact)


def taking_over(config: Config, parent: Path | None) -> Config:
    """The configuration with the encoder of the artifact that the stage begins from.

    Raises: InputError: the configuration names another encoder.
    """
    if parent is None:
        return config
    encoder = read_encoder_artifact(parent).config
    if config.encoder not in (EncoderConfig(), encoder):
        own, other = asdict(config.encoder), asdict(encoder)
        names = ", ".join(f"{name} {own[name]}, there {other[name]}" for name in own if own[name] != other[name])
        raise InputError(f"the encoder of {parent} is configured otherwise: {names}; leave it out to take it over")
    return replace(config, encoder=encoder)


def publish(
    folder: Path,
    stage: int,
    start: Start,
    config: RunConfig,
    run: Run,
    *,
    tables: Mapping[str, int],
    trained_until: datetime | None,
    metrics: Mapping[str, float],
) -> Artifact:
    """The artifact of the trained encoder, written by the first process; the run's checkpoints are removed after it.

    Its `trained_until` is the latest event of all the stages that it passed through.
    """
    if is_first():
        parent = start.parent
        times = [time for time in (trained_until, parent.trained_until if parent else None) if time is not None]
        said = Trained(stage, config.encoder, asdict(config), parent.config if parent else None)
        with publish_folder(folder) as staging:
            start.encoder.save(staging)
            write_artifact(
                staging, ENCODER, said, tables=tables, trained_until=max(times, default=None), metrics=metrics
            )
        run.finished()
    wait_for_all()
    return read_artifact(folder, ENCODER)


def versions(lake: Lake, tables: Sequence[str]) -> dict[str, int]:
    """The Delta version of each table."""
    return {name: lake.version(name) for name in tables}


def stage_config(kind: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """The configuration of a stage from plain values, as a TOML file has them.

    Raises: InputError: an unknown key, or a value of another type than its field.
    """
    config = config_from(kind, values, where=where)
    _require_types(kind, values, where)
    return config


def _require_types(kind: Any, values: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless every value has the type of its field. A whole number may stand for a fraction."""
    default, hints = kind(), get_type_hints(kind)
    for name, value in values.items():
        nested = next((hint for hint in (hints[name], *get_args(hints[name])) if is_dataclass(hint)), None)
        if nested is not None and isinstance(value, Mapping):
            _require_types(nested, value, f"{where}: {name}")
            continue
        usual = getattr(default, name)
        fraction = isinstance(usual, float) and isinstance(value, int) and not isinstance(value, bool)
        items = isinstance(usual, tuple) and isinstance(value, list)
        if not (type(usual) is type(value) or fraction or items):
            raise InputError(f"{where}: {name} is {value!r}, expected {type(usual).__name__}, such as {usual!r}")
