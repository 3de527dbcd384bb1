"""A small encoder that was never trained, for commands that need one that is real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from moonlake.lake.lake import Lake
from moonlake.settings import Settings


@pytest.fixture(scope="session")
def untrained_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A function that gives the artifact of a small encoder with the weights of a seed, made once."""
    from models.encoder.config import EncoderConfig, TinyConfig
    from models.training.contrastive import TrainingConfig, train_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    config = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=16)
    home = tmp_path_factory.mktemp("untrained")

    @cache
    def made(seed: int) -> Path:
        folder = home / f"seed-{seed}"
        empty = Lake(Settings(home=home / "home"))
        train_encoder(
            empty, TrainingConfig(config, steps=0, seed=seed), folder, before=datetime(2026, 1, 1, tzinfo=UTC)
        )
        return folder

    return made
