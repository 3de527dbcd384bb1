"""`moonlake train ctr` and `moonlake evaluate ctr`: networks and trees, with and without content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import InputError
from moonlake.moments import parse_moment
from moonlake.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from models.ctr import CtrModel
    from models.ctr_config import CtrConfig
    from models.metrics import ClickMetrics
    from models.train_ctr import BatchReport
    from moonlake.lake import Lake
    from moonlake.snapshots import Control, Snapshot


class Model(StrEnum):
    """What learns; the names of `models.ctr_config.MODELS`."""

    ID = "id"
    DIN = "din"
    CUBE = "cube"
    TREES = "trees"


class ControlKind(StrEnum):
    """What stands in the place of true vectors; the names of `moonlake.snapshots.CONTROLS`."""

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
) -> None:
    """Train a click model on a training set's rows in [start, end).

    Without --model it is cube where a space is named, din where none is. Trees can do with a space or without. Controls
    and ceilings are labelled: they say what vectors are worth, and serve nobody.
    """
    from models.train_ctr import train_ctr as train
    from moonlake.training_sets import TrainingSet

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
    with training_bar(f"training {name}") as report:
        trained = train(rows, snapshot, config, window=window, allow_seen_rows=allow_seen_rows, report=report)
    trained = trained.save(_folder(settings, name))
    typer.echo(f"model {name} ({trained.model_id}) at {_folder(settings, name)}")
    _echo_labels(trained)
    for figure, value in trained.metrics.items():
        typer.echo(f"  {figure}: {value:g}")


def evaluate_ctr(
    names: Annotated[list[str], typer.Argument(help="Names of trained models.")],
    training_set: Annotated[str, typer.Option("--on", help="Name of the training set with the test rows.")],
    start: Annotated[str | None, typer.Option(help="First test row; default: the end of the models' training.")] = None,
    end: Annotated[str | None, typer.Option(help="Moment behind the test rows; default: the set's end.")] = None,
    against: Annotated[str | None, typer.Option(help="Model that the others are compared with.")] = None,
    minimum_gain: Annotated[
        float | None, typer.Option(help="Fail where the low end of the AUC gain's 95% interval is not above this.")
    ] = None,
) -> None:
    """Measure click models on the same later rows, and how much each gains over another."""
    from models.ctr import CtrModel
    from models.train_ctr import evaluate, gain, record_model, score
    from moonlake.lake import Lake
    from moonlake.training_sets import TrainingSet

    if minimum_gain is not None and against is None:
        raise InputError("--minimum-gain compares with a model: name it with --against")
    settings = Settings.from_environment()
    lake, rows = Lake(settings), TrainingSet.open(settings.training_sets / training_set)
    folders = {one: _folder(settings, one) for one in dict.fromkeys([*([against] if against else []), *names])}
    models = {one: CtrModel.open(folder) for one, folder in folders.items()}
    first = parse_moment(start) if start else max(model.lineage.window[1] for model in models.values())
    last = parse_moment(end) if end else None
    scored: dict[str, pa.Table] = {}
    for one, model in models.items():
        of = model.lineage.true_space_id
        snapshot = _snapshot(lake, settings, of, model.lineage.control) if of else None
        scored[one] = score(model, rows, snapshot, start=first, end=last)
        found = evaluate(scored[one])
        record_model(lake, model, found, name=one, artifact=folders[one], written_at=datetime.now(UTC))
        _echo_metrics(one, found)
        _echo_labels(model)
    too_small = []
    for one in [] if against is None else [one for one in models if one != against]:
        found_gain = gain(scored[one], scored[str(against)])
        interval = f"[{found_gain.low:+.4f}, {found_gain.high:+.4f}]"
        typer.echo(f"{one} over {against}: AUC {found_gain.difference:+.4f} {interval} (95% over users)")
        if minimum_gain is not None and not found_gain.low > minimum_gain:
            too_small.append(f"{one} {interval}")
    if too_small:
        typer.echo(
            f"gate: AUC gain over {against} must lie above {minimum_gain:+.4f}: {', '.join(too_small)}", err=True
        )
        raise typer.Exit(1)


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

    from models.ctr_config import READ_BY_TREES, CtrConfig, ctr_config

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
    from moonlake import spaces
    from moonlake.lake import Lake
    from moonlake.snapshots import Control
    from studies.true_latents import ceiling_space, write_ceiling

    if control is not None and space is None:
        raise InputError("--control stands in the place of a space's vectors: name it with --space")
    lake = Lake(settings)
    if ceiling is not None:
        if space is not None:
            raise InputError("--ceiling has vectors of its own: leave out --space")
        return write_ceiling(lake, settings.truth / ceiling, settings.snapshots / ceiling_space(ceiling))
    if space is None:
        return None
    found = spaces.find(lake, space).space_id
    return _snapshot(lake, settings, found, Control(control.value, seed) if control else None)


def _snapshot(lake: Lake, settings: Settings, space_id: str, control: Control | None) -> Snapshot:
    """A space's vectors as they are now, or what a control puts in their place; a ceiling's as they were written."""
    from moonlake.snapshots import MANIFEST, Snapshot, write_snapshot

    folder = settings.snapshots / space_id
    if (folder / MANIFEST).is_file() and (written := Snapshot.open(folder)).is_apart:
        return written.under(control)
    return write_snapshot(lake, space_id, folder).under(control)


def _folder(settings: Settings, name: str) -> Path:
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(f"model name {name!r}: expected a plain folder name")
    return settings.artifacts / f"ctr-{name}"


def _echo_metrics(name: str, found: ClickMetrics) -> None:
    users = f"{found.gauc_users:,} users, {found.gauc_users_left_out:,} of one class left out"
    typer.echo(f"{name}: AUC {found.auc:.4f}  GAUC {found.gauc:.4f} ({users})  log loss {found.log_loss:.4f}")
    typer.echo(f"  calibration {found.calibration:.3f}  impressions {found.impressions:,}  clicks {found.clicks:,}")


def _echo_labels(model: CtrModel) -> None:
    for label in model.lineage.labels:
        typer.echo(f"  NOTE: {label}")
