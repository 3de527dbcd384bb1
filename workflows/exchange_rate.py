"""The exchange rate: what a gain in an intermediate metric of the encoder buys in AUC, over spaces of one lake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from moonlake.arrays import Float32s, Int64s
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED, Progress, Step
from moonlake.settings import Settings
from workflows.evaluate_encoder import TRIALS_OF, Task, measurable_trials, simulated_sources
from workflows.recorded_models import Subject, identity, read_subjects

if TYPE_CHECKING:
    from models.evaluation.exchange_rate import Candidate, Clicks, ExchangeRates
    from models.evaluation.purchase_trials import Task as TrialTask
    from models.evaluation.purchase_trials import Trials
    from models.evaluation.representations import Represent
    from moonlake.embeddings.contents import Content
    from moonlake.embeddings.spaces import Space
    from moonlake.training_sets.training_set import TrainingSet


class Target(StrEnum):
    """The metric of CTR that is bought."""

    AUC = "auc"
    GAUC = "gauc"


@dataclass(frozen=True, slots=True)
class TrialCount:
    """Size of one set of retrieval trials."""

    trials: int
    queries: int


@dataclass(frozen=True, slots=True)
class ExchangeReport:
    """Exchange rates with what they were measured on.

    Attributes:
        simulated: sources of the behaviour that are simulations.
        seen: spaces of which the training may have seen the trials.
        window: of the retrieval trials.
        trials: by set of trials, those that have any.
        tested_from: first moment of the impressions, the end of the models' training.
        impressions, users, clicked: size of the test.
    """

    rates: ExchangeRates
    subjects: Sequence[Subject]
    simulated: list[str]
    seen: list[str]
    window: tuple[datetime, datetime]
    trials: Mapping[TrialTask, TrialCount]
    training_set: str
    training_set_id: str
    tested_from: datetime
    impressions: int
    users: int
    clicked: int

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values, with the spaces and models that they are of."""
        found = self.rates.as_json()
        for one, subject in zip(found["spaces"], self.subjects, strict=True):
            one["space_id"] = subject.space.space_id
            one["models"] = [
                {"name": name, "model_id": run.model_id, "seed": run.config.seed, "labels": list(run.lineage.labels)}
                for name, run in subject.runs.items()
            ]
        return found | {
            "simulated": self.simulated,
            "seen": self.seen,
            "trials": {"start": self.window[0].isoformat(), "end": self.window[1].isoformat()},
            "impressions": {
                "training_set": self.training_set,
                "training_set_id": self.training_set_id,
                "start": self.tested_from.isoformat(),
                "rows": self.impressions,
            },
            "ctr_model": identity(next(iter(self.subjects[0].runs.values()))),
        }


def measure_exchange_rate(
    settings: Settings,
    spaces: Sequence[str],
    training_set: str,
    window: tuple[datetime, datetime],
    *,
    tasks: Sequence[Task] = (),
    models: Sequence[str] = ("*",),
    target: Target = Target.AUC,
    allow_seen: bool = False,
    progress: Progress = UNWATCHED,
) -> ExchangeReport:
    """The exchange rate of intermediate metrics, over spaces with the CTR model held fixed.

    Args:
        spaces: by name or id, oldest first; two or more.
        training_set: with the impressions to test on, which are those after the models' training.
        window: of the retrieval trials; the pool is what was live at its end.
        tasks: intermediate metrics; none: all of behaviour.
        models: recorded CTR models by name or pattern; of a space one or more that differ in their seed alone.

    Raises:
        InputError: spaces or models that cannot be compared, or nothing to measure on.
        NotFound: no such space, or no recorded model of one.
    """
    import numpy as np

    from models.evaluation.exchange_rate import exchange_rates, require_held_fixed
    from moonlake.training_sets.training_set import TrainingSet

    lake, rows = Lake(settings), TrainingSet.open(settings.training_set(training_set))
    subjects = read_subjects(lake, spaces, models)
    require_held_fixed({name: identity(model) for one in subjects for name, model in one.runs.items()})
    seen = [one.space.name for one in subjects if _saw(one.space, window[0], allow_seen)]
    trials = _trials(lake, window, tasks or list(TRIALS_OF))
    candidates = _candidates(lake, subjects, trials)
    with progress.step("Scoring impressions", sum(len(one.runs) for one in subjects)) as step:
        clicks = _clicks(settings, lake, subjects, rows, step)
    return ExchangeReport(
        exchange_rates([one.space.name for one in subjects], candidates, clicks, target=target.value),
        subjects,
        sorted(simulated_sources(settings, lake, window)),
        seen,
        window,
        {one.task: TrialCount(len(one.positives), len(one.queries)) for one in trials},
        training_set,
        rows.manifest.training_set_id,
        next(iter(subjects[0].runs.values())).lineage.window[1],
        impressions=len(clicks.clicked),
        users=len(np.unique(clicks.users)),
        clicked=int(clicks.clicked.sum()),
    )


def _saw(space: Space, start: datetime, allow_seen: bool) -> bool:
    from models.evaluation.recall import require_unseen

    try:
        return require_unseen(start, space.trained_until, allow_seen=allow_seen)
    except InputError as error:
        raise InputError(f"embedding space {space}: {error}") from None


def _trials(lake: Lake, window: tuple[datetime, datetime], tasks: Sequence[Task]) -> list[Trials]:
    """The trials of all tasks, but for those sets that have none. Raises InputError where there are none at all."""
    if wrong := [task for task in tasks if task not in TRIALS_OF]:
        raise InputError(f"--task {', '.join(wrong)}: expected one of {', '.join(TRIALS_OF)}")
    return measurable_trials(lake, window, tasks)


def _candidates(lake: Lake, subjects: Sequence[Subject], every: Sequence[Trials]) -> list[Candidate]:
    """The intermediate metrics of all spaces, on the same trials."""
    import numpy as np

    from models.evaluation.exchange_rate import retrieval_candidates
    from models.evaluation.recall import places_of, vectors_of
    from models.evaluation.representations import lake_vectors

    contents = list({content.content_id: content for trials in every for content in trials.contents}.values())
    places: dict[str, list[Int64s]] = {trials.task: [] for trials in every}
    for one in subjects:
        represent = _held(contents, lake_vectors(lake, one.space.space_id)(contents))
        for trials in every:
            places[trials.task].append(places_of(trials, *vectors_of(trials, represent)))
    return [one for trials in every for one in retrieval_candidates(trials, np.stack(places[trials.task]))]


def _held(contents: Sequence[Content], vectors: Float32s) -> Represent:
    """Vectors that were read once, for the contents of any task among them."""
    row = {content.content_id: at for at, content in enumerate(contents)}

    def represent(some: Sequence[Content]) -> Float32s:
        return vectors[[row[content.content_id] for content in some]]

    return represent


def _clicks(settings: Settings, lake: Lake, subjects: Sequence[Subject], rows: TrainingSet, step: Step) -> Clicks:
    """The impressions after the models' training, scored by every model."""
    import numpy as np

    from models.ctr.train import score
    from models.evaluation.exchange_rate import Clicks
    from moonlake.embeddings.snapshots import write_snapshot

    scores, scored, done = [], None, 0
    for one in subjects:
        space_id = one.space.space_id
        snapshot = write_snapshot(lake, space_id, settings.snapshot(space_id))
        of_space = []
        for name, model in one.runs.items():
            scored = score(model, rows, snapshot, start=model.lineage.window[1])
            of_space.append(scored["score"].to_numpy())
            done += 1
            step.update(done, note=name)
        scores.append(np.stack(of_space))
    if scored is None or not len(scored):
        raise InputError(f"training set {rows.folder} has no row after the training window of the CTR models")
    users = scored["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    clicked = scored["clicked"].to_numpy()
    return Clicks(clicked, users, scores)
