"""A small convolutional vision tower that learns from nothing on a CPU, under a name that timm and transformers know.

Most of its arithmetic lies where the picture is a sixteenth of its size or less: there a core's matrix unit is busy,
while the wide early layers of the usual towers wait for memory.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

NORMALISED_TOGETHER = 64
"""Images that share batch statistics: as many as stay in a core's cache, whatever the batch is."""


class SmallTower(nn.Module):
    """Residual stages between a strided stem and a mean: float [N, 3, H, W] to [N, 4 * width, H / 32, W / 32].

    Attributes:
        num_features: channels of the feature map.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
        blocks: list[nn.Module] = []
        channels = 32
        for stage in range(3):
            for at in range(depth):
                blocks.append(_Block(channels, width * 2**stage, stride=2 if at == 0 else 1))
                channels = width * 2**stage
        self.layers = nn.Sequential(*stem, *blocks, nn.AvgPool2d(2, ceil_mode=True))
        self.num_features = channels

    def forward_features(self, images: Tensor) -> Tensor:
        """float [N, C, H / 32, W / 32], rounded up."""
        if not self.training or len(images) < 2 * NORMALISED_TOGETHER:
            features: Tensor = self.layers(images)
            return features
        parts = images.tensor_split(len(images) // NORMALISED_TOGETHER)
        return torch.cat([self.layers(part) for part in parts])

    def forward_head(self, features: Tensor) -> Tensor:
        """float [N, C]: the mean over the places of a feature map."""
        return features.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """float [N, C]."""
        return self.forward_head(self.forward_features(images))


class _Block(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.past: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.past = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.activation(self.first_norm(self.first(features)))
        summed: Tensor = self.second_norm(self.second(inner)) + self.past(features)
        activated: Tensor = self.activation(summed)
        return activated


@register_model
def moonlake_small(pretrained: bool = False, width: int = 32, depth: int = 1, **_: Any) -> SmallTower:
    """The tower with `width` channels in its first stage; there are no weights to load."""
    if pretrained:
        raise ValueError("moonlake_small has no pretrained weights")
    return SmallTower(width, depth)


@register_model
def moonlake_wide(pretrained: bool = False, **_: Any) -> SmallTower:
    """Twice the channels: about four times the arithmetic, half the speed where there is a matrix unit."""
    return moonlake_small(pretrained, width=64)
