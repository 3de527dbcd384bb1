from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from models.encoder.config import EncoderConfig, TinyConfig
from models.encoder.factory import load_encoder, new_encoder
from models.encoder.small_tower import NORMALISED_TOGETHER, SmallTower, moonlake_small

TINY = EncoderConfig(
    tiny=TinyConfig(tower="moonlake_small", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    dimension=16,
)


@pytest.mark.parametrize(("name", "channels"), [("moonlake_small", 128), ("moonlake_wide", 256)])
def test_the_map_is_a_thirty_second_of_the_picture_rounded_up(name: str, channels: int) -> None:
    tower: Any = timm.create_model(name).eval()
    assert tower.num_features == channels
    for (height, width), places in {(64, 64): (2, 2), (80, 60): (3, 2)}.items():
        images = torch.rand(2, 3, height, width)
        features = tower.forward_features(images)
        assert features.shape == (2, channels, *places)
        torch.testing.assert_close(tower(images), features.mean((2, 3)))


def test_there_are_no_weights_to_load() -> None:
    with pytest.raises(ValueError, match="no pretrained weights"):
        moonlake_small(pretrained=True)


def test_parts_of_a_large_batch_are_normalised_by_themselves_in_training_only() -> None:
    torch.manual_seed(0)
    tower: SmallTower = moonlake_small(width=4)
    images = torch.rand(2 * NORMALISED_TOGETHER + 6, 3, 32, 32)
    half = len(images) // 2
    both = tower.forward_features(images)
    apart = torch.cat([tower.layers(images[:half]), tower.layers(images[half:])])
    assert torch.equal(both, apart)
    assert not torch.allclose(both, tower.layers(images))
    fewer = images[: 2 * NORMALISED_TOGETHER - 1]
    assert torch.equal(tower.forward_features(fewer), tower.layers(fewer))
    tower.eval()
    torch.testing.assert_close(tower.forward_features(images)[:5], tower.forward_features(images[:5]))


@pytest.mark.parametrize("size", [(64, 64), (80, 60)])
def test_an_encoder_with_the_tower_comes_back_from_its_folder(size: tuple[int, int], tmp_path: Path) -> None:
    config = replace(TINY, image_height=size[0], image_width=size[1])
    torch.manual_seed(0)
    encoder = new_encoder(config, ["red shirt", "blue shirt"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    batch = encoder.batch(["red shirt", None, "blue"], [pixels[:2], pixels[2:], pixels[:0]])
    with torch.no_grad():
        encoder.train()(batch)  # so that the statistics are no longer those of a new tower
        encoder.eval().save(tmp_path)
        torch.testing.assert_close(load_encoder(config, tmp_path)(batch), encoder(batch), atol=0, rtol=0)
