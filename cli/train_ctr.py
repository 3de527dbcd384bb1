"""`moonlake train ctr`: networks and trees, with and without content, and the controls that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, Output, give
from cli.progress import progress_on
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from moonlake.words import json_by_name
from workflows.train_ctr import ControlKind, Model, TrainedCtr, chosen_model, config_of, vectors_of
from workflows.train_ctr import train_ctr as train

if TYPE_CHECKING:
    from models.ctr.model import CtrModel


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
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Train a click model on a training set's rows in [start, end). A network that was killed goes on where it was.

    Without --model it is cube where a space is named, din where none is. Trees can do with a space or without. Controls
    and ceilings are labelled: they say what vectors are worth, and serve nobody.
    """
    settings = Settings.from_environment()
    chosen = chosen_model(model, content=space is not None or ceiling is not None)
    config = config_of(chosen, _values(set_ or []), seed=seed)
    moments = {"start": parse_moment(start) if start else None, "end": parse_moment(end)}
    vectors = vectors_of(settings, space, control=control, control_seed=control_seed, ceiling=ceiling)
    how: dict[str, Any] = {"allow_seen_rows": allow_seen_rows, "fresh": fresh, **moments}
    trained = train(settings, training_set, name, config, vectors, progress=progress_on(), **how)
    give(trained.as_json(), _lines(trained), as_json=as_json, output=output)


def _lines(trained: TrainedCtr) -> Iterator[str]:
    yield f"model {trained.name} ({trained.model.model_id}) at {trained.folder}"
    yield from label_lines(trained.model)
    for figure, value in trained.model.metrics.items():
        yield f"  {figure}: {value:g}"


def _values(words: Sequence[str]) -> dict[str, Any]:
    """Values of CtrConfig, and of its trees as trees.KEY, from words of --set."""
    from models.ctr.config import CtrConfig
    from models.ctr.trees import TreesConfig

    own = {one.name for one in fields(CtrConfig)} - {"model", "seed", "trees"}
    names = own | {f"trees.{one.name}" for one in fields(TreesConfig)}
    return json_by_name(words, "--set", names=names, plain_words=False)


def label_lines(model: CtrModel) -> Iterator[str]:
    """A line for each thing that is unusual about a model."""
    for label in model.lineage.labels:
        yield f"  NOTE: {label}"
