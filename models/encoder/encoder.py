"""Encoders: a text and any number of images go in by one door, one unit vector comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.encoder.backbone import Backbone, ImageFeatures
from models.encoder.config import EncoderConfig
from moonlake.arrays import UInt8s

MODEL_FOLDER = "model"
HEAD_FILE = "head.safetensors"
NOT_SCORED = -100
"""Label of a place at which no token is to be predicted."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts as tensors.

    Attributes:
        input_ids: int64 [B, T], padded on the right.
        attention_mask: int64 [B, T].
        images: uint8 [N, H, W, 3]: the images of all prompts, one prompt after the other.
        image_counts: int64 [B]: images of each prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    images: Tensor
    image_counts: Tensor


class Encoder(nn.Module, ABC):
    """A backbone, and a projection of its pooled last layer to vectors of unit norm.

    `models.encoder.factory` knows the architectures; the rest of the code asks for this class.
    """

    def __init__(self, config: EncoderConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = nn.Linear(backbone.hidden, config.dimension, bias=False)
        backbone.attend(config.attention)

    @abstractmethod
    def forward(self, batch: Batch, images: Tensor | ImageFeatures | None = None) -> Tensor:
        """float32 [B, D]: unit vectors.

        Args: images: float [N, 3, H, W] in [0, 1] in place of the batch's own (augmented ones, in training), or the
            features that `image_features` made of them.
        """

    @abstractmethod
    def _image_tokens(self) -> list[int]:
        """The tokens that stand for one image in a prompt; none where the language model sees no image."""

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Features of images, float [N, 3, H, W] in [0, 1], that hold for every prompt they stand in."""
        return self.backbone.image_features(images)

    def batch(self, texts: Sequence[str | None], images: Sequence[UInt8s]) -> Batch:
        """Prompts made of texts and decoded images: the images first, then the text, then the end token.

        Args:
            texts: [B]; None for no text.
            images: [B], each uint8 [n, H, W, 3] with n from 0.
        """
        pixels = np.concatenate(images) if images else np.zeros((0, *self.config.image_size, 3), np.uint8)
        return self.prompts(self.words(texts), [len(pictures) for pictures in images], torch.from_numpy(pixels))

    def prompts(self, words: Sequence[Sequence[int]], image_counts: Sequence[int], images: Tensor) -> Batch:
        """Prompts of token ids, as `words` gives them, and of images that are counted for each.

        Args: images: uint8 [N, H, W, 3]; none where features of them are to take their place.
        """
        rows = [
            [*(self._image_tokens() * count), *ids, self.backbone.end_token]
            for ids, count in zip(words, image_counts, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = torch.full((len(rows), int(lengths.max())), self.backbone.end_token)
        for at, row in enumerate(rows):
            input_ids[at, : len(row)] = torch.tensor(row)
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        device = self.head.weight.device
        counts = torch.tensor(image_counts, device=device)
        return Batch(input_ids.to(device), attention_mask.to(device), images.to(device), counts)

    def prompt_lengths(self, words: Sequence[Sequence[int]], image_counts: Sequence[int]) -> list[int]:
        """Tokens of each prompt that `prompts` makes of these."""
        of_image = len(self._image_tokens())
        return [count * of_image + len(ids) + 1 for ids, count in zip(words, image_counts, strict=True)]

    def words(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Token ids of each text. A text that spells a special token is read as plain characters."""
        tokenizer: Any = self.backbone.tokenizer
        found = tokenizer([text or "" for text in texts], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return [ids[: self.config.max_text_tokens] if text else [] for text, ids in zip(texts, found, strict=True)]

    def save(self, folder: Path) -> None:
        """Write weights and tokenizer: the backbone as a folder of its own, and the head. Adapters are merged."""
        self.backbone.save(folder / MODEL_FOLDER)
        heads = {name: weight.detach().cpu().contiguous() for name, weight in self.heads().items()}
        save_file(heads, folder / HEAD_FILE)

    def heads(self) -> Mapping[str, Tensor]:
        """The weights that do not belong to the backbone, under their names in the file."""
        return {"weight": self.head.weight}

    def load_heads(self, folder: Path) -> None:
        """Take the weights that `save` wrote for `heads`."""
        found = load_file(folder / HEAD_FILE)
        with torch.no_grad():
            for name, weight in self.heads().items():
                weight.copy_(found[name])

    def _seen(self, batch: Batch, images: Tensor | ImageFeatures | None) -> Tensor | ImageFeatures:
        return to_float(batch.images) if images is None else images

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """float [B, hidden] of [B, T, hidden]."""
        if self.config.pooling == "mean":
            weights = mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1)
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


class DescribingEncoder(Encoder):
    """An encoder that can tell, token by token, a description of the images that its prompt shows."""

    @abstractmethod
    def description_batch(
        self, texts: Sequence[str], image_counts: Sequence[int], given: Sequence[str] = ()
    ) -> tuple[Batch, Tensor]:
        """Prompts as `prompts` makes them, without images, and the labels of `language_loss`: int64 [B, T], NOT_SCORED
        but for the text and the end token.

        Args: given: [B]: the beginning of each text, up to the end of a word: this is not scored either. None by
            default.
        """

    @abstractmethod
    def language_loss(self, described: tuple[Batch, Tensor], images: Tensor | ImageFeatures) -> Tensor:
        """Mean cross entropy of the next token over the labelled places: a scalar.

        The first token of a prompt has none before it and is not scored; without a label the loss is zero.

        Args:
            described: as `description_batch` gives it.
            images: of all prompts, as in `forward`.
        """


def to_float(images: Tensor) -> Tensor:
    """float32 [N, 3, H, W] in [0, 1] of uint8 [N, H, W, 3]."""
    return images.permute(0, 3, 1, 2).float() / 255
