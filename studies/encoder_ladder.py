"""The ladder of encoders on a simulated marketplace: what each part of the recipe adds, at equal optimiser steps.

`python -m studies.encoder_ladder --work FOLDER --steps 1000 --report docs/results/encoder-ladder.md`. A study that was
killed goes on by the same command; when nothing is left to train it writes the report alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.encoder.config import EncoderConfig, TinyConfig
from models.encoder.encoder import Encoder
from models.encoder.factory import new_encoder
from models.evaluation.recall import places_of, vectors_of
from models.inference import Embedder
from models.training import captioning, contrastive
from models.training.captioning import PretrainingConfig
from models.training.contrastive import TrainingConfig
from models.training.kernel_scale import shorten_kernels
from models.training.loop import Run, RunConfig
from moonlake.errors import InputError
from moonlake.files import atomic_write
from moonlake.hashing import stable_hash
from moonlake.settings import Settings
from studies.ladder_data import PAIR_TYPES, LadderData, open_data
from studies.ladder_plan import ENCODER, SETTINGS, Node, Phase, Plan, Rung, node_of, nodes_of, rungs_of
from studies.ladder_report import Climbed, write_report
from studies.ladder_spaces import register_spaces
from studies.study_runner import commit, one_thread, open_worker, say, settings_of


def train_node(plan: Plan, data: LadderData, node: Node, *, measure: bool) -> dict[str, Any]:
    """Train a node from its parent and measure it, and save both; what its JSON file says."""
    torch.manual_seed(node.seed)
    config = replace(plan.encoder, architecture=node.architecture)
    encoder = new_encoder(config, [text for text in data.pairs[1].texts if text])
    if node.parent is not None:
        encoder.load_state_dict(torch.load(plan.path(node.parent, ".pt"), weights_only=True))
        if node.phases[-1].stage == 1:
            shorten_kernels(encoder)
    began = time.monotonic()
    metrics = _fit(encoder, plan, data, node)
    trained = time.monotonic()
    plan.path(node, "").parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(plan.path(node, ".pt")) as file:
        torch.save(encoder.state_dict(), file)
    if measure:
        trials = data.measured.trials
        represent = data.measured.decoded.vectors(Embedder.of(encoder, precision="auto"))
        places = places_of(trials, *vectors_of(trials, represent))
        with atomic_write(plan.path(node, ".npy")) as file:
            np.save(file, places)
        metrics["hit_10"] = float((places <= 10).mean())
    found = {
        "node": asdict(node),
        "metrics": metrics,
        "train_seconds": trained - began,
        "measure_seconds": time.monotonic() - trained,
        "parameters": sum(one.numel() for one in encoder.parameters()),
        "commit": commit(),
        "cores": os.cpu_count(),
    }
    with atomic_write(plan.path(node, ".json")) as file:
        file.write_text(json.dumps(found, indent=2) + "\n")
    Run(folder=plan.path(node, ".run")).finished()
    return found


def _fit(encoder: Encoder, plan: Plan, data: LadderData, node: Node) -> dict[str, float]:
    """Train the last phase of a node; from its last checkpoint, where it was begun before."""
    if not node.phases:
        return {}
    config = plan.config(node, node.phases[-1])
    parent = node.parent
    start = {"parent": plan.path(parent, "").name if parent else f"seed {node.seed}"}
    run = Run(folder=plan.path(node, ".run"))
    if isinstance(config, TrainingConfig):
        metrics = contrastive.fit(encoder, data.pairs[config.stage], config, run=run, start=start)
    else:
        metrics = captioning.fit(encoder, data.described, config, run=run, start=start)
    return metrics


def climb(
    plan: Plan, nodes: Sequence[Node], measured: frozenset[Node], workers: int, report: Callable[[str], None]
) -> None:
    """Compute all nodes that are missing, each in one of some processes that take the next one that can begin."""
    waiting = [node for node in nodes if not _is_done(plan, node, measured)]
    report(f"{len(nodes)} encoders, {len(waiting)} to train")
    if not waiting:
        return
    running: dict[Future[dict[str, Any]], Node] = {}
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's and pyarrow's threads
    with ProcessPoolExecutor(workers, spawn, _open_worker, (plan,)) as pool:
        while waiting or running:
            for node in list(waiting):
                ready = node.parent is None or plan.path(node.parent, ".json").is_file()
                if ready and len(running) < workers:
                    waiting.remove(node)
                    running[pool.submit(_work, node, node in measured)] = node
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                report(_line(running.pop(future), future.result()))


_opened: dict[str, tuple[Plan, LadderData]] = {}
"""What this worker process has open."""


def _open_worker(plan: Plan) -> None:
    open_worker()
    _opened["study"] = plan, open_plan_data(plan)


def _work(node: Node, measure: bool) -> dict[str, Any]:
    return train_node(*_opened["study"], node, measure=measure)


def open_plan_data(plan: Plan) -> LadderData:
    """The data of a plan."""
    return open_data(
        Settings.from_environment(), plan.source, plan.work, plan.stages, plan.pair_types, plan.limit, plan.versions
    )


def _is_done(plan: Plan, node: Node, measured: frozenset[Node]) -> bool:
    return plan.path(node, ".json").is_file() and (node not in measured or plan.path(node, ".npy").is_file())


def climbed(plan: Plan, rungs: Sequence[Rung], steps: int, seeds: Sequence[int]) -> list[Climbed]:
    """The saved results of the rungs, of those seeds of which every rung is there. Raises InputError for none."""
    whole = [seed for seed in seeds if all(plan.path(node_of(rung, steps, seed), ".npy").is_file() for rung in rungs)]
    if not whole:
        raise InputError(f"{plan.work}: no seed of {list(seeds)} has all rungs; run the study first")
    found = []
    for rung in rungs:
        nodes = [node_of(rung, steps, seed) for seed in whole]
        saved = [json.loads(plan.path(node, ".json").read_text()) for node in nodes]
        places = np.stack([np.load(plan.path(node, ".npy")) for node in nodes])
        spent = sum(one["train_seconds"] for node in nodes for one in _chain(plan, node)) / len(nodes)
        stages = tuple((phase.stage, phase.steps) for phase in nodes[0].phases)
        found.append(Climbed(rung.name, stages, whole, places, spent / 60, saved))
    return found


def _chain(plan: Plan, node: Node | None) -> list[dict[str, Any]]:
    found = []
    while node is not None:
        found.append(json.loads(plan.path(node, ".json").read_text()))
        node = node.parent
    return found


def _line(node: Node, found: Mapping[str, Any]) -> str:
    stages = " ".join(f"{phase.stage}:{phase.steps}" for phase in node.phases) or "untrained"
    figures = "  ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
    spent = f"{found['train_seconds']:.0f} + {found['measure_seconds']:.0f} s"
    return f"{node.architecture} seed {node.seed} [{stages}]  {figures}  {spent}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, and write its report."""
    asked = _parser().parse_args(argv)
    one_thread()
    rungs = rungs_of(asked.hard_negatives, asked.queue, asked.images)
    if asked.rungs:
        rungs = tuple(rungs[place] for place in sorted(set(asked.rungs)))
    plan = _plan(asked, rungs)
    data = open_plan_data(plan)  # before the workers, which find it on disk
    fingerprints = [
        data.info.fingerprint,
        data.described.fingerprint,
        *(one.fingerprint for one in data.pairs.values()),
    ]
    plan = replace(plan, data=stable_hash(repr((fingerprints, plan.pair_types, plan.limit))), versions=data.versions)
    for stage, pairs in data.pairs.items():
        say(f"stage {stage}: {len(pairs):,} pairs")
    trials = data.measured.trials
    say(f"{len(data.described):,} descriptions; {len(trials.positives):,} trials, pool of {len(trials.pool):,}")
    if not asked.only_report:
        nodes = nodes_of(rungs, asked.steps, asked.seeds)
        wanted = frozenset(node_of(rung, asked.steps, seed) for rung in rungs for seed in asked.seeds)
        climb(plan, nodes, wanted, asked.workers, say)
    if asked.register is not None:
        named = {_space_name(rung): node_of(rung, asked.steps, asked.register) for rung in rungs}
        for space in register_spaces(Settings.from_environment(), plan, data, named, written_at=datetime.now(UTC)):
            say(f"space {space}")
    if asked.report is not None:
        found = climbed(plan, rungs, asked.steps, asked.seeds)
        settings = {**plan.settings, "stage2_rate": plan.stage2_rate}
        write_report(asked.report, data.info, data.measured, found, asked.steps, settings=settings)


def _space_name(rung: Rung) -> str:
    """The rung's name in small letters and hyphens: "+ stage 0" is ladder-stage-0."""
    return "-".join(["ladder", *rung.name.lower().replace("+", "").split()])


def _plan(asked: argparse.Namespace, rungs: Sequence[Rung]) -> Plan:
    known = {one.name for kind in (RunConfig, TrainingConfig, PretrainingConfig) for one in fields(kind)}
    own = {one.name for one in fields(Phase)} | {"encoder", "seed"}
    short = {"batch_size": asked.batch, "muon_rate": asked.muon_rate, "temperature": asked.temperature}
    said = {name: value for name, value in short.items() if value is not None}
    settings = {**SETTINGS, **said, **settings_of(asked.set, known - own, "--set")}
    tiny = settings_of(asked.tiny, {one.name for one in fields(TinyConfig)}, "--tiny")
    encoder = settings_of(asked.encoder, {one.name for one in fields(EncoderConfig)}, "--encoder")
    config = replace(ENCODER, tiny=replace(ENCODER.tiny, **tiny), **encoder)
    stages = (1, 2) if any(rung.stage2 for rung in rungs) else (1,)
    pair_types, limit = tuple(asked.pair_types), asked.limit
    return Plan(asked.work.absolute(), asked.source, config, settings, stages, pair_types, limit, asked.stage2_rate)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.encoder_ladder", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is kept: data, encoders, places")
    parser.add_argument("--source", default="standard-1", help="simulated source in the lake of MOONLAKE_HOME")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each trained rung, in all stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--batch", type=int, help=f"pairs or products a step; default {SETTINGS['batch_size']}")
    parser.add_argument("--muon-rate", type=float, help=f"default {SETTINGS['muon_rate']}")
    parser.add_argument(
        "--stage2-rate", type=float, default=0.3, help="learning rates of stage 2 over those of stage 1"
    )
    parser.add_argument("--temperature", type=float, help=f"default {SETTINGS['temperature']}")
    parser.add_argument("--pair-types", nargs="+", default=[], choices=PAIR_TYPES, help="trained on; default all")
    parser.add_argument("--hard-negatives", type=int, default=2, help="of a pair, from the rung of that name on")
    parser.add_argument("--queue", type=int, default=1024, help="size of the queue, from the rung of that name on")
    parser.add_argument("--images", type=int, default=3, help="of a product in stage 2, on the last rung")
    parser.add_argument("--rungs", type=int, nargs="+", help="only these, by place from 0 (untrained)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="field of the stages' configuration")
    parser.add_argument("--encoder", nargs="+", default=[], metavar="NAME=VALUE", help="field of EncoderConfig")
    parser.add_argument("--tiny", nargs="+", default=[], metavar="NAME=VALUE", help="field of TinyConfig")
    parser.add_argument("--limit", type=int, default=0, help="pairs, products and trials, to try the study out")
    parser.add_argument("--report", type=Path, help="page to write")
    parser.add_argument(
        "--register", type=int, metavar="SEED", help="register the encoders of a seed as spaces ladder-... of the lake"
    )
    parser.add_argument("--only-report", action="store_true", help="of what is there; seeds with all rungs only")
    return parser


if __name__ == "__main__":
    main()
