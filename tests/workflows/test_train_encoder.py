"""A stage of training called from Python: its configuration, its artifact, its space and the names of that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.encoder.config import EncoderConfig, TinyConfig
from models.training.captioning import PretrainingConfig
from models.training.contrastive import TrainingConfig
from moonlake.embeddings import releases, spaces
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows.train_encoder import encoder_folder, read_stage_config, train_encoder

NOTHING: dict[str, Any] = {}
T1 = datetime(2026, 1, 1, tzinfo=UTC)
TINY = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
UNTRAINED = TrainingConfig(EncoderConfig(tiny=TINY, image_height=32, image_width=32, dimension=16), steps=0)


def test_options_stand_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_text(
        'steps = 7\nbatch_size = 9\nprefixes = [8, 16]\n[encoder]\nimage_height = 32\nattention = "causal"\n'
    )
    config = read_stage_config(2, file, {"steps": 3, "seed": None}, {"image_height": None, "image_width": 48})
    assert isinstance(config, TrainingConfig)
    assert (config.stage, config.steps, config.batch_size, config.seed, config.prefixes) == (2, 3, 9, 0, (8, 16))
    assert (config.encoder.image_size, config.encoder.attention) == ((32, 48), "causal")
    assert read_stage_config(0, None, {"steps": 3}, NOTHING) == PretrainingConfig(steps=3)


def test_a_file_that_does_not_fit_the_stage_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    cases = [
        (0, "queue = 4", r"stage.toml: unknown keys queue; PretrainingConfig has"),
        (1, "stage = 2", r"stage.toml: stage 2, but --stage 1"),
        (1, "steps = ", r"--config .*stage.toml: "),
        (1, "queue = 4.5", r"queue is 4.5, expected int, such as 0"),
        (1, "[encoder.tiny]\nhiden = 4", r"encoder: tiny: unknown keys hiden"),
    ]
    for stage, text, message in cases:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_stage_config(stage, file, NOTHING, NOTHING)
    with pytest.raises(InputError, match=r"absent.toml: .*No such file"):
        read_stage_config(1, tmp_path / "absent.toml", NOTHING, NOTHING)


def test_the_same_weights_under_another_name_are_found_by_both(settings: Settings, lake: Lake) -> None:
    first, second, other = (
        train_encoder(settings, name, replace(UNTRAINED, seed=seed), before=T1, written_at=T1 + timedelta(hours=at))
        for at, (name, seed) in enumerate((("first", 0), ("next", 0), ("other", 1)))
    )
    assert first is not None
    assert second is not None
    assert other is not None
    assert [one.is_known_space for one in (first, second, other)] == [False, True, False]
    assert first.space is not None
    assert [releases.find(lake, name).space_id for name in ("first", "next")] == [first.space.space_id] * 2
    assert [one.names for one in spaces.spaces(lake)] == [("first", "next"), ("other",)]
    assert encoder_folder(settings, "next") == second.folder == settings.artifacts / "encoder-next"
    assert encoder_folder(settings, other.space.space_id if other.space else "") == other.folder
    with pytest.raises(NotFound, match="no embedding space 'nothing'"):
        encoder_folder(settings, "nothing")


def test_a_name_that_is_no_folder_name_is_refused_before_anything_is_written(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"encoder name '\.\./x'"):
        train_encoder(settings, "../x", UNTRAINED, before=T1, written_at=T1)
    assert not settings.home.exists()
