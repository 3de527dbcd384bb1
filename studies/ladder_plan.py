"""The plan of the encoder ladder: rungs, their phases, and the trainings that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from models.encoder.config import Architecture, EncoderConfig, TinyConfig
from models.training.captioning import PretrainingConfig
from models.training.contrastive import TrainingConfig
from models.training.kernel_scale import NEW_STD
from moonlake.hashing import stable_hash

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
        """A path of a node's files."""
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
    """The node to compute for a rung and a seed."""
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
