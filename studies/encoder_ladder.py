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
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import pretraining, train_encoder
from models.encoder import Encoder, new_encoder
from models.encoder_config import Architecture, EncoderConfig, TinyConfig
from models.evaluate_encoder import places_of, vectors_of
from models.inference import Embedder
from models.kernel_scale import NEW_STD, shorten_kernels
from models.pretraining import PretrainingConfig
from models.train_encoder import TrainingConfig
from models.training_run import Run, RunConfig
from moonlake.contents import stable_hash
from moonlake.errors import InputError
from moonlake.settings import Settings
from studies.ladder_data import PAIR_TYPES, LadderData, open_data
from studies.ladder_report import Climbed, write_report
from studies.ladder_spaces import register_spaces
from studies.long_runs import atomically, commit, npy, one_thread, open_worker, say, settings_of

SPLIT: Mapping[tuple[bool, bool], tuple[float, float, float]] = {
    (False, False): (0.0, 1.0, 0.0),
    (True, False): (0.1, 0.9, 0.0),
    (True, True): (0.1, 0.65, 0.25),
}
"""Shares of the optimiser steps in stages 0, 1 and 2, by whether a rung has stage 0 and stage 2."""

SETTINGS: Mapping[str, Any] = {
    "batch_size": 256,
    "muon_rate": 0.05,
    "temperature": 0.05,
    "tower_rate": 1.0,
    "frozen_tower": 0.0,
    "weight_decay": 0.05,
    "augment": False,
    "threads": 1,
}
"""What every stage of every rung is told, but for what `--set` says."""
ENCODER = EncoderConfig(tiny=TinyConfig(tower="moonlake_small", tower_weights="random"))


@dataclass(frozen=True, slots=True)
class Rung:
    """An encoder of the ladder. Hard negatives, queue and several images belong to its stage 2."""

    name: str
    architecture: Architecture = "generative"
    trained: bool = True
    stage0: bool = False
    stage2: bool = False
    hard_negatives: int = 0
    queue: int = 0
    item_images: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps of one stage."""

    stage: int
    steps: int
    hard_negatives: int = 0
    queue: int = 0
    item_images: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """An encoder after some phases, one seed. Rungs that begin with the same phases share the node, computed once."""

    architecture: Architecture
    phases: tuple[Phase, ...]
    seed: int

    @property
    def parent(self) -> Node | None:
        """The node before the last phase; None where the encoder is new."""
        return replace(self, phases=self.phases[:-1]) if len(self.phases) > 1 else None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a node is a function of besides itself and the data."""

    work: Path
    source: str
    encoder: EncoderConfig
    settings: Mapping[str, Any]
    stages: tuple[int, ...]
    pair_types: tuple[str, ...] = ()
    limit: int = 0
    stage2_rate: float = 1.0
    data: str = ""
    versions: Mapping[str, int] | None = None

    def config(self, node: Node, phase: Phase) -> PretrainingConfig | TrainingConfig:
        """The configuration of one phase."""
        kind = TrainingConfig if phase.stage else PretrainingConfig
        known = {one.name for one in fields(kind)}
        values = {name: value for name, value in self.settings.items() if name in known}
        own: dict[str, Any] = {"encoder": replace(self.encoder, architecture=node.architecture), "seed": node.seed}
        own["steps"] = phase.steps
        if phase.stage:
            own |= {name: getattr(phase, name) for name in ("stage", "hard_negatives", "queue", "item_images")}
        found = kind(**(values | own))
        if phase.stage == 2:
            rates = {name: self.stage2_rate * getattr(found, name) for name in ("learning_rate", "muon_rate")}
            found = replace(found, **rates)
        return found

    def path(self, node: Node, suffix: str) -> Path:
        """Where something of a node lies."""
        configs = [asdict(self.config(node, phase)) for phase in node.phases]
        encoder = asdict(replace(self.encoder, architecture=node.architecture))
        what = (encoder, configs, node.seed, self.data, *([NEW_STD] if node.parent else []))
        return self.work / "nodes" / (stable_hash(repr(what))[:20] + suffix)


def rungs_of(hard_negatives: int, queue: int, item_images: int) -> tuple[Rung, ...]:
    """The ladder, from the bottom; raw pixels stand below it."""
    return (
        Rung("untrained", trained=False),
        Rung("dual flow", "dual_flow"),
        Rung("MLLM stage 1"),
        Rung("+ stage 0", stage0=True),
        Rung("+ stage 2 clean purchases", stage0=True, stage2=True),
        Rung("+ hard negatives", stage0=True, stage2=True, hard_negatives=hard_negatives),
        Rung("+ queue", stage0=True, stage2=True, hard_negatives=hard_negatives, queue=queue),
        Rung(
            "+ several images",
            stage0=True,
            stage2=True,
            hard_negatives=hard_negatives,
            queue=queue,
            item_images=item_images,
        ),
    )


def phases_of(rung: Rung, steps: int) -> tuple[Phase, ...]:
    """The phases of a rung: `steps` optimiser steps in all, or none."""
    if not rung.trained:
        return ()
    shares = SPLIT[rung.stage0, rung.stage2]
    first, last = int(shares[0] * steps), int(shares[2] * steps)
    every = (
        Phase(0, first),
        Phase(1, steps - first - last),
        Phase(2, last, rung.hard_negatives, rung.queue, rung.item_images),
    )
    return tuple(phase for phase in every if phase.steps)


def node_of(rung: Rung, steps: int, seed: int) -> Node:
    """What has to be computed for a rung and a seed."""
    return Node(rung.architecture, phases_of(rung, steps), seed)


def nodes_of(rungs: Sequence[Rung], steps: int, seeds: Sequence[int]) -> list[Node]:
    """Every node of a study once, seed by seed, a node after its parent."""
    found: dict[Node, None] = {}
    for seed in seeds:
        for rung in rungs:
            chain = [node_of(rung, steps, seed)]
            while (parent := chain[-1].parent) is not None:
                chain.append(parent)
            found |= dict.fromkeys(reversed(chain))
    return list(found)


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
    atomically(plan.path(node, ".pt"), lambda path: torch.save(encoder.state_dict(), path))
    if measure:
        trials = data.measured.trials
        represent = data.measured.decoded.vectors(Embedder.of(encoder, precision="auto"))
        places = places_of(trials, *vectors_of(trials, represent))
        atomically(plan.path(node, ".npy"), lambda path: path.write_bytes(npy(places)))
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
    atomically(plan.path(node, ".json"), lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
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
        metrics = train_encoder.fit(encoder, data.pairs[config.stage], config, run=run, start=start)
    else:
        metrics = pretraining.fit(encoder, data.described, config, run=run, start=start)
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
