"""`moonlake train ctr`: networks and trees, with and without content, and the controls that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment

if TYPE_CHECKING:
    from models.ctr.config import CtrConfig
    from models.ctr.model import CtrModel
    from models.ctr.train import BatchReport
    from moonlake.embeddings.snapshots import Control, Snapshot
    from moonlake.lake.lake import Lake


class Model(StrEnum):
    """What learns; the names of `models.ctr.config.MODELS`."""

    ID = "id"
    DIN = "din"
    CUBE = "cube"
    TREES = "trees"


class ControlKind(StrEnum):
    """What stands in the place of true vectors; the names of `moonlake.embeddings.snapshots.CONTROLS`."""

    SHUFFLED = "shuffled"
    RANDOM = "random"


def train_ctr(
    training_set: Annotated[str, typer.Argument(help="Name of the training set.")],
    name: Annotated[str, typer.Option(help="Name of the model: its folder is artifacts/ctr-NAME.")],
    end: Annotated[str, typer.Option(help="T2: train on rows before this moment, test on later ones.")],
    start: Annotated[str | None, typer.Option(help="T1: first row to train on; default: the set's start.")] = None,
    model: Annotated[
        Model | None,
        typer.Option(help="id; din: with attention over behaviours; cube: with content; trees. Default: din or cube."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Embedding space by name, id or 'live', for cube and trees; none: no content.")
    ] = None,
    control: Annotated[
        ControlKind | None,
        typer.Option(help="In the place of the space's vectors: those of other contents (shuffled), or random ones."),
    ] = None,
    control_seed: Annotated[int, typer.Option(help="Seed of the control.")] = 0,
    ceiling: Annotated[
        str | None, typer.Option(help="Simulated source: read its true latents, which no encoder has, and no space.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training run.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of CtrConfig, VALUE as JSON; trees.KEY for the trees.")
    ] = None,
    allow_seen_rows: Annotated[
        bool, typer.Option("--allow-seen-rows", help="Accept a space trained on the window's events; labels the model.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a checkpoint lies.")] = False,
) -> None:
    """Train a click model on a training set's rows in [start, end). A network that was killed goes on where it was.

    Without --model it is cube where a space is named, din where none is. Trees can do with a space or without. Controls
    and ceilings are labelled: they say what vectors are worth, and serve nobody.
    """
    from models.ctr.train import train_ctr as train
    from models.training.loop import Run
    from moonlake.training_sets.training_set import TrainingSet

    settings = Settings.from_environment()
    rows = TrainingSet.open(settings.training_sets / training_set)
    content = space is not None or ceiling is not None
    chosen = model or (Model.CUBE if content else Model.DIN)
    if not content and chosen is Model.CUBE:
        raise InputError("--model cube reads the vectors of a space: name it with --space")
    if content and chosen in (Model.ID, Model.DIN):
        raise InputError(f"--model {chosen} reads no vectors: leave out --space, or choose cube or trees")
    config = _config(set_ or [], model=chosen, seed=seed)
    snapshot = _vectors(settings, space, ceiling, control, control_seed)
    window = (parse_moment(start) if start else rows.manifest.start, parse_moment(end))
    folder = model_folder(settings, name)
    run = Run(folder=settings.artifacts / "runs" / folder.name, fresh=fresh)
    with training_bar(f"training {name}") as report:
        trained = train(rows, snapshot, config, window=window, allow_seen_rows=allow_seen_rows, report=report, run=run)
    trained = trained.save(folder)
    run.finished()
    typer.echo(f"model {name} ({trained.model_id}) at {folder}")
    echo_labels(trained)
    for figure, value in trained.metrics.items():
        typer.echo(f"  {figure}: {value:g}")


@contextmanager
def training_bar(title: str) -> Iterator[Callable[[BatchReport], None]]:
    """A progress bar on stderr with loss and samples per second, as the report of a training run."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, at="")

        def report(batch: BatchReport) -> None:
            at = f"epoch {batch.epoch}  loss {batch.loss:.4f}  {batch.samples_per_second:,.0f} samples/s"
            progress.update(task, total=batch.total, completed=batch.samples, at=at)

        yield report


def _config(pairs: list[str], *, model: Model, seed: int) -> CtrConfig:
    """CtrConfig from KEY=VALUE words, the value as JSON; trees.KEY is a key of the trees."""
    import json

    from models.ctr.config import READ_BY_TREES, CtrConfig, ctr_config

    values: dict[str, Any] = {}
    trees: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key in ("model", "seed", "trees"):
            keys = ", ".join(one.name for one in fields(CtrConfig) if one.name not in ("model", "seed", "trees"))
            raise InputError(f"--set {pair}: expected KEY=VALUE, with a key of {keys}, or trees.KEY of TreesConfig")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise InputError(f"--set {pair}: {text!r} is not JSON; lists look like [64,32]") from None
        (trees if key.startswith("trees.") else values)[key.removeprefix("trees.")] = value
    config = ctr_config({**values, "trees": trees, "model": model.value, "seed": seed}, where="--set")
    unread = set(values) - READ_BY_TREES if model is Model.TREES else {f"trees.{key}" for key in trees}
    if unread:
        raise InputError(f"--set {', '.join(sorted(unread))}: model {model} does not read it")
    return config


def _vectors(
    settings: Settings, space: str | None, ceiling: str | None, control: ControlKind | None, seed: int
) -> Snapshot | None:
    """What a model is to read: the vectors of a space, a control of them, or a simulation's truth; or nothing."""
    from moonlake.embeddings import releases
    from moonlake.embeddings.snapshots import Control
    from moonlake.lake.lake import Lake
    from workflows.ceilings import ceiling_space, write_ceiling

    if control is not None and space is None:
        raise InputError("--control stands in the place of a space's vectors: name it with --space")
    lake = Lake(settings)
    if ceiling is not None:
        if space is not None:
            raise InputError("--ceiling has vectors of its own: leave out --space")
        return write_ceiling(lake, settings.truth / ceiling, settings.snapshots / ceiling_space(ceiling))
    if space is None:
        return None
    found = releases.find(lake, space).space_id
    return snapshot_of(lake, settings, found, Control(control.value, seed) if control else None)


def snapshot_of(lake: Lake, settings: Settings, space_id: str, control: Control | None) -> Snapshot:
    """A space's vectors as they are now, or what a control puts in their place; a ceiling's as they were written."""
    from moonlake.embeddings.snapshots import MANIFEST, Snapshot, write_snapshot

    folder = settings.snapshots / space_id
    if (folder / MANIFEST).is_file() and (written := Snapshot.open(folder)).is_apart:
        return written.under(control)
    return write_snapshot(lake, space_id, folder).under(control)


def model_folder(settings: Settings, name: str) -> Path:
    """Where a click model lies. Raises InputError for a name that is no plain folder name."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(f"model name {name!r}: expected a plain folder name")
    return settings.artifacts / f"ctr-{name}"


def echo_labels(model: CtrModel) -> None:
    """What is unusual about a model, one line each."""
    for label in model.lineage.labels:
        typer.echo(f"  NOTE: {label}")
