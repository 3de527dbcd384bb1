"""One training run of an encoder, whatever it learns: steps, learning rate, checkpoints, resumption, several processes.

All randomness is a function of the seed and the step, so a run that was killed and goes on from its last checkpoint
ends, on a CPU and with as many threads, with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models.encoder.config import EncoderConfig
from models.encoder.precision import Precision
from models.training.checkpoints import Checkpoints, Identity, Resumed
from models.training.distributed import average_gradients, is_first, processes, start_alike, wait_for_all
from models.training.memory_probe import Probe, require_room
from models.training.muon import Muon
from models.training.progress import EventFiles, Watch
from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Step

Prepared = TypeVar("Prepared")

MAX_GRADIENT_NORM = 1.0
STEPS_AHEAD = 2
"""Batches that are prepared while the step before them is computed."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Configuration that every stage of an encoder's training shares.

    Attributes:
        steps: optimiser steps; 0 leaves the encoder as it is: the baseline.
        batch_size: pairs or products of one step, over all processes.
        chunk: prompts that are computed at once; 0 is all. A smaller one needs less memory, and more time.
        optimizer: "muon" orthogonalises the updates of matrices and kernels, with which new weights learn in far fewer
            steps; what else there is, and all with "adamw", goes by AdamW.
        learning_rate: of AdamW.
        muon_rate: of Muon.
        tower_rate: learning rate of the vision tower over that of the head.
        language_rate: the same of the projector and the language model. New ones begin as the identity, and what they
            add disturbs a tower that is still learning; adapters and pretrained weights want 1.
        frozen_tower: share of the tower's parameter tensors, from its input on, that stay as they are: the early
            layers of a pretrained tower cost most of a step and change least. A tower with random weights needs 0.
        batch_norm: statistics that normalise: of the "batch" (of each chunk and process by itself), or the "frozen"
            ones that the tower came with, with which chunks and processes change nothing.
        warmup: share of the steps over which the rate rises; it then falls to zero along a cosine.
        item_images: most images of a product in one step; evaluation reads up to `encoder.max_images`.
        precision: "auto" is bfloat16 where the CPU has the instructions for it (or on a GPU), else float32. Weights
            are float32 in any case.
        threads: CPU threads of torch; 0 leaves them as they are. Small towers in bfloat16 are as fast with 1.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    seed: int = 0
    steps: int = 200
    batch_size: int = 192
    chunk: int = 0
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 3e-3
    muon_rate: float = 0.05
    tower_rate: float = 1.0
    language_rate: float = 0.1
    frozen_tower: float = 0.0
    batch_norm: Literal["batch", "frozen"] = "batch"
    weight_decay: float = 0.05
    warmup: float = 0.1
    item_images: int = 1
    augment: bool = True
    precision: Precision = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 2 or self.item_images < 1 or not 0 <= self.frozen_tower <= 1:
            raise ValueError("steps is at least 0, batch_size 2, item_images 1, frozen_tower from 0 to 1")
        if self.chunk < 0 or self.threads < 0 or self.seed < 0 or not 0 <= self.warmup <= 1:
            raise ValueError("chunk, threads and seed are at least 0, warmup from 0 to 1")
        if self.precision not in ("auto", "float32", "bfloat16") or self.batch_norm not in ("batch", "frozen"):
            raise ValueError("precision is auto, float32 or bfloat16; batch_norm is batch or frozen")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer is muon or adamw, not {self.optimizer}")


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run and its watcher: neither changes what comes out.

    Attributes:
        folder: of checkpoints and TensorBoard event files; None keeps nothing.
        identity: what else than configuration and data the run is a function of.
        fresh: throw checkpoints away rather than go on from them.
        checkpoint_steps: write a checkpoint every so many steps; 0 goes by time alone.
        checkpoint_seconds: write one when so much time has passed.
        progress: takes note of every step, with a StepReport.
    """

    folder: Path | None = None
    identity: Identity = field(default_factory=dict)
    fresh: bool = False
    checkpoint_steps: int = 0
    checkpoint_seconds: float = 120.0
    progress: Step = UNWATCHED

    def finished(self) -> None:
        """Remove the checkpoints: what they were kept for is safe elsewhere."""
        if self.folder is not None and is_first():
            self._checkpoints({}).clear()

    def checkpoints(self, identity: Identity) -> Checkpoints | None:
        """The run's checkpoints; none where nothing is kept."""
        if self.folder is None:
            return None
        found = self._checkpoints({**identity, **self.identity})
        if self.fresh:
            if is_first():
                found.clear()
            wait_for_all()
        return found

    def _checkpoints(self, identity: Identity) -> Checkpoints:
        if self.folder is None:
            raise ValueError("a run without a folder keeps no checkpoints")
        return Checkpoints(self.folder / "checkpoints", identity)


class Objective(Protocol, Generic[Prepared]):
    """The objective of a training stage.

    Attributes:
        model: everything that a checkpoint holds: encoder, loss, queue.
        backbone: the part of it that learns at `language_rate`, but for the tower.
        tower: the part of the backbone that learns at `tower_rate`.
    """

    model: nn.Module
    backbone: nn.Module
    tower: nn.Module

    def prepare(self, step: int) -> Prepared:
        """The batch of a step, from 1: a function of seed and step. Called in another thread, ahead of its step."""

    def probe(self) -> Probe:
        """A few prompts as a step would compute them, to measure the memory of all."""

    def backward(self, prepared: Prepared) -> Tensor:
        """The loss of a batch; its gradients are added to the parameters."""

    def after(self, step: int, prepared: Prepared) -> Mapping[str, float]:
        """Figures to watch, after the optimiser's step."""


def run_steps(objective: Objective[Any], config: RunConfig, run: Run, identity: Identity) -> dict[str, float]:
    """Train to the last step, from the last checkpoint if there is one; loss of the last tenth and the speed.

    Raises: InputError: the run does not fit into memory, its loss is no number any more, or a checkpoint is of another.
    """
    optimizers = Optimizers(objective, config)
    start_alike(objective.model)
    with undisturbed(objective.model):
        require_room(objective.model, objective.probe(), optimizers.bytes)
    checkpoints = run.checkpoints(identity)
    resumed = checkpoints.resume(objective.model, optimizers) if checkpoints else Resumed(0, [], 0.0)
    losses = list(resumed.losses)
    watch = Watch(resumed, config, run.progress, _event_files(run, resumed.step))
    saved = time.monotonic()
    with _threads(config.threads), torch.random.fork_rng(), watch:
        steps = range(resumed.step + 1, config.steps + 1)
        for step, prepared in zip(steps, ahead(objective.prepare, steps), strict=True):
            share = _rate_share(config, step)
            optimizers.set_rate(share)
            torch.manual_seed(step_seed(config.seed, step))
            optimizers.zero_grad()
            loss = objective.backward(prepared)
            average_gradients(objective.model)
            norm = nn.utils.clip_grad_norm_(objective.model.parameters(), MAX_GRADIENT_NORM)
            optimizers.step()
            figures = objective.after(step, prepared)
            losses.append(float(loss))
            if not math.isfinite(losses[-1]):
                raise InputError(f"training diverged: loss {losses[-1]} at step {step}; lower the learning rate")
            watch.step(step, losses[-1], share * config.learning_rate, {"gradient_norm": float(norm), **figures})
            if checkpoints and is_first() and _is_due(run, step, config.steps, time.monotonic() - saved):
                checkpoints.save(Resumed(step, losses, watch.seconds), objective.model, optimizers)
                saved = time.monotonic()
    tail = losses[-max(1, len(losses) // 10) :]
    return {"loss": float(np.mean(tail)), "samples_per_second": len(losses) * config.batch_size / watch.seconds}


def ahead(prepare: Callable[[int], Prepared], steps: range) -> Iterator[Prepared]:
    """The batch that `prepare` makes for each step, in order, made in a thread while earlier ones are used."""
    with ThreadPoolExecutor(1, "prepare") as thread:
        coming = iter(steps)
        waiting = deque(thread.submit(prepare, step) for step in islice(coming, STEPS_AHEAD))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(thread.submit(prepare, step) for step in islice(coming, 1))
        finally:
            thread.shutdown(cancel_futures=True)


def step_seed(seed: int, step: int) -> int:
    """A seed for torch: another one for every seed and step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """The samples that a step reads: pass after pass over all of them, each in a new order; whole batches only."""

    def __init__(self, samples: int, size: int, seed: int) -> None:
        self.samples, self.size, self.seed = samples, min(size, samples), seed
        self._pass = -1
        self._order = np.zeros(0, np.int64)

    def of(self, step: int) -> np.ndarray:
        """int64 [size]: the samples of a step, from 1; a function of seed and step."""
        per_pass = self.samples // self.size
        number, at = divmod(step - 1, per_pass)
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self.seed, number]).permutation(self.samples)
        return self._order[at * self.size : (at + 1) * self.size]


def even_chunks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    """The samples in parts of at most `size` (0: all), about equally large: a last one of 1 has no batch statistics."""
    return np.array_split(samples, max(1, -(-len(samples) // (size or max(1, len(samples))))))


def make_trainable(encoder: nn.Module, tower: nn.Module, config: RunConfig) -> None:
    """Set training mode, hold what is to stay, and normalise by the statistics that the configuration names."""
    encoder.train()
    freeze(tower, config.frozen_tower)
    if config.batch_norm == "frozen":
        for module in encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def freeze(tower: nn.Module, share: float) -> None:
    """Hold a share of the tower's parameter tensors, from its input on, and the statistics of their normalisation."""
    parameters = list(tower.parameters())
    for parameter in parameters[: round(share * len(parameters))]:
        parameter.requires_grad_(False)
    for module in tower.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(one.requires_grad for one in own):
            module.eval()


def training_device() -> torch.device:
    """The GPU if there is one: with several processes, each its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes().rank % torch.cuda.device_count())


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A block that leaves the model's buffers and the random state as they were: a look aside changes no result."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


class Optimizers:
    """AdamW, and Muon for the matrices and kernels where it is asked for; stepped, saved and loaded as one.

    What is a vector or a scalar (norms, biases, the temperature) does not decay. A table of token vectors is no matrix
    that multiplies anything: it stays with AdamW, at its full rate.
    """

    def __init__(self, objective: Objective[Any], config: RunConfig) -> None:
        tables = {id(one.weight) for one in objective.model.modules() if isinstance(one, nn.Embedding)}
        rates = {id(one): config.language_rate for one in objective.backbone.parameters() if id(one) not in tables}
        rates |= {id(one): config.tower_rate for one in objective.tower.parameters()}
        groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
        for parameter in objective.model.parameters():
            if parameter.requires_grad:
                matrix = config.optimizer == "muon" and parameter.ndim > 1 and id(parameter) not in tables
                group = matrix, rates.get(id(parameter), 1.0), parameter.ndim > 1
                groups.setdefault(group, []).append(parameter)
        settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (matrix, share, decays), parameters in groups.items():
            scale = share * (config.muon_rate if matrix else config.learning_rate)
            decay = config.weight_decay if decays else 0.0
            settings[matrix].append({"params": parameters, "scale": scale, "weight_decay": decay})
        self.all: list[torch.optim.Optimizer] = []
        if settings[False]:
            self.all.append(torch.optim.AdamW(settings[False], lr=config.learning_rate, fused=True))
        if settings[True]:
            self.all.append(Muon(settings[True], lr=config.muon_rate))

    @property
    def bytes(self) -> int:
        """Bytes of gradients and optimiser state: per weight its gradient, and AdamW's two moments or Muon's one."""
        copies = [2 if isinstance(optimizer, Muon) else 3 for optimizer in self.all]
        return sum(
            of_each * parameter.nbytes
            for of_each, optimizer in zip(copies, self.all, strict=True)
            for group in optimizer.param_groups
            for parameter in group["params"]
        )

    def set_rate(self, share: float) -> None:
        """Let every group learn at a share of its own rate."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = share * group["scale"]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update of all parameters."""
        for optimizer in self.all:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything that `load_state_dict` needs."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state_dict` gave."""
        for optimizer, own in zip(self.all, state, strict=True):
            optimizer.load_state_dict(own)


def _rate_share(config: RunConfig, step: int) -> float:
    """Share of the learning rates at a step, from 1."""
    warmup = max(1, round(config.steps * config.warmup))
    done = step - 1
    falling = 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, config.steps - warmup)))
    return step / warmup if done < warmup else falling


def _is_due(run: Run, step: int, steps: int, seconds: float) -> bool:
    every = run.checkpoint_steps > 0 and step % run.checkpoint_steps == 0
    return step == steps or every or seconds >= run.checkpoint_seconds


def _event_files(run: Run, step: int) -> EventFiles | None:
    return EventFiles(run.folder, step) if run.folder is not None and is_first() else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
