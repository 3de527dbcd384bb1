"""New and saved encoders: the one place that knows every architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from models.encoder.backbone import Backbone, load_backbone, tiny_backbone
from models.encoder.config import TINY, Architecture, EncoderConfig
from models.encoder.dual_flow import DualFlowEncoder
from models.encoder.encoder import MODEL_FOLDER, Encoder
from models.encoder.generative import GenerativeEncoder

ARCHITECTURES: Mapping[Architecture, type[GenerativeEncoder | DualFlowEncoder]] = {
    "generative": GenerativeEncoder,
    "dual_flow": DualFlowEncoder,
}


def new_encoder(config: EncoderConfig, texts: Sequence[str]) -> Encoder:
    """An encoder before contrastive training; its new weights come from torch's global seed.

    Args: texts: what the tokenizer of a tiny backbone is trained on; a pretrained one brings its own.
    """
    if config.backbone == TINY:
        backbone = tiny_backbone(config.tiny, texts, config.image_size)
    else:
        backbone = load_backbone(config.backbone, config.image_size, getattr(torch, config.weights))
    return _ready_to_train(_of(config, backbone))


def load_encoder(config: EncoderConfig, folder: Path, *, to_train: bool = False) -> Encoder:
    """The encoder that `Encoder.save` wrote into a folder.

    Args: to_train: put new adapters on it and checkpoint gradients, as the configuration says.
    """
    encoder = _of(config, load_backbone(folder / MODEL_FOLDER, config.image_size, getattr(torch, config.weights)))
    encoder.load_heads(folder)
    return _ready_to_train(encoder) if to_train else encoder.eval()


def _of(config: EncoderConfig, backbone: Backbone) -> Encoder:
    return ARCHITECTURES[config.architecture](config, backbone)


def _ready_to_train(encoder: Encoder) -> Encoder:
    if encoder.config.lora is not None:
        encoder.backbone.adapt(encoder.config.lora)
    if encoder.config.gradient_checkpointing:
        encoder.backbone.checkpoint_gradients()
    return encoder
