from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from models.artifacts import read_artifact
from models.encoder.config import ENCODER, read_encoder_artifact
from models.training import progress
from moonlake.embeddings import releases, spaces
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

BEFORE = "2026-02-01T00:00:00Z"
ENCODER_TOML = """
[encoder]
image_height = 32
image_width = 32
dimension = 16
[encoder.tiny]
tower = "test_resnet"
tower_weights = "random"
vocabulary = 300
hidden = 32
layers = 1
heads = 2
"""


@pytest.fixture
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings.home


def test_the_stages_chain_by_command_and_register_a_space_from_stage_1_on(
    stocked: Lake, home: Path, tmp_path: Path
) -> None:
    def train(name: str, *options: str) -> str:
        words = ["train", "encoder", name, "--before", BEFORE, "--steps", "2", "--batch-size", "4", *options]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    (tmp_path / "zero.toml").write_text("frozen_tower = 0.0\nitem_images = 2\n" + ENCODER_TOML)
    (tmp_path / "two.toml").write_text('frozen_tower = 0.0\nloss = "circle"\nhard_negatives = 2\nqueue = 8\n')
    said = train("zero", "--stage", "0", "--config", str(tmp_path / "zero.toml"))
    assert "next: moonlake train encoder NAME --stage 1 --from zero" in said
    assert spaces.spaces(stocked) == []
    assert "one (" in train("one", "--from", "zero")
    train("two", "--stage", "2", "--from", "one", "--config", str(tmp_path / "two.toml"), "--seed", "3")
    assert [(space.name, space.status) for space in spaces.spaces(stocked)] == [
        ("one", "building"),
        ("two", "building"),
    ]
    folder = Path(releases.find(stocked, "two").artifact)
    assert read_encoder_artifact(folder).config.tiny.tower == "test_resnet"
    config = read_artifact(folder, ENCODER).config
    assert (config["stage"], config["parent"]["stage"], config["parent"]["parent"]["stage"]) == (2, 1, 0)
    assert (config["training"]["loss"], config["training"]["seed"]) == ("circle", 3)
    runs = sorted(path.parent.name for path in (home / "artifacts" / "runs").glob("*/events.out.tfevents.*"))
    assert runs == ["one", "two", "zero"]
    refused = CliRunner().invoke(
        app, ["train", "encoder", "x", "--before", BEFORE, "--from", "one", "--image-size", "8x8"]
    )
    assert refused.exit_code == 1
    assert "leave out --backbone" in refused.output


def test_event_files_hold_the_figures_of_a_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    files = progress.EventFiles(tmp_path, 0)
    for step in (1, 10, 20):
        files.write(step, {"loss": 1 / step, "gradient_norm": 2.0})
    files.close()
    resumed = progress.EventFiles(tmp_path, 10)
    resumed.write(20, {"loss": 7.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [(1, 1.0), (10, 0.1), (20, 7.0)]
    assert set(events.Tags()["scalars"]) == {"loss", "gradient_norm"}
