"""The multimodal encoder: a text and any number of images go in by one door, one unit vector comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.backbone import Backbone, load_backbone, tiny_backbone
from models.encoder_config import TINY, EncoderConfig

MODEL_FOLDER = "model"
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts as tensors.

    Attributes:
        input_ids: int64 [B, T], padded on the right.
        attention_mask: int64 [B, T].
        images: uint8 [N, H, W, 3]: the images of all prompts, one prompt after the other.
    """

    input_ids: Tensor
    attention_mask: Tensor
    images: Tensor


class Encoder(nn.Module):
    """Vision tower -> projector -> language model -> pooled last layer -> projection -> unit norm.

    Source: MOON, figure 2.
    """

    def __init__(self, config: EncoderConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = nn.Linear(backbone.hidden, config.dimension, bias=False)
        backbone.attend(config.attention)

    def forward(self, batch: Batch, images: Tensor | None = None) -> Tensor:
        """float32 [B, D]: unit vectors.

        Args: images: float [N, 3, H, W] in [0, 1], in place of the batch's own (augmented ones, in training).
        """
        if images is None:
            images = to_float(batch.images)
        states = self.backbone(batch.input_ids, batch.attention_mask, images)  # [B, T, hidden]
        mask = batch.attention_mask
        if self.config.pooling == "mean":
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1)
        else:
            pooled = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return F.normalize(self.head(pooled).float(), dim=-1)

    def batch(self, texts: Sequence[str | None], images: Sequence[NDArray[np.uint8]]) -> Batch:
        """Prompts made of texts and decoded images: the images first, then the text, then the end token.

        Args:
            texts: [B]; None for no text.
            images: [B], each uint8 [n, H, W, 3] with n from 0.
        """
        rows = [
            [*(self.backbone.image_tokens * len(pictures)), *words, self.backbone.end_token]
            for words, pictures in zip(self._words(texts), images, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = torch.full((len(rows), int(lengths.max())), self.backbone.end_token)
        for at, row in enumerate(rows):
            input_ids[at, : len(row)] = torch.tensor(row)
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        pixels = np.concatenate(images) if images else np.zeros((0, *self.config.image_size, 3), np.uint8)
        device = self.head.weight.device
        return Batch(input_ids.to(device), attention_mask.to(device), torch.from_numpy(pixels).to(device))

    def _words(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Token ids of each text. A text that spells a special token is read as plain characters."""
        tokenizer: Any = self.backbone.tokenizer
        found = tokenizer([text or "" for text in texts], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return [ids[: self.config.max_text_tokens] if text else [] for text, ids in zip(texts, found, strict=True)]

    def save(self, folder: Path) -> None:
        """Write weights and tokenizer: the backbone as a folder of its own, and the head."""
        self.backbone.save(folder / MODEL_FOLDER)
        save_file({"weight": self.head.weight.detach().cpu().contiguous()}, folder / HEAD_FILE)


def new_encoder(config: EncoderConfig, texts: Sequence[str]) -> Encoder:
    """An encoder before contrastive training; its new weights come from torch's global seed.

    Args: texts: what the tokenizer of a tiny backbone is trained on; a pretrained one brings its own.
    """
    if config.backbone == TINY:
        return Encoder(config, tiny_backbone(config.tiny, texts, config.image_size))
    return Encoder(config, load_backbone(config.backbone, config.image_size))


def load_encoder(config: EncoderConfig, folder: Path) -> Encoder:
    """The encoder that `Encoder.save` wrote into a folder."""
    encoder = Encoder(config, load_backbone(folder / MODEL_FOLDER, config.image_size))
    encoder.head.load_state_dict(load_file(folder / HEAD_FILE))
    return encoder.eval()


def to_float(images: Tensor) -> Tensor:
    """float32 [N, 3, H, W] in [0, 1] of uint8 [N, H, W, 3]."""
    return images.permute(0, 3, 1, 2).float() / 255
