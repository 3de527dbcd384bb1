"""Train the encoder on what users chose after their queries, and leave an artifact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.artifacts import Artifact, publishing, write_artifact
from models.augmentation import augment
from models.encoder import Encoder, new_encoder, to_float
from models.encoder_config import ENCODER, EncoderConfig
from models.losses import InfoNCE, in_batch_negatives
from models.pairs import Pairs, read_pairs
from moonlake.errors import InputError
from moonlake.lake import Lake

TABLES_READ = ("contrastive_pairs", "products", "queries", "product_images")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run of an encoder.

    Attributes:
        steps: 0 leaves the encoder untrained: the baseline.
        tower_rate: learning rate of the vision tower over that of the rest.
        frozen_tower: share of the tower's parameter tensors, from its input on, that stay as they are: the early
            layers of a pretrained tower cost most of a step and change least. A tower with random weights needs 0.
        warmup: share of the steps over which the rate rises; it then falls to zero along a cosine.
        item_images: most images of a product in one step; evaluation reads up to `encoder.max_images`.
        text_dropout: share of products that are shown without their text, so that pictures are not left to it.
        precision: "auto" is bfloat16 where the CPU has the instructions for it (or on a GPU), else float32.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    seed: int = 0
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 3e-3
    tower_rate: float = 0.3
    frozen_tower: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.1
    temperature: float = 0.07
    learn_temperature: bool = True
    item_images: int = 1
    text_dropout: float = 0.0
    augment: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 2 or self.item_images < 1 or not 0 <= self.frozen_tower <= 1:
            raise ValueError("steps is at least 0, batch_size 2, item_images 1, frozen_tower from 0 to 1")


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a training run stands after a step."""

    step: int
    loss: float
    learning_rate: float
    samples_per_second: float


def train_encoder(
    lake: Lake,
    config: TrainingConfig,
    artifact_folder: Path,
    *,
    before: datetime,
    show_progress: bool = False,
) -> Artifact:
    """The artifact of an encoder trained on the pairs of the lake with an event time before `before`.

    The same seed, data and machine give the same weights.

    Raises: InputError: there is no pair to train on, or a configuration that cannot be built.
    """
    pairs = read_pairs(lake, before, config.encoder.image_size)
    if config.steps and len(pairs) < 2:
        raise InputError(f"contrastive_pairs holds {len(pairs)} readable pairs before {before}: build pairs first")
    torch.manual_seed(config.seed)
    encoder = new_encoder(config.encoder, [text for text in pairs.texts if text])
    with _progress(config.steps, shown=show_progress) as report:
        metrics = fit(encoder, pairs, config, report)
    with publishing(artifact_folder) as folder:
        encoder.save(folder)
        return write_artifact(
            folder,
            ENCODER,
            config,
            tables={name: lake.version(name) for name in TABLES_READ},
            trained_until=pairs.trained_until,
            metrics={"pairs": len(pairs), **metrics},
        )


def fit(
    encoder: Encoder, pairs: Pairs, config: TrainingConfig, report: Callable[[StepReport], None] | None = None
) -> dict[str, float]:
    """Train an encoder in place; the loss of the last tenth of the steps and the speed."""
    if not config.steps:
        return {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss_of = InfoNCE(config.temperature, learn_temperature=config.learn_temperature).to(device)
    encoder.to(device).train()
    freeze(encoder.backbone.tower(), config.frozen_tower)
    optimizer, schedule = _optimizer(encoder, loss_of, config)
    rng, generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    dtype = training_dtype(config.precision, device)
    batches = pairs.batches(config.batch_size, rng)
    losses: list[float] = []
    started = time.monotonic()
    seen = 0
    for step in range(1, config.steps + 1):
        chosen = next(batches)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            queries, items = _forward(encoder, pairs, chosen, config, rng, generator)
        negatives = in_batch_negatives(*_groups(pairs, chosen, device))
        loss = loss_of(queries, items, negatives)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        seen += len(chosen)
        if report:
            report(StepReport(step, losses[-1], float(schedule.get_last_lr()[0]), seen / (time.monotonic() - started)))
    encoder.eval()
    if not math.isfinite(losses[-1]):
        raise InputError(f"training diverged: loss {losses[-1]} at step {config.steps}; lower the learning rate")
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "loss": float(np.mean(tail)),
        "temperature": float(torch.exp(-loss_of.log_scale.detach())),
        "samples_per_second": seen / (time.monotonic() - started),
    }


def freeze(tower: nn.Module, share: float) -> None:
    """Hold a share of the tower's parameter tensors, from its input on, and the statistics of their normalisation."""
    parameters = list(tower.parameters())
    for at, parameter in enumerate(parameters):
        parameter.requires_grad_(at >= round(share * len(parameters)))
    for module in tower.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(one.requires_grad for one in own):
            module.eval()


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 if it was asked for, or on "auto" where the hardware has instructions for it; emulated it is slow."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else "avx512_bf16" in _cpu_flags()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _forward(
    encoder: Encoder,
    pairs: Pairs,
    chosen: np.ndarray,
    config: TrainingConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Unit vectors of the queries and of the products, float32 [B, D] each, in one pass through the encoder."""
    queries = pairs.queries(chosen, config.encoder.max_images)
    items = pairs.items(chosen, config.item_images, config.text_dropout, rng)
    batch = encoder.batch(queries.texts + items.texts, queries.images + items.images)
    images = to_float(batch.images)
    if config.augment:
        images = augment(images, generator)
    vectors = encoder(batch, images)
    return vectors[: len(chosen)], vectors[len(chosen) :]


def _groups(pairs: Pairs, chosen: np.ndarray, device: torch.device) -> list[Tensor]:
    columns = (pairs.anchors, pairs.positives, pairs.products, pairs.spus)
    return [torch.from_numpy(column[chosen]).to(device) for column in columns]


def _optimizer(
    encoder: Encoder, loss_of: InfoNCE, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    tower = list(encoder.backbone.tower().parameters())
    ids = {id(one) for one in tower}
    rest: list[Tensor] = [one for one in (*encoder.parameters(), *loss_of.parameters()) if id(one) not in ids]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": tower, "lr": config.learning_rate * config.tower_rate}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    warmup = max(1, round(config.steps * config.warmup))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


class _progress:  # noqa: N801 a context manager that reads as a function
    """A progress bar with loss, rate, samples per second and time left; silent unless shown."""

    def __init__(self, steps: int, *, shown: bool) -> None:
        self.bar = Progress(
            TextColumn("training the encoder"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[state]}"),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self.task = self.bar.add_task("encoder", total=steps, state="")

    def __enter__(self) -> Callable[[StepReport], None]:
        self.bar.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _report(self, at: StepReport) -> None:
        state = f"loss {at.loss:.3f}  lr {at.learning_rate:.1e}  {at.samples_per_second:.0f} pairs/s"
        self.bar.update(self.task, completed=at.step, state=state)


def _cpu_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()  # not Linux: float32, which is right everywhere
    lines = [line for line in path.read_text().splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split()) if lines else frozenset()
