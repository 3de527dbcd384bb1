from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import models.encoder.small_tower  # noqa: F401  its towers are timm's from then on
from models.training.kernel_scale import set_kernel_std


def learnt(name: str) -> nn.Module:
    """A tower whose statistics and normalisation are those of no new one, and exact: nothing is added to a variance."""
    torch.manual_seed(0)
    tower: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    for _ in range(3):
        tower(torch.rand(8, 3, 64, 64))
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-30
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            elif isinstance(module, nn.Conv2d):
                module.weight.mul_(3)
    return tower


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["moonlake_small", "resnet10t", "tf_efficientnet_lite0"])
def test_what_a_tower_computes_stays(name: str, training: bool) -> None:
    tower: Any = learnt(name).train(training).double()
    images = torch.rand(8, 3, 64, 64, dtype=torch.float64)
    state = {key: value.clone() for key, value in tower.state_dict().items()}
    expected = tower(images)
    tower.load_state_dict(state)
    set_kernel_std(tower, 0.05)
    torch.testing.assert_close(tower(images), expected, rtol=1e-5, atol=1e-5)
    kernels = [one.weight.std(correction=0).item() for one in tower.modules() if isinstance(one, nn.Conv2d)]
    assert kernels == pytest.approx([0.05] * len(kernels))


def test_a_convolution_without_normalisation_or_with_a_bias_stays() -> None:
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    tower = nn.Sequential(*layers)
    before = [one.clone() for one in tower.parameters()]
    set_kernel_std(tower, 0.01)
    assert all(torch.equal(one, other) for one, other in zip(tower.parameters(), before, strict=True))
