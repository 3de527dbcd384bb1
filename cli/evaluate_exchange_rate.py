"""`moonlake evaluate exchange-rate`: what a gain in an intermediate metric of the encoder buys in CTR."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.evaluate_encoder import TRIALS_OF, Task, simulated_sources

if TYPE_CHECKING:
    from models.ctr.model import CtrModel
    from models.evaluation.bootstrap import Estimate
    from models.evaluation.exchange_rate import Candidate, Clicks, Exchange, ExchangeRates, Predictor
    from models.evaluation.purchase_trials import Ints
    from models.evaluation.representations import Floats, Represent
    from moonlake.embeddings.contents import Content
    from moonlake.embeddings.spaces import Space
    from moonlake.training_sets.training_set import TrainingSet

BLANK = "(blank: noise)"


class Target(StrEnum):
    """What is bought."""

    AUC = "auc"
    GAUC = "gauc"


@dataclass(frozen=True, slots=True)
class Subject:
    """A space and its runs of the CTR model, by seed."""

    space: Space
    runs: Mapping[str, CtrModel]


def exchange_rate(
    spaces: Annotated[list[str], typer.Argument(help="Embedding spaces by name or id, oldest first; two or more.")],
    training_set: Annotated[str, typer.Option("--on", help="Training set with the impressions to test on.")],
    start: Annotated[str, typer.Option(help="First moment of the retrieval trials, with a time zone.")],
    end: Annotated[str, typer.Option(help="First moment after them; the pool is what was live then.")],
    task: Annotated[
        list[Task] | None, typer.Option(help="Intermediate metrics; default: all three of behaviour.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="CTR models by name or pattern, such as 'cube-*'; default: all of a space.")
    ] = None,
    target: Annotated[Target, typer.Option(help="What is bought.")] = Target.AUC,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw metrics against AUC there, an SVG file.")] = None,
    allow_seen: Annotated[bool, typer.Option(help="Measure on rows that training may have seen; labelled so.")] = False,
) -> None:
    """How much AUC a gain in an intermediate metric buys, over embedding spaces with the CTR model held fixed.

    The CTR models are those that `evaluate ctr` has recorded for each space: one or more runs that differ in their seed
    alone. They are tested on the rows after their training window.
    """
    from models.evaluation.exchange_rate import exchange_rates, require_held_fixed
    from moonlake.training_sets.training_set import TrainingSet

    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot {plot}: expected a name that ends in .svg, which is what can be drawn")
    settings = Settings.from_environment()
    lake, rows = Lake(settings), TrainingSet.open(settings.training_sets / training_set)
    window = parse_moment(start), parse_moment(end)
    subjects = _subjects(lake, spaces, models or ["*"])
    require_held_fixed({name: _what_it_is(model) for one in subjects for name, model in one.runs.items()})
    seen = [one.space.name for one in subjects if _saw(one.space, window[0], allow_seen)]
    simulated = sorted(simulated_sources(settings, lake, window))
    _echo_notes(subjects, seen, simulated)
    candidates = _candidates(lake, subjects, window, task or list(TRIALS_OF))
    clicks = _clicks(settings, lake, subjects, rows)
    found = exchange_rates([one.space.name for one in subjects], candidates, clicks, target=target.value)
    _echo(found)
    first = next(iter(subjects[0].runs.values()))
    document = _document(found, subjects) | {
        "simulated": simulated,
        "seen": seen,
        "trials": {"start": window[0].isoformat(), "end": window[1].isoformat()},
        "impressions": {
            "training_set": training_set,
            "training_set_id": rows.manifest.training_set_id,
            "start": first.lineage.window[1].isoformat(),
            "rows": len(clicks.clicked),
        },
        "ctr_model": _what_it_is(first),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")
    if plot is not None:
        from workflows.exchange_rate_plot import draw

        plot.write_text(draw(found, simulated=bool(simulated)), encoding="utf-8")


def _subjects(lake: Lake, names: Sequence[str], patterns: Sequence[str]) -> list[Subject]:
    """The spaces with their recorded models.

    Raises:
        InputError: fewer than two, or one named twice.
        NotFound: no such space, or no model of it.
    """
    from moonlake.embeddings.releases import find

    found = [find(lake, name) for name in names]
    if len({space.space_id for space in found}) < max(len(found), 2):
        named = ", ".join(map(str, found))
        raise InputError(f"an exchange rate is between two or more different spaces, found {named}")
    rows = lake.read("model_versions").sort_by("created_at").to_pylist()
    latest = {row["name"]: row for row in rows}  # a model that was trained again stands in for itself
    return [Subject(space, _runs(space, latest, patterns)) for space in found]


def _runs(space: Space, recorded: Mapping[str, Mapping[str, Any]], patterns: Sequence[str]) -> dict[str, CtrModel]:
    """The models of a space by name, in order of their seeds."""
    from models.ctr.model import CtrModel

    chosen = {
        name: row
        for name, row in recorded.items()
        if row["space_id"] == space.space_id and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise NotFound(
            f"no CTR model of space {space} is recorded under a name like {', '.join(patterns)}: "
            "train some with `moonlake train ctr --space`, and record them with `moonlake evaluate ctr`"
        )
    found = {name: CtrModel.open(Path(row["artifact"])) for name, row in chosen.items()}
    by_seed: dict[int, str] = {}
    for name, model in found.items():
        if model.model_id != chosen[name]["model_id"]:
            raise InputError(
                f"CTR model {name} was trained again after it was recorded: run moonlake evaluate ctr {name}"
            )
        if (other := by_seed.setdefault(model.config.seed, name)) != name:
            raise InputError(
                f"CTR models {other} and {name} of space {space} have one seed, {model.config.seed}: they are one run; "
                "leave one out with --models"
            )
    return {by_seed[seed]: found[by_seed[seed]] for seed in sorted(by_seed)}


def _what_it_is(model: CtrModel) -> dict[str, Any]:
    """Everything that decides what a CTR model is, but for its seed and its space."""
    start, end = model.lineage.window
    lineage = {
        "training_set_id": model.lineage.training_set_id,
        "training_window": f"[{start.isoformat()}, {end.isoformat()})",
    }
    config = {name: value for name, value in asdict(model.config).items() if name != "seed"}
    return {"kind": type(model).__name__, **lineage, **config}


def _saw(space: Space, start: datetime, allow_seen: bool) -> bool:
    from models.evaluation.recall import require_unseen

    try:
        return require_unseen(start, space.trained_until, allow_seen=allow_seen)
    except InputError as error:
        raise InputError(f"embedding space {space}: {error}") from None


def _candidates(
    lake: Lake, subjects: Sequence[Subject], window: tuple[datetime, datetime], tasks: Sequence[Task]
) -> list[Candidate]:
    """The intermediate metrics of all spaces, on the same trials."""
    import numpy as np

    from models.evaluation.exchange_rate import retrieval_candidates
    from models.evaluation.purchase_trials import read_trials
    from models.evaluation.recall import places_of, require_trials, vectors_of
    from models.evaluation.representations import lake_vectors

    if wrong := [task for task in tasks if task not in TRIALS_OF]:
        raise InputError(f"--task {', '.join(wrong)}: expected one of {', '.join(TRIALS_OF)}")
    every = [read_trials(lake, *window, name) for task in tasks for name in TRIALS_OF[task]]
    measurable = [trials for trials in every if len(trials.positives)]
    if not measurable:
        require_trials(every[0])
    contents = list({content.content_id: content for trials in measurable for content in trials.contents}.values())
    places: dict[str, list[Ints]] = {trials.task: [] for trials in measurable}
    for one in subjects:
        represent = _held(contents, lake_vectors(lake, one.space.space_id)(contents))
        for trials in measurable:
            places[trials.task].append(places_of(trials, *vectors_of(trials, represent)))
    for trials in measurable:
        typer.echo(f"{trials.task}: {len(trials.positives):,} trials of {len(trials.queries):,} queries")
    return [one for trials in measurable for one in retrieval_candidates(trials, np.stack(places[trials.task]))]


def _held(contents: Sequence[Content], vectors: Floats) -> Represent:
    """Vectors that were read once, for the contents of any task among them."""
    row = {content.content_id: at for at, content in enumerate(contents)}

    def represent(some: Sequence[Content]) -> Floats:
        return vectors[[row[content.content_id] for content in some]]

    return represent


def _clicks(settings: Settings, lake: Lake, subjects: Sequence[Subject], rows: TrainingSet) -> Clicks:
    """The impressions after the models' training, scored by every model."""
    import numpy as np

    from models.ctr.train import score
    from models.evaluation.exchange_rate import Clicks
    from moonlake.embeddings.snapshots import write_snapshot

    scores, scored = [], None
    for one in subjects:
        space_id = one.space.space_id
        snapshot = write_snapshot(lake, space_id, settings.snapshots / space_id)
        of_space = []
        for name, model in one.runs.items():
            typer.echo(f"scoring with {name}", err=True)
            scored = score(model, rows, snapshot, start=model.lineage.window[1])
            of_space.append(scored["score"].to_numpy())
        scores.append(np.stack(of_space))
    if scored is None or not len(scored):
        raise InputError(f"training set {rows.folder} has no row after the training window of the CTR models")
    users = scored["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    clicked = scored["clicked"].to_numpy()
    typer.echo(f"{len(clicked):,} impressions of {len(np.unique(users)):,} users, {int(clicked.sum()):,} clicked")
    return Clicks(clicked, users, scores)


def _document(found: ExchangeRates, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The figures with what they were measured of."""
    document = found.as_json()
    for one, subject in zip(document["spaces"], subjects, strict=True):
        one["space_id"] = subject.space.space_id
        one["models"] = [
            {"name": name, "model_id": model.model_id, "seed": model.config.seed, "labels": list(model.lineage.labels)}
            for name, model in subject.runs.items()
        ]
    return document


def _echo_notes(subjects: Sequence[Subject], seen: Sequence[str], simulated: Sequence[str]) -> None:
    if simulated:
        typer.echo(f"NOTE: behaviour is simulated ({', '.join(simulated)})")
    if seen:
        typer.echo(f"NOTE: measured on rows that training may have seen ({', '.join(seen)})")
    for one in subjects:
        for name, model in one.runs.items():
            for label in model.lineage.labels:
                typer.echo(f"NOTE: {name}: {label}")


def _echo(found: ExchangeRates) -> None:
    """Spaces, pairs and predictors as lines, and what may be said of them."""
    name = found.target.upper()
    for space in found.spaces:
        typer.echo(f"{space.name}: {name} {_figure(space.target)}, {space.runs} run{'s' if space.runs > 1 else ''}")
        for metric, figure in space.metrics.items():
            typer.echo(f"  {metric:<24} {_figure(figure)}")
    for metric in dict.fromkeys(pair.metric for pair in found.pairs):
        typer.echo(f"{metric}: what it moved, what {name} gained, and {name} for each +0.01")
        for pair in found.pairs:
            if pair.metric == metric:
                typer.echo(_pair(pair))
    if found.predictors:
        typer.echo(f"over {len(found.spaces)} spaces, best predictor first: {name} for each +0.01")
    for predictor in found.predictors:
        typer.echo(_predictor(predictor))
    for line in found.verdict:
        typer.echo(line)


def _pair(pair: Exchange) -> str:
    rate = BLANK if pair.rate is None else _figure(pair.rate, "+", 5)
    names = f"{pair.before} -> {pair.after}"
    return f"  {names:<28} {_figure(pair.moved, '+')}  {_figure(pair.gained, '+')}  {rate}"


def _predictor(one: Predictor) -> str:
    line = f"({one.blank})" if one.slope is None else _figure(one.slope, "+", 5)
    return (
        f"  {one.metric:<24} {line}  r {one.pearson:+.3f}  Spearman {_figure(one.spearman, '+', 2)}  "
        f"Kendall {_figure(one.kendall, '+', 2)}  best in {one.best_in:.0%}"
    )


def _figure(one: Estimate, sign: str = "", digits: int = 4) -> str:
    """A figure and its 95% interval."""
    value, low, high = (f"{number:{sign}.{digits}f}" for number in one)
    return f"{value} [{low}, {high}]"
