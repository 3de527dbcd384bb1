"""The dual-flow baseline: one tower for images, one for text, their vectors added (CLIP, with 1 to N images)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder.backbone import Backbone, ImageFeatures
from models.encoder.config import EncoderConfig
from models.encoder.encoder import Batch, Encoder


class DualFlowEncoder(Encoder):
    """Two towers with late fusion: the normalised sum of the unit vectors of the text and of the images' mean.

    The same tower, projector and language model as the generative encoder has; the language model never sees an image.

    Source: Radford et al., "CLIP" (2021); the baseline of MOON, section 2.
    """

    def __init__(self, config: EncoderConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.image_head = nn.Linear(backbone.hidden, config.dimension, bias=False)

    def forward(self, batch: Batch, images: Tensor | ImageFeatures | None = None) -> Tensor:
        """float32 [B, D]: unit vectors, as `Encoder.forward`."""
        seen = self._seen(batch, images)
        has_image = (batch.image_counts > 0).unsqueeze(1)  # [B, 1]
        has_text = (batch.attention_mask.sum(1, keepdim=True) > 1) | ~has_image  # more than the end token
        states = self.backbone(batch.input_ids, batch.attention_mask, batch.images[:0])  # [B, T, hidden]
        text = F.normalize(self.head(self._pool(states, batch.attention_mask)).float(), dim=-1)
        fused = text * has_text
        if len(seen):
            features = seen if isinstance(seen, ImageFeatures) else self.image_features(seen)
            rows = torch.repeat_interleave(batch.image_counts)  # [N]: the prompt of each image
            each = F.normalize(self.image_head(features.tokens.float().mean(1)).float(), dim=-1)  # [N, D]
            summed = torch.zeros_like(text).index_add(0, rows, each)
            fused = fused + F.normalize(summed, dim=-1) * has_image
        return F.normalize(fused, dim=-1)

    def heads(self) -> Mapping[str, Tensor]:
        """The weights that do not belong to the backbone, under their names in the file."""
        return {"weight": self.head.weight, "image.weight": self.image_head.weight}

    def _image_tokens(self) -> list[int]:
        return []
