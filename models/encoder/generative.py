"""The generative encoder: images and text in one prompt of a multimodal language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder.backbone import ImageFeatures
from models.encoder.encoder import NOT_SCORED, Batch, DescribingEncoder


class GenerativeEncoder(DescribingEncoder):
    """Vision tower -> projector -> language model -> pooled last layer -> projection -> unit norm.

    Source: MOON, figure 2.
    """

    def forward(self, batch: Batch, images: Tensor | ImageFeatures | None = None) -> Tensor:
        """float32 [B, D]: unit vectors, as `Encoder.forward`."""
        states = self.backbone(batch.input_ids, batch.attention_mask, self._seen(batch, images))  # [B, T, hidden]
        return F.normalize(self.head(self._pool(states, batch.attention_mask)).float(), dim=-1)

    def description_batch(
        self, texts: Sequence[str], image_counts: Sequence[int], given: Sequence[str] = ()
    ) -> tuple[Batch, Tensor]:
        """Prompts and labels, as `DescribingEncoder.description_batch`."""
        no_images = torch.zeros((0, *self.config.image_size, 3), dtype=torch.uint8)
        batch = self.prompts(self.words(texts), image_counts, no_images)
        device = batch.input_ids.device
        unscored = torch.tensor([len(ids) for ids in self.words(given or [""] * len(texts))], device=device)
        first = (batch.image_counts * len(self._image_tokens()) + unscored).unsqueeze(1)
        scored = (torch.arange(batch.input_ids.shape[1], device=device) >= first) & batch.attention_mask.bool()
        return batch, torch.where(scored, batch.input_ids, NOT_SCORED)

    def language_loss(self, described: tuple[Batch, Tensor], images: Tensor | ImageFeatures) -> Tensor:
        """Mean cross entropy, as `DescribingEncoder.language_loss`; under causal attention always."""
        batch, labels = described
        with self.backbone.attending("causal"):
            states = self.backbone(batch.input_ids, batch.attention_mask, images)
        wanted = labels[:, 1:]
        scored = wanted != NOT_SCORED
        logits = self.backbone.logits(states[:, :-1][scored]).float()  # [scored, vocabulary]
        return F.cross_entropy(logits, wanted[scored], reduction="sum") / scored.sum().clamp(min=1)

    def _image_tokens(self) -> list[int]:
        return self.backbone.image_tokens
