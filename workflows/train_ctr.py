"""Click models: networks and trees, with and without content, and the controls that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED, Progress
from moonlake.settings import Settings

if TYPE_CHECKING:
    from models.ctr.config import CtrConfig
    from models.ctr.model import CtrModel
    from moonlake.embeddings.snapshots import Control, Snapshot


class Model(StrEnum):
    """The kinds of click models; the names of `models.ctr.config.MODELS`."""

    ID = "id"
    DIN = "din"
    CUBE = "cube"
    TREES = "trees"


class ControlKind(StrEnum):
    """Vectors in the place of true ones; the names of `moonlake.embeddings.snapshots.CONTROLS`."""

    SHUFFLED = "shuffled"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class TrainedCtr:
    """A click model that was trained, and the folder where it lies."""

    name: str
    folder: Path
    model: CtrModel

    def as_json(self) -> dict[str, Any]:
        """Name, folder, ids, labels and figures as plain values."""
        lineage = self.model.lineage
        return {
            "name": self.name,
            "folder": str(self.folder),
            "model_id": self.model.model_id,
            "model": self.model.config.model,
            "space_id": lineage.space_id,
            "training_window": [edge.isoformat() for edge in lineage.window],
            "labels": list(lineage.labels),
            "metrics": dict(self.model.metrics),
        }


def train_ctr(
    settings: Settings,
    training_set: str,
    name: str,
    config: CtrConfig,
    vectors: Snapshot | None = None,
    *,
    start: datetime | None = None,
    end: datetime,
    allow_seen_rows: bool = False,
    fresh: bool = False,
    progress: Progress = UNWATCHED,
) -> TrainedCtr:
    """A click model trained on a training set's rows in [start, end). A network that was killed goes on where it was.

    Args:
        vectors: that the model reads, of `vectors_of`; None for a model without content.
        start: default: the start of the training set.
        allow_seen_rows: accept a space trained on the window's events; it labels the model.
        fresh: start anew where a checkpoint lies.

    Raises: InputError: the model cannot do without vectors, or reads none.
    """
    from models.ctr.train import train_ctr as train
    from models.training.loop import Run
    from moonlake.training_sets.training_set import TrainingSet

    chosen_model(Model(config.model), content=vectors is not None)
    folder = settings.ctr_model(name)
    rows = TrainingSet.open(settings.training_set(training_set))
    window = (start or rows.manifest.start, end)
    run = Run(folder=settings.run(folder.name), fresh=fresh)
    with progress.step(f"Training {name}") as step:
        trained = train(rows, vectors, config, window=window, allow_seen_rows=allow_seen_rows, progress=step, run=run)
    trained = trained.save(folder)
    run.finished()
    return TrainedCtr(name, folder, trained)


def chosen_model(model: Model | None, *, content: bool) -> Model:
    """The kind of model: of None cube with content and din without. Raise InputError unless it reads what there is."""
    chosen = model or (Model.CUBE if content else Model.DIN)
    if not content and chosen is Model.CUBE:
        raise InputError("--model cube reads the vectors of a space: name it with --space")
    if content and chosen in (Model.ID, Model.DIN):
        raise InputError(f"--model {chosen} reads no vectors: leave out --space, or choose cube or trees")
    return chosen


def config_of(model: Model, values: Mapping[str, Any], *, seed: int = 0) -> CtrConfig:
    """The configuration of a model: its defaults, over them the values by key; trees.KEY is a key of the trees.

    Raises: InputError: an unknown key, a value that does not fit, or a key that the model does not read.
    """
    from models.ctr.config import READ_BY_TREES, ctr_config

    trees = {key.removeprefix("trees."): value for key, value in values.items() if key.startswith("trees.")}
    own = {key: value for key, value in values.items() if not key.startswith("trees.")}
    config = ctr_config({**own, "trees": trees, "model": model.value, "seed": seed}, where="--set")
    unread = set(own) - READ_BY_TREES if model is Model.TREES else {f"trees.{key}" for key in trees}
    if unread:
        raise InputError(f"--set {', '.join(sorted(unread))}: model {model} does not read it")
    return config


def vectors_of(
    settings: Settings,
    space: str | None = None,
    *,
    control: ControlKind | None = None,
    control_seed: int = 0,
    ceiling: str | None = None,
) -> Snapshot | None:
    """The vectors for a model to read: of a space, of a control of it, or of a simulation's truth; None of nothing.

    Args:
        space: by name, id or "live".
        ceiling: a simulated source, of which no encoder has the true latents.
    """
    from moonlake.embeddings import releases
    from moonlake.embeddings.snapshots import Control
    from workflows.ceilings import ceiling_space, write_ceiling

    if control is not None and space is None:
        raise InputError("--control stands in the place of a space's vectors: name it with --space")
    lake = Lake(settings)
    if ceiling is not None:
        if space is not None:
            raise InputError("--ceiling has vectors of its own: leave out --space")
        return write_ceiling(lake, settings.truth_of(ceiling), settings.snapshot(ceiling_space(ceiling)))
    if space is None:
        return None
    found = releases.find(lake, space).space_id
    return snapshot_of(lake, settings, found, Control(control.value, control_seed) if control else None)


def snapshot_of(lake: Lake, settings: Settings, space_id: str, control: Control | None) -> Snapshot:
    """A space's vectors as they are now, or what a control puts in their place; a ceiling's as they were written."""
    from moonlake.embeddings.snapshots import MANIFEST, Snapshot, write_snapshot

    folder = settings.snapshot(space_id)
    if (folder / MANIFEST).is_file() and (written := Snapshot.open(folder)).is_apart:
        return written.under(control)
    return write_snapshot(lake, space_id, folder).under(control)
