"""The control of the attribute study: the encoder's own vision tower, trained to name the article type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import small_tower as registered_towers  # noqa: F401 timm knows them by name from here on
from models.encoder.config import TinyConfig
from models.encoder.encoder import to_float
from models.encoder.precision import computing_dtype
from models.training.augmentation import DRAWS, augment
from models.training.loop import Batches, Run, RunConfig, make_trainable, run_steps, training_device
from models.training.memory_probe import Probe
from moonlake.arrays import Float32s, Int64s, UInt8s
from moonlake.progress import UNWATCHED, Step

AT_ONCE = 256
PROBED = 4


class Classifier(nn.Module):
    """A vision tower with random weights and a linear layer on its features."""

    def __init__(self, tiny: TinyConfig, classes: int) -> None:
        super().__init__()
        tower: Any = timm.create_model(tiny.tower, pretrained=False)
        self.tower: Any = tower
        self.head = nn.Linear(tower.num_features, classes)
        self.tower.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """float [N, C] of float [N, 3, H, W] in [0, 1]."""
        found: Tensor = self.tower.forward_features(2 * images - 1)
        return found.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """float [N, classes]."""
        scores: Tensor = self.head(self.features(images))
        return scores


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Augmented pictures, float [N, 3, H, W], and the number of each one's class, int64 [N]."""

    images: Tensor
    classes: Tensor


class LabelObjective:
    """The class of a picture."""

    def __init__(self, model: Classifier, pixels: UInt8s, labels: Sequence[str], config: RunConfig) -> None:
        self.pixels, self.config = pixels, config
        _, self.classes = np.unique(labels, return_inverse=True)
        self.device = training_device()
        self.dtype = computing_dtype(config.precision, self.device)
        self.model: nn.Module = model.to(self.device)
        self.backbone: nn.Module = model.tower
        self.tower: nn.Module = model.tower
        make_trainable(model, model.tower, config)
        self.batches = Batches(len(pixels), config.batch_size, config.seed)

    def prepare(self, step: int) -> LabelBatch:
        """The batch of a step."""
        return self._made(self.batches.of(step), np.random.default_rng([self.config.seed, step]))

    def probe(self) -> Probe:
        """A few pictures."""
        some = np.arange(PROBED)
        return Probe(
            forward=lambda copies: self._loss(self._made(np.tile(some, copies), np.random.default_rng(0))),
            prompts=PROBED,
            at_once=self.batches.size,
            prepared_bytes=int(3 * 4 * self.batches.size * np.prod(self.pixels.shape[1:])),
            advice="lower batch_size or the image size",
        )

    def backward(self, prepared: LabelBatch) -> Tensor:
        """The mean loss of a batch; its gradients are added to the parameters."""
        loss = self._loss(prepared)
        torch.autograd.backward(loss)
        return loss.detach()

    def after(self, step: int, prepared: LabelBatch) -> Mapping[str, float]:  # noqa: ARG002
        """Nothing to watch."""
        return {}

    def _made(self, rows: Int64s, rng: np.random.Generator) -> LabelBatch:
        pixels = np.ascontiguousarray(self.pixels[rows])
        images = augment(pixels, rng.random((len(rows), DRAWS)))
        return LabelBatch(images.to(self.device), torch.from_numpy(self.classes[rows]).to(self.device))

    def _loss(self, one: LabelBatch) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            scores = self.model(one.images)
        return F.cross_entropy(scores.float(), one.classes)


def fit_classifier(
    model: Classifier,
    pixels: UInt8s,
    labels: Sequence[str],
    config: RunConfig,
    progress: Step = UNWATCHED,
) -> dict[str, float]:
    """Train a classifier in place; the loss of the last tenth of the steps and the speed.

    Args:
        pixels: uint8 [N, H, W, 3].
        labels: [N].
    """
    return run_steps(LabelObjective(model, pixels, labels, config), config, Run(progress=progress), asdict(config))


def classifier_vectors(model: Classifier, pixels: UInt8s) -> Float32s:
    """float32 [N, C]: features before the linear layer, of unit norm."""
    model.eval()
    device = model.head.weight.device
    parts = []
    with torch.no_grad():
        for at in range(0, len(pixels), AT_ONCE):
            images = to_float(torch.from_numpy(pixels[at : at + AT_ONCE])).to(device)
            images = images.contiguous(memory_format=torch.channels_last)
            parts.append(F.normalize(model.features(images), dim=1).cpu().numpy())
    return np.concatenate(parts).astype(np.float32)
