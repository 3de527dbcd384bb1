"""Stages 1 and 2: train the encoder on what users chose after their queries, and leave an artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.artifacts import Artifact
from models.encoder.encoder import Encoder
from models.encoder.precision import computing_dtype
from models.training.cached_gradients import cached_step
from models.training.catalogue_pairs import read_catalogue_pairs
from models.training.distributed import processes
from models.training.kernel_scale import shorten_kernels
from models.training.loop import Batches, Run, RunConfig, make_trainable, run_steps, training_device, undisturbed
from models.training.losses import CircleLoss, ContrastiveLoss, InfoNCE, Matryoshka
from models.training.memory_probe import Probe
from models.training.negatives import NegativeQueue, gathered, repel_mask
from models.training.pair_views import PromptMaker, Prompts, Views, views_of
from models.training.pairs import Pairs, read_pairs
from models.training.stages import publish, start_from, taking_over, versions
from moonlake.arrays import Int64s
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED, Step

TABLES_READ = ("contrastive_pairs", "products", "queries", "product_images")
GROUPS = 4
"""Columns that tell twins: query content, product content, product, SPU."""
STALENESS_STEPS = 50
"""Steps between two looks at how far the queue has fallen behind the encoder."""
STALENESS_VIEWS = 32
PROBED = 4
"""Prompts from which the memory of a step is derived."""


@dataclass(frozen=True, slots=True)
class TrainingConfig(RunConfig):
    """Contrastive training of an encoder.

    Attributes:
        stage: of the pairs that are read, 1 or 2.
        pairs: from users' "behavior", or from the "catalogue" alone (`models.training.catalogue_pairs`), where nobody
            has behaved yet.
        loss: InfoNCE, or the circle loss of `margin` and `gamma`.
        temperature: of InfoNCE, at first where it is learnt.
        prefixes: leading dimensions that are trained as vectors of their own (Matryoshka); without any, and always
            beside them, the whole vector. Those that are not smaller than the vector are left out.
        hard_negatives: of each pair in a step, at most.
        queue: products of earlier steps that repel this one's queries; 0 is none.
        text_dropout: share of products that are shown without their text, so that pictures are not left to it.
    """

    stage: Literal[1, 2] = 1
    pairs: Literal["behavior", "catalogue"] = "behavior"
    loss: Literal["info_nce", "circle"] = "info_nce"
    temperature: float = 0.05
    learn_temperature: bool = True
    margin: float = 0.25
    gamma: float = 32.0
    prefixes: tuple[int, ...] = (64,)
    hard_negatives: int = 0
    queue: int = 0
    text_dropout: float = 0.5

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        object.__setattr__(self, "prefixes", tuple(self.prefixes))  # JSON and TOML know lists only
        if self.stage not in (1, 2) or self.loss not in ("info_nce", "circle"):
            raise ValueError(f"stage {self.stage} and loss {self.loss}: expected 1 or 2, and info_nce or circle")
        if self.pairs not in ("behavior", "catalogue"):
            raise ValueError(f"pairs are of behavior or catalogue, not {self.pairs}")
        if min(self.hard_negatives, self.queue, *self.prefixes) < 0 or not 0 <= self.text_dropout <= 1:
            raise ValueError("hard_negatives, queue and prefixes are at least 0, text_dropout from 0 to 1")


def train_encoder(
    lake: Lake,
    config: TrainingConfig,
    artifact_folder: Path,
    *,
    before: datetime,
    parent: Path | None = None,
    run: Run | None = None,
) -> Artifact:
    """The artifact of an encoder trained on the pairs of its stage with an event time before `before`.

    The same seed, data and machine give the same weights, also of a run that was killed and goes on.

    Args: parent: artifact of the stage before, of which the encoder is taken over; None begins with a new one.
    Raises: InputError: there is no pair to train on, or a configuration that cannot be built or does not fit.
    """
    run = run or Run()
    config = taking_over(config, parent)
    if config.pairs == "catalogue":
        pairs = read_catalogue_pairs(lake, before, config.encoder.image_size)
        missing = f"the catalogue gives {len(pairs)} readable pairs before {before}: ingest products with titles first"
    else:
        pairs = read_pairs(lake, before, config.encoder.image_size, config.stage)
        what = f"contrastive_pairs holds {len(pairs)} readable pairs of stage {config.stage} before {before}"
        missing = f"{what}: build pairs first"
    if config.steps and len(pairs) < 2:
        raise InputError(missing)
    start = start_from(parent, config, [text for text in pairs.texts if text])
    if parent and config.steps and config.stage == 1:  # stage 2 refines: at full length kernels turn less
        shorten_kernels(start.encoder)
    metrics = fit(start.encoder, pairs, config, run=run, start=start.identity)
    return publish(
        artifact_folder,
        config.stage,
        start,
        config,
        run,
        tables=versions(lake, TABLES_READ),
        trained_until=pairs.trained_until,
        metrics={"pairs": len(pairs), **metrics},
    )


def fit(
    encoder: Encoder,
    pairs: Pairs,
    config: TrainingConfig,
    progress: Step = UNWATCHED,
    *,
    run: Run | None = None,
    start: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Train an encoder in place; the loss of the last tenth of the steps and the speed.

    Args:
        progress: takes note of every step, if `run` is not given.
        start: what decides of the encoder's present weights, for the checkpoints of `run`.
    """
    if not config.steps:
        return {}
    objective = ContrastiveObjective(encoder, pairs, config)
    identity = {"config": asdict(config), "data": pairs.fingerprint, **(start or {})}
    metrics = run_steps(objective, config, run or Run(progress=progress), identity)
    encoder.eval()
    return metrics | objective.temperature()


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One step's prompts of this process, and how their vectors, gathered, make pairs.

    Attributes:
        chunks: prompts that are computed at once.
        queries, items, hard: int64 [B], [B], [H]: rows of the gathered vectors.
        groups, hard_groups: int64 [B, 4], [H, 4].
        views: what was shown, and `rows`, int64 [V]: where each view's vector lies.
    """

    chunks: list[Prompts]
    queries: Tensor
    items: Tensor
    hard: Tensor
    groups: Tensor
    hard_groups: Tensor
    views: Views
    rows: Int64s


class ContrastiveObjective:
    """Queries are drawn to the products that users chose after them, and away from others."""

    def __init__(self, encoder: Encoder, pairs: Pairs, config: TrainingConfig) -> None:
        self.encoder, self.pairs, self.config = encoder, pairs, config
        self.device = training_device()
        self.dtype = computing_dtype(config.precision, self.device)
        self.loss = _loss(config)
        parts: dict[str, nn.Module] = {"encoder": encoder, "loss": self.loss}
        self.queue = NegativeQueue(config.queue, config.encoder.dimension, GROUPS) if config.queue else None
        if self.queue is not None:
            parts["queue"] = self.queue
        self.model: nn.Module = nn.ModuleDict(parts).to(self.device)
        self.backbone: nn.Module = encoder.backbone
        self.tower = encoder.backbone.tower()
        make_trainable(encoder, self.tower, config)
        self.batches = Batches(len(pairs), config.batch_size, config.seed)
        self.maker = PromptMaker(
            encoder,
            pairs,
            item_images=config.item_images,
            text_dropout=config.text_dropout,
            augment=config.augment,
            chunk=config.chunk,
        )
        self._items = torch.zeros(0)

    def prepare(self, step: int) -> PairBatch:
        """The batch of a step."""
        chosen, views, rng = self._views(step)
        chunks, rows = self.maker.make(views, rng, processes())
        pairs = self.pairs
        return PairBatch(
            chunks=chunks,
            queries=self._tensor(rows[views.queries]),
            items=self._tensor(rows[views.items]),
            hard=self._tensor(rows[views.hard]),
            groups=self._tensor(pairs.groups[chosen]),
            hard_groups=self._tensor(pairs.content_groups[views.contents[views.hard]]),
            views=views,
            rows=rows,
        )

    def probe(self) -> Probe:
        """A few prompts of the first step."""
        _, views, rng = self._views(1)
        some = np.linspace(0, len(views) - 1, min(PROBED, len(views))).astype(np.int64)
        own = -(-len(views) // processes().count)
        [one], _ = self.maker.make(views, rng, processes(), some)
        images = len(one.images) / len(some) * own
        return Probe(
            forward=lambda copies: self._encode(self.maker.make(views, rng, processes(), np.tile(some, copies))[0][0]),
            prompts=len(some),
            at_once=min(own, self.config.chunk or own),
            prepared_bytes=int(4 * images * np.prod(one.images.shape[1:]).astype(int)) * 3,
            advice="lower chunk (now {}), batch_size, hard_negatives or the image size".format(
                self.config.chunk or "all"
            ),
        )

    def backward(self, prepared: PairBatch) -> Tensor:
        """The loss of a batch; its gradients are added to the parameters."""
        whole = [slice(at, at + 1) for at in range(len(prepared.chunks))]
        return cached_step(
            lambda part: (self._encode(prepared.chunks[part.start]),), whole, lambda own: self._loss_of(own, prepared)
        )

    def after(self, step: int, prepared: PairBatch) -> Mapping[str, float]:
        """Keep the batch's products as negatives of later ones."""
        figures = self.temperature()
        if self.queue is not None:
            if step % STALENESS_STEPS == 0 and len(self.queue):
                figures |= {"queue_staleness": self._staleness(step)}
            self.queue.push(self._items, prepared.groups, prepared.groups[:, 1])
        return figures

    def temperature(self) -> dict[str, float]:
        """The temperature, of a loss that has one."""
        inner = self.loss.loss if isinstance(self.loss, Matryoshka) else self.loss
        return {"temperature": float(torch.exp(-inner.log_scale.detach()))} if isinstance(inner, InfoNCE) else {}

    def _views(self, step: int) -> tuple[Int64s, Views, np.random.Generator]:
        rng = np.random.default_rng([self.config.seed, step])
        chosen = self.batches.of(step)
        return chosen, views_of(self.pairs, chosen, self.config.hard_negatives, rng), rng

    def _encode(self, prompts: Prompts) -> Tensor:
        with self._autocast():
            vectors: Tensor = self.encoder(prompts.batch, prompts.images)
        return vectors

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _loss_of(self, own: Tensor, prepared: PairBatch) -> Tensor:
        vectors = gathered(own)  # [V, D]
        queries, items = vectors[prepared.queries], vectors[prepared.items]
        self._items = items.detach()
        more, groups = [vectors[prepared.hard]], [prepared.hard_groups]
        if self.queue is not None:
            more.append(self.queue.vectors)
            groups.append(self.queue.groups)
        others, other_groups = torch.cat(more), torch.cat(groups)
        repel = repel_mask(prepared.groups, prepared.groups)
        if not len(others):
            return self.loss(queries, items, repel)
        return self.loss(queries, items, repel, others, repel_mask(prepared.groups, other_groups))

    def _staleness(self, step: int) -> float:
        """Mean cosine of what the queue holds of its oldest batch to the same views by the encoder of now.

        A product that it holds more than once was shown in more than one way, and is passed over.
        """
        assert self.queue is not None
        oldest = max(1, step - len(self.queue) // self.batches.size)
        _, views, rng = self._views(oldest)
        held, times = np.unique(self.queue.contents.cpu().numpy(), return_counts=True)
        shown = np.unique(views.items)
        shown = shown[np.isin(views.contents[shown], held[times == 1])][:STALENESS_VIEWS]
        if not len(shown):
            return math.nan
        chunks, _ = self.maker.make(views, rng, processes(), shown)
        with undisturbed(self.model), torch.no_grad():
            vectors = torch.cat([self._encode(chunk) for chunk in chunks])
        return self.queue.staleness(self._tensor(views.contents[shown]), vectors)

    def _tensor(self, numbers: Int64s) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


def _loss(config: TrainingConfig) -> ContrastiveLoss | Matryoshka:
    one: ContrastiveLoss
    if config.loss == "circle":
        one = CircleLoss(config.margin, config.gamma)
    else:
        one = InfoNCE(config.temperature, learn_temperature=config.learn_temperature)
    smaller = [prefix for prefix in config.prefixes if 0 < prefix < config.encoder.dimension]
    return Matryoshka(one, [*smaller, config.encoder.dimension]) if smaller else one
