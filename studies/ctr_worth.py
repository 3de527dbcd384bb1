"""The worth of content to a click model: networks and trees with and without it, controls, its streams one by one.

`python -m studies.ctr_worth --work FOLDER --training-set clicks --space trained --report docs/results/ctr-worth.md`. A
study that was killed goes on by the same command; when nothing is left to train it writes the report alone. Models may
have more seeds than others: two are compared by those that both have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from models.ctr.config import STREAMS, CtrConfig, ModelName
from models.ctr.train import evaluate, score, train_ctr
from models.ctr.trees import TreesConfig
from models.evaluation.click_segments import read_facts, segments_of
from models.training.loop import Run
from moonlake.embeddings import releases
from moonlake.embeddings.snapshots import MANIFEST, Snapshot, write_snapshot
from moonlake.errors import InputError
from moonlake.files import atomic_write
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from moonlake.training_sets.training_set import TrainingSet
from sources.own_files.staging import SourceInfo, stage_path
from studies.ctr_worth_figures import (
    CUBE,
    DIN,
    IDS,
    LATENTS,
    RANDOM,
    SHUFFLED,
    TREES,
    TREES_CONTENT,
    Measured,
    Scored,
    without,
)  # fmt: skip
from studies.ctr_worth_report import Setup, write_report
from studies.study_runner import commit, one_thread, open_worker, say, settings_of
from workflows.ceilings import write_ceiling

Vectors = Literal["none", "space", "shuffled", "random", "latents"]
VECTORS: tuple[Vectors, ...] = get_args(Vectors)
TEST_COLUMNS = ["impression_id", "user_id", "product_id", "event_timestamp", "clicked"]


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the models that are compared: what it is, what vectors it reads, and which streams it does without."""

    name: str
    model: ModelName
    vectors: Vectors = "none"
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a fit is a function of besides its subject and seed.

    Attributes:
        rows: folder of the training set.
        window: T1, T2 and the end: trained on [T1, T2), tested on [T2, end).
        settings, trees: fields of CtrConfig and of its TreesConfig.
        snapshots: folder of what each kind of vectors is read from.
        data: hash of the training set, and of the space for each kind of vectors.
    """

    work: Path
    rows: Path
    window: tuple[datetime, datetime, datetime]
    settings: Mapping[str, Any]
    trees: Mapping[str, Any]
    snapshots: Mapping[Vectors, Path]
    data: Mapping[Vectors, str]

    def config(self, subject: Subject, seed: int) -> CtrConfig:
        """The configuration of one fit."""
        trees = TreesConfig(**{"threads": 1, **self.trees})
        own: dict[str, Any] = {"model": subject.model, "left_out": subject.left_out, "seed": seed, "trees": trees}
        return CtrConfig(**{**self.settings, **own})

    def snapshot(self, subject: Subject, seed: int) -> Snapshot | None:
        """The snapshot that a subject reads; controls are drawn anew for each seed."""
        if subject.vectors == "none":
            return None
        found = Snapshot.open(self.snapshots[subject.vectors])
        if subject.vectors == "shuffled":
            return found.shuffled(seed)
        return found.random(seed) if subject.vectors == "random" else found

    def path(self, subject: Subject, seed: int, suffix: str) -> Path:
        """A path of a fit's files."""
        what = (asdict(self.config(subject, seed)), subject.vectors, self.data[subject.vectors], self.window)
        return self.work / "fits" / (stable_hash(repr(what))[:20] + suffix)

    def is_done(self, subject: Subject, seed: int) -> bool:
        """Whether the scores of a fit are there."""
        return all(self.path(subject, seed, suffix).is_file() for suffix in (".json", ".npy"))


def subjects_of(*, truth: bool, patterns: Sequence[str] = ("*",)) -> tuple[Subject, ...]:
    """The subjects to compare, of the names that are asked for; the true latents only where there are some.

    Raises: InputError: no name is like a pattern.
    """
    every = (
        Subject(IDS, "id"),
        Subject(DIN, "din"),
        Subject(CUBE, "cube", "space"),
        Subject(SHUFFLED, "cube", "shuffled"),
        Subject(RANDOM, "cube", "random"),
        *((Subject(LATENTS, "cube", "latents"),) if truth else ()),
        Subject(TREES, "trees"),
        Subject(TREES_CONTENT, "trees", "space"),
        *(Subject(without(stream), "cube", "space", (stream,)) for stream in STREAMS),
    )
    for pattern in patterns:
        if not any(fnmatchcase(one.name, pattern) for one in every):
            raise InputError(f"no model is named like {pattern!r}; there are {', '.join(one.name for one in every)}")
    return tuple(one for one in every if any(fnmatchcase(one.name, pattern) for pattern in patterns))


def fit(plan: Plan, subject: Subject, seed: int) -> dict[str, Any]:
    """Train one model and score the test rows, and save the scores; what its JSON file says."""
    rows, snapshot = TrainingSet.open(plan.rows), plan.snapshot(subject, seed)
    t1, t2, end = plan.window
    run, began = Run(folder=plan.path(subject, seed, ".run")), time.process_time()  # what others run says nothing here
    model = train_ctr(rows, snapshot, plan.config(subject, seed), window=(t1, t2), run=run)
    trained = time.process_time()
    scored = score(model, rows, snapshot, start=t2, end=end)
    found = {
        "name": subject.name,
        "seed": seed,
        "labels": model.lineage.labels,
        "training": dict(model.metrics),
        "test": evaluate(scored).as_json(),
        "train_seconds": trained - began,
        "score_seconds": time.process_time() - trained,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "commit": commit(),
        "cores": os.cpu_count(),
    }
    plan.path(subject, seed, "").parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(plan.path(subject, seed, ".npy")) as file:
        np.save(file, scored["score"].to_numpy())
    with atomic_write(plan.path(subject, seed, ".json")) as file:
        file.write_text(json.dumps(found, indent=2) + "\n")
    run.finished()
    return found


def fit_all(
    plan: Plan, subjects: Sequence[Subject], seeds: Sequence[int], workers: int, report: Callable[[str], None]
) -> None:
    """Fit all that is missing, seed by seed, each fit in a process of its own."""
    every = [(subject, seed) for seed in seeds for subject in subjects]
    waiting = [one for one in every if not plan.is_done(*one)]
    report(f"{len(every)} models, {len(waiting)} to train")
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's and pyarrow's threads
    with ProcessPoolExecutor(workers, spawn, open_worker, max_tasks_per_child=1) as pool:  # memory is given back
        futures = [pool.submit(fit, plan, *one) for one in waiting]
        for at, future in enumerate(as_completed(futures), start=1):
            report(f"{at} of {len(waiting)}: {_line(future.result())}")


def measured(
    plan: Plan, subjects: Sequence[Subject], seeds: Sequence[int], lake: Lake, report: Callable[[str], None]
) -> Measured:
    """The saved scores of each subject, of those seeds that it has, beside the clicks. Raises InputError for none."""
    runs = {one: [seed for seed in seeds if plan.is_done(one, seed)] for one in subjects}
    done = {one: found for one, found in runs.items() if found}
    if not done:
        raise InputError(f"{plan.work}: no model of any seed of {list(seeds)} is there; run the study first")
    t1, t2, end = plan.window
    rows = TrainingSet.open(plan.rows).read(TEST_COLUMNS, t2, end)
    report(f"{len(done)} models, {sum(map(len, done.values()))} runs; {len(rows):,} test rows")
    return Measured(
        clicked=rows["clicked"].to_numpy().astype(np.float64),
        users=_numbers(rows["user_id"]),
        segments=segments_of(read_facts(lake, rows, (t1, t2))),
        scored=[
            Scored(
                subject.name,
                np.stack([np.load(plan.path(subject, seed, ".npy")) for seed in found]),
                [json.loads(plan.path(subject, seed, ".json").read_text()) for seed in found],
            )
            for subject, found in done.items()
        ],
        streams=[stream for subject in subjects for stream in subject.left_out],
    )


def _numbers(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return found


def _line(found: Mapping[str, Any]) -> str:
    test = found["test"]
    figures = "  ".join(f"{name} {test[name]:.4f}" for name in ("auc", "gauc", "log_loss"))
    spent = f"{found['train_seconds']:.0f} + {found['score_seconds']:.0f} s, {found['peak_mb'] / 1024:.1f} GB"
    return f"{found['name']}, seed {found['seed']}  {figures}  {spent}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, and write its report."""
    asked = _parser().parse_args(argv)
    one_thread()
    settings = Settings.from_environment()
    lake = Lake(settings)
    info = SourceInfo.read(stage_path(settings, asked.source))
    truth = settings.truth_of(asked.source)
    plan = _plan(asked, settings, lake, info, truth)
    subjects = subjects_of(truth=truth.is_dir(), patterns=asked.models)
    if not asked.only_report:
        fit_all(plan, subjects, asked.seeds, asked.workers, say)
    if asked.report is not None:
        space = releases.find(lake, asked.space)
        setup = Setup(info, f"{space.name} ({space.space_id[:8]})", plan.window, plan.config(Subject(CUBE, "cube"), 0))
        found = measured(plan, subjects, asked.seeds, lake, say)
        write_report(asked.report, plan.work / "figures.json", setup, found, say)


def _plan(asked: argparse.Namespace, settings: Settings, lake: Lake, info: SourceInfo, truth: Path) -> Plan:
    """The plan that the options ask for, with its vectors written once into the work folder for all fits."""
    rows, work = TrainingSet.open(settings.training_set(asked.training_set)), asked.work.absolute()
    moments = [parse_moment(one) if one else None for one in (asked.t1, asked.t2, asked.end)]
    t1, t2, end = (said or known for said, known in zip(moments, (info.t1, info.t2, rows.manifest.end), strict=True))
    if t1 is None or t2 is None or end is None:
        raise InputError(f"source {info.name} states no t1 and t2: give --t1 and --t2")
    known = {one.name for one in fields(CtrConfig)} - {"model", "left_out", "seed", "trees"}
    said = settings_of(asked.set, known, "--set")
    trees = settings_of(asked.trees, {one.name for one in fields(TreesConfig)}, "--trees")
    space_id = releases.find(lake, asked.space).space_id
    of_space, of_truth = work / "vectors" / space_id, work / "vectors" / f"truth-{info.name}"
    if not (of_space / MANIFEST).is_file():
        write_snapshot(lake, space_id, of_space)
    if truth.is_dir() and not (of_truth / MANIFEST).is_file():
        write_ceiling(lake, truth, of_truth)
    set_id = rows.manifest.training_set_id
    snapshots: dict[Vectors, Path] = {"space": of_space, "shuffled": of_space, "random": of_space, "latents": of_truth}
    data: dict[Vectors, str] = dict.fromkeys(snapshots, f"{set_id} {space_id}")
    data |= {"none": set_id, "latents": f"{set_id} {info.fingerprint}"}
    return Plan(work, rows.folder.absolute(), (t1, t2, end), said, trees, snapshots, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.ctr_worth", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is kept: vectors, scores")
    parser.add_argument("--source", default="standard-1", help="source in the lake of MOONLAKE_HOME")
    parser.add_argument("--training-set", required=True, help="name of the one with the rows of [T1, end)")
    parser.add_argument("--space", required=True, help="embedding space by name or id, trained on events before T1")
    parser.add_argument("--t1", help="first moment of the training rows; default: that of the source")
    parser.add_argument("--t2", help="first moment of the test rows; default: that of the source")
    parser.add_argument("--end", help="first moment after the test rows; default: that of the training set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", default=["*"], metavar="NAME", help="only these, patterns too, as cube*")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="field of CtrConfig")
    parser.add_argument("--trees", nargs="+", default=[], metavar="NAME=VALUE", help="field of TreesConfig")
    parser.add_argument("--report", type=Path, help="page to write")
    parser.add_argument("--only-report", action="store_true", help="of what is there")
    return parser


if __name__ == "__main__":
    main()
