"""Stage 0: the encoder learns the catalogue by describing products from their images, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.artifacts import Artifact
from models.encoder.encoder import NOT_SCORED, Batch, DescribingEncoder, Encoder, to_float
from models.encoder.picture_store import PictureStore, read_pictures, spans
from models.encoder.precision import computing_dtype
from models.training.augmentation import DRAWS, augment
from models.training.distributed import mean_of_processes, processes, total
from models.training.loop import Batches, Run, RunConfig, even_chunks, make_trainable, run_steps, training_device
from models.training.memory_probe import Probe
from models.training.stages import publish, start_from, taking_over, versions
from moonlake.arrays import Int64s
from moonlake.embeddings.contents import live_states
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED, Step

TABLES_READ = ("products", "product_images")
TITLE, ATTRIBUTES, CATEGORY = "title", "attributes", "category"
FIELDS = (TITLE, ATTRIBUTES, CATEGORY)
PROBED = 4
Told = tuple[str, str]
"""What a prompt begins with that is not to be learnt, and all of its text."""


@dataclass(frozen=True, slots=True)
class PretrainingConfig(RunConfig):
    """Next-token prediction of descriptions from images.

    Attributes:
        fields: what a description says: "title", "attributes" (each with its name), "category" (the main subject).
            A catalogue in which the category is what is measured later withholds it here.
        shuffle: let the fields of a product stand in another order in every step, so that each is at times told from
            the images alone.
        apart: parts of a description that a step tells, drawn by chance, each in a prompt of its own and so from the
            images alone; an attribute's name is then given and only its value is learnt. 0 tells all in one prompt.
    """

    fields: tuple[str, ...] = FIELDS
    shuffle: bool = True
    apart: int = 0

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        object.__setattr__(self, "fields", tuple(self.fields))  # JSON and TOML know lists only
        if not self.fields or not set(self.fields) <= set(FIELDS):
            raise ValueError(f"fields {self.fields}: expected some of {', '.join(FIELDS)}")
        if self.apart < 0:
            raise ValueError(f"apart {self.apart}: expected a number of parts, or 0")


class Part(NamedTuple):
    """A part of a description: a value and the name that stands before it, "" for a title."""

    name: str
    value: str

    @property
    def given(self) -> str:
        """The prompt text before the value."""
        return f"{self.name}:" if self.name else ""

    def __str__(self) -> str:
        return f"{self.given} {self.value}" if self.name else self.value


@dataclass(frozen=True)
class Descriptions:
    """Products with something to say and an image to tell it from.

    Attributes:
        parts: [P]: what is said of each product.
        pictures: the images of each.
        trained_until: the latest event of these products' states; None if there is none.
    """

    parts: list[tuple[Part, ...]]
    pictures: PictureStore
    trained_until: datetime | None

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def texts(self) -> list[str]:
        """[P]: every part of each product, for a tokenizer to be trained on."""
        return [", ".join(map(str, parts)) for parts in self.parts]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that training reads of them."""
        return stable_hash(repr(self.parts) + self.pictures.fingerprint)


def pretrain_encoder(
    lake: Lake,
    config: PretrainingConfig,
    artifact_folder: Path,
    *,
    before: datetime,
    parent: Path | None = None,
    run: Run | None = None,
) -> Artifact:
    """The artifact of an encoder that describes the lake's products as they were known before `before`.

    Args: parent: artifact of which the encoder is taken over; None begins with a new one.
    Raises: InputError: there is no product to learn from, or a configuration that cannot be built or does not fit.
    """
    run = run or Run()
    config = taking_over(config, parent)
    described = read_descriptions(lake, before, config.encoder.image_size, config.fields)
    if config.steps and len(described) < 2:
        raise InputError(f"products: {len(described)} known before {before} have a readable image and a description")
    start = start_from(parent, config, described.texts)
    metrics = fit(start.encoder, described, config, run=run, start=start.identity)
    return publish(
        artifact_folder,
        0,
        start,
        config,
        run,
        tables=versions(lake, TABLES_READ),
        trained_until=described.trained_until,
        metrics={"products": len(described), **metrics},
    )


def read_descriptions(
    lake: Lake, before: datetime, image_size: tuple[int, int], fields: Sequence[str] = FIELDS
) -> Descriptions:
    """The products on sale as of `before`: of each its last state with an event time before that."""
    known = live_states(lake, before, ["title", "attributes", "category", "image_ids"])
    said = [describe(row["title"], dict(row["attributes"]), row["category"], fields) for row in known]
    pictures = read_pictures(lake, [row["image_ids"] for row in known], image_size)
    kept = [at for at, parts in enumerate(said) if parts and pictures.counts[at]]
    return Descriptions(
        parts=[said[at] for at in kept],
        pictures=pictures.of(np.array(kept, np.int64)),
        trained_until=max((known[at]["event_timestamp"] for at in kept), default=None),
    )


def describe(
    title: str | None, attributes: Mapping[str, str], category: str | None, fields: Sequence[str]
) -> tuple[Part, ...]:
    """The parts of a product's description.

    >>> [str(part) for part in describe("Oak chair", {"material": "oak"}, "chairs", FIELDS)]
    ['Oak chair', 'material: oak', 'category: chairs']
    """
    parts = [Part("", title)] if title and TITLE in fields else []
    if ATTRIBUTES in fields:
        parts += [Part(name, value) for name, value in sorted(attributes.items()) if value]
    if category and CATEGORY in fields:
        parts.append(Part("category", category))
    return tuple(parts)


def fit(
    encoder: Encoder,
    described: Descriptions,
    config: PretrainingConfig,
    progress: Step = UNWATCHED,
    *,
    run: Run | None = None,
    start: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Train an encoder in place; the loss (nats a token) of the last tenth of the steps and the speed.

    Args: as `models.training.contrastive.fit`.
    Raises: InputError: the encoder cannot tell a description.
    """
    if not config.steps:
        return {}
    if not isinstance(encoder, DescribingEncoder):
        architecture = encoder.config.architecture
        raise InputError(f"{architecture} cannot be trained to describe images (stage 0): its text tower sees none")
    objective = DescriptionObjective(encoder, described, config)
    identity = {"config": asdict(config), "data": described.fingerprint, **(start or {})}
    metrics = run_steps(objective, config, run or Run(progress=progress), identity)
    encoder.eval()
    return metrics


@dataclass(frozen=True, slots=True)
class DescriptionBatch:
    """Prompts with labels that are computed at once.

    Attributes:
        images: float [N, 3, H, W], each once.
        shown: int64 [M]: places in `images` of those of all prompts, one prompt after the other.
        tokens: places that are scored.
    """

    batch: Batch
    labels: Tensor
    images: Tensor
    shown: Tensor
    tokens: int


class DescriptionObjective:
    """The next token of a product's description, from its images and the tokens before."""

    def __init__(self, encoder: DescribingEncoder, described: Descriptions, config: PretrainingConfig) -> None:
        self.encoder, self.described, self.config = encoder, described, config
        self.device = training_device()
        self.dtype = computing_dtype(config.precision, self.device)
        self.model: nn.Module = nn.ModuleDict({"encoder": encoder}).to(self.device)
        self.backbone: nn.Module = encoder.backbone
        self.tower = encoder.backbone.tower()
        make_trainable(encoder, self.tower, config)
        self.batches = Batches(len(described), config.batch_size, config.seed)

    def prepare(self, step: int) -> list[DescriptionBatch]:
        """The batch of a step: this process's part of it, in chunks."""
        process = processes()
        chosen = self.batches.of(step)
        return self._made(step, np.arange(len(chosen))[process.rank :: process.count])

    def probe(self) -> Probe:
        """A few prompts of the first step."""
        own = -(-self.batches.size // processes().count)
        some = np.arange(min(PROBED, self.batches.size))
        images = len(self._made(1, some)[0].images) / len(some) * own
        height, width = self.config.encoder.image_size
        return Probe(
            forward=lambda copies: self._loss(self._made(1, np.tile(some, copies), whole=True)[0]),
            prompts=len(some),
            at_once=min(own, self.config.chunk or own),
            prepared_bytes=int(4 * images * height * width * 3) * 3,
            advice="lower chunk (now {}), batch_size or the image size".format(self.config.chunk or "all"),
        )

    def backward(self, prepared: list[DescriptionBatch]) -> Tensor:
        """The mean loss over all scored tokens of the batch; its gradients are added to the parameters."""
        own = sum(one.tokens for one in prepared)
        share = processes().count / max(1, total(own))  # the mean over processes follows
        summed = torch.zeros((), device=self.device)
        for one in prepared:
            loss = self._loss(one) * (one.tokens * share)
            torch.autograd.backward(loss)
            summed += loss.detach()
        return mean_of_processes(summed)

    def after(self, step: int, prepared: list[DescriptionBatch]) -> Mapping[str, float]:  # noqa: ARG002
        """Scored tokens of this process."""
        return {"tokens": float(sum(one.tokens for one in prepared))}

    def _made(self, step: int, own: Int64s, *, whole: bool = False) -> list[DescriptionBatch]:
        """Prompts of some places of a step's batch. The draws are made for all, whatever the processes."""
        rng = np.random.default_rng([self.config.seed, step])
        chosen = self.batches.of(step)
        pictures = self.described.pictures
        told = [self._told(product, rng) for product in chosen]
        counts = pictures.counts[chosen]
        seen = np.minimum(counts, 1 + np.floor(rng.random(len(chosen)) * self.config.item_images).astype(np.int64))
        ranks = np.argsort(np.argsort(_keys(rng, counts), axis=1), axis=1)
        light = rng.random((len(chosen), self.config.item_images, DRAWS))
        made = []
        for some in even_chunks(own, 0 if whole else self.config.chunk):
            inside = (ranks[some] < seen[some, None]) & (np.arange(ranks.shape[1]) < counts[some, None])
            pixels = np.ascontiguousarray(pictures.pixels[pictures.rows_of(chosen[some], inside)])
            draws = light[some][np.arange(self.config.item_images) < seen[some, None]]
            made.append(self._batch([told[one] for one in some], seen[some], pixels, draws))
        return made

    def _told(self, product: int, rng: np.random.Generator) -> list[Told]:
        """The given and the told text of each prompt of a product."""
        parts = self.described.parts[product]
        if self.config.apart:
            drawn = rng.permutation(len(parts))[: self.config.apart]
            return [(parts[one].given, str(parts[one])) for one in drawn]
        order = rng.permutation(len(parts)) if self.config.shuffle else range(len(parts))
        return [("", "; ".join(str(parts[one]) for one in order))]

    def _batch(self, told: list[list[Told]], counts: Int64s, pixels: np.ndarray, draws: np.ndarray) -> DescriptionBatch:
        """Args: told: of each product its prompts.   counts: int64 [P], images of each product."""
        product = np.repeat(np.arange(len(told)), [len(prompts) for prompts in told])
        of_prompt = counts[product]
        shown = spans((np.cumsum(counts) - counts)[product], of_prompt)
        given, texts = zip(*(prompt for prompts in told for prompt in prompts), strict=True)
        batch, labels = self.encoder.description_batch(texts, of_prompt.tolist(), given)
        seen = augment(pixels, draws) if self.config.augment else to_float(torch.from_numpy(pixels))
        tokens = int((labels[:, 1:] != NOT_SCORED).sum())
        return DescriptionBatch(batch, labels, seen.to(self.device), torch.from_numpy(shown).to(self.device), tokens)

    def _loss(self, one: DescriptionBatch) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.encoder.image_features(one.images)[one.shown]
            return self.encoder.language_loss((one.batch, one.labels), features)


def _keys(rng: np.random.Generator, counts: Int64s) -> np.ndarray:
    """float [B, K]: chance decides the order of a product's images; places behind its last come last."""
    width = int(counts.max(initial=1))
    return np.where(np.arange(width) < counts[:, None], rng.random((len(counts), width)), 2.0)
