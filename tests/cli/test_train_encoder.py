from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.train_encoder import _config, _size
from models.training.captioning import PretrainingConfig
from models.training.contrastive import TrainingConfig
from moonlake.errors import InputError

NOTHING: dict[str, Any] = {}


def test_options_stand_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_text(
        'steps = 7\nbatch_size = 9\nprefixes = [8, 16]\n[encoder]\nimage_height = 32\nattention = "causal"\n'
    )
    config = _config(2, file, {"steps": 3, "seed": None}, {"image_height": None, "image_width": 48})
    assert isinstance(config, TrainingConfig)
    assert (config.stage, config.steps, config.batch_size, config.seed, config.prefixes) == (2, 3, 9, 0, (8, 16))
    assert (config.encoder.image_size, config.encoder.attention) == ((32, 48), "causal")
    assert _config(0, None, {"steps": 3}, NOTHING) == PretrainingConfig(steps=3)


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
            _config(stage, file, NOTHING, NOTHING)
    with pytest.raises(InputError, match=r"absent.toml: .*No such file"):
        _config(1, tmp_path / "absent.toml", NOTHING, NOTHING)


def test_an_image_size_is_two_numbers() -> None:
    assert _size("96x72") == {"image_height": 96, "image_width": 72}
    assert set(_size(None).values()) == {None}
    with pytest.raises(InputError, match="such as 64x64"):
        _size("96")
