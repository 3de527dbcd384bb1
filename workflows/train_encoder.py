"""A stage of an encoder's training, and the embedding space of what came out entered in the lake."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.names import is_name
from moonlake.progress import UNWATCHED, Progress
from moonlake.settings import Settings

if TYPE_CHECKING:
    from models.artifacts import Artifact
    from models.training.captioning import PretrainingConfig
    from models.training.contrastive import TrainingConfig
    from models.training.loop import Run
    from moonlake.embeddings.spaces import Space


ENCODER_FILE = "encoder.json"


@dataclass(frozen=True, slots=True)
class TrainedEncoder:
    """An encoder that a stage left behind.

    Attributes:
        name: what was asked for.
        space: its embedding space; None after stage 0, whose vectors are not compared yet. A space that the same
            weights came to before keeps its first name, and has the asked name beside it.
    """

    name: str
    folder: Path
    artifact: Artifact
    space: Space | None

    @property
    def is_known_space(self) -> bool:
        """Whether the same weights were a space under another name before."""
        return self.space is not None and self.space.name != self.name

    def as_json(self) -> dict[str, Any]:
        """Name, folder, space and figures as plain values."""
        until = self.artifact.trained_until
        return {
            "name": self.name,
            "folder": str(self.folder),
            "trained_until": None if until is None else until.isoformat(),
            "space_id": None if self.space is None else self.space.space_id,
            "space_names": [] if self.space is None else list(self.space.names),
            "metrics": dict(self.artifact.metrics),
        }


def train_encoder(
    settings: Settings,
    name: str,
    config: PretrainingConfig | TrainingConfig,
    *,
    before: datetime,
    parent: Path | None = None,
    run: Run | None = None,
    progress: Progress = UNWATCHED,
    written_at: datetime,
) -> TrainedEncoder | None:
    """The trained encoder; None in a process of several that is not the first.

    Args:
        config: of stage 0, or of stage 1 or 2.
        before: T1; events of this moment and later are not read.
        parent: folder of the artifact to go on from.
        run: where checkpoints are kept; default: in the home, under the name, so that a killed run goes on.
    """
    from models.encoder.config import read_encoder_artifact
    from models.training.captioning import PretrainingConfig
    from models.training.distributed import is_first, joined
    from moonlake.embeddings.spaces import register

    lake, folder = Lake(settings), settings.encoder(name)
    with joined():
        artifact = _train(lake, config, folder, before, parent, run or _kept_run(settings, name), progress, title=name)
        if not is_first():
            return None
        if isinstance(config, PretrainingConfig):
            return TrainedEncoder(name, folder, artifact, None)
        space = register(
            lake,
            read_encoder_artifact(folder).space,
            name=name,
            artifact=str(folder.absolute()),
            trained_until=artifact.trained_until,
            metrics=artifact.metrics,
            written_at=written_at,
        )
        return TrainedEncoder(name, folder, artifact, space)


def _kept_run(settings: Settings, name: str) -> Run:
    from models.training.loop import Run

    return Run(folder=settings.run(name))


def _train(
    lake: Lake,
    config: PretrainingConfig | TrainingConfig,
    folder: Path,
    before: datetime,
    parent: Path | None,
    run: Run,
    progress: Progress,
    *,
    title: str,
) -> Artifact:
    """The artifact of the stage, with its progress shown by the first process."""
    from models.training.captioning import PretrainingConfig, pretrain_encoder
    from models.training.contrastive import train_encoder as train
    from models.training.distributed import is_first

    stage = 0 if isinstance(config, PretrainingConfig) else config.stage
    shown = progress if is_first() else UNWATCHED
    with shown.step(f"stage {stage} of {title}", config.steps) as step:
        watched = run if run.progress is not UNWATCHED else replace(run, progress=step)
        if isinstance(config, PretrainingConfig):
            return pretrain_encoder(lake, config, folder, before=before, parent=parent, run=watched)
        return train(lake, config, folder, before=before, parent=parent, run=watched)


def read_stage_config(
    stage: int, file: Path | None, given: Mapping[str, Any], encoder: Mapping[str, Any]
) -> PretrainingConfig | TrainingConfig:
    """The stage's configuration: its defaults, over them a TOML file, over them what is given and is not None.

    Args: encoder: of the encoder's own configuration, in the table [encoder] of the file.
    Raises: InputError: a file that cannot be read, an unknown key, a value of another type, or another stage.
    """
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


def encoder_folder(settings: Settings, name: str) -> Path:
    """The artifact's folder of a path, of a name under which an encoder was trained, or of a space.

    Raises: NotFound: none of them.
    """
    from moonlake.embeddings.releases import find

    if os.path.isfile(Path(name) / ENCODER_FILE):  # false too for what can be no path
        return Path(name)
    if is_name(name) and (settings.encoder(name) / ENCODER_FILE).is_file():
        return settings.encoder(name)
    return Path(find(Lake(settings), name).artifact)
