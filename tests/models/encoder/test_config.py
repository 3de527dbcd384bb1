from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from models.artifacts import write_artifact
from models.encoder.config import ENCODER, EncoderConfig, LoraConfig, read_encoder_artifact, space_definition
from moonlake.errors import InputError


@dataclass(frozen=True)
class Run:
    """Configuration that a training run keeps."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)


def written(folder: Path, config: EncoderConfig) -> Path:
    folder.mkdir()
    (folder / "head.safetensors").write_bytes(b"weights")
    write_artifact(folder, ENCODER, Run(config), tables={}, trained_until=None, metrics={})
    return folder


@pytest.mark.parametrize("config", [EncoderConfig(), EncoderConfig("dual_flow", lora=LoraConfig(4), dimension=64)])
def test_a_configuration_comes_back_from_its_artifact(tmp_path: Path, config: EncoderConfig) -> None:
    assert read_encoder_artifact(written(tmp_path / "encoder", config)).config == config


def test_an_unknown_key_of_a_part_that_may_be_left_out_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "encoder", EncoderConfig(lora=LoraConfig()))
    file = folder / f"{ENCODER}.json"
    file.write_text(file.read_text().replace('"alpha"', '"beta"'))
    with pytest.raises(InputError, match="lora: unknown keys beta"):
        read_encoder_artifact(folder)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"architecture": "dual_flow"}, False),
        ({"attention": "causal"}, False),
        ({"image_width": 80}, False),
        ({"gradient_checkpointing": True}, True),  # how it is trained shows in its weights, and in nothing else
        ({"lora": LoraConfig()}, True),
    ],
)
def test_the_space_changes_with_what_changes_vectors(tmp_path: Path, changes: dict[str, object], same: bool) -> None:
    config = EncoderConfig()
    artifact = read_encoder_artifact(written(tmp_path / "encoder", config)).artifact
    other = replace(config, **changes)  # type: ignore[arg-type]
    assert asdict(other) != asdict(config)
    ids = [space_definition(one, artifact).space_id for one in (config, other)]
    assert (ids[0] == ids[1]) == same
