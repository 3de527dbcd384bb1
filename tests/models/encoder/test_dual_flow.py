from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder.backbone import tiny_backbone
from models.encoder.config import EncoderConfig, TinyConfig
from models.encoder.dual_flow import DualFlowEncoder
from models.encoder.encoder import DescribingEncoder, Encoder, to_float
from models.encoder.factory import load_encoder, new_encoder
from models.encoder.picture_store import PictureStore
from models.training.captioning import Descriptions, Part, PretrainingConfig, fit
from moonlake.errors import InputError

TINY = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
CONFIG = EncoderConfig("dual_flow", tiny=TINY, image_height=32, image_width=32, dimension=16)
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def dual() -> Encoder:
    torch.manual_seed(0)
    return new_encoder(CONFIG, ["red shirt", "blue mug"]).eval()


def encode(found: Encoder, texts: list[str | None], images: list[np.ndarray]) -> Tensor:
    with torch.no_grad():
        return found(found.batch(texts, images))


def test_a_product_is_the_sum_of_its_text_and_its_images_mean(dual: Encoder) -> None:
    assert isinstance(dual, DualFlowEncoder)
    both = encode(dual, ["red shirt", "red shirt", None, None, None], [PICTURES[:2], *[PICTURES[:n] for n in (0, 2)],
                                                                       PICTURES[:1], PICTURES[1:2]])  # fmt: skip
    whole, text, images, first, second = both
    torch.testing.assert_close(whole, F.normalize(text + images, dim=0))
    torch.testing.assert_close(images, F.normalize(first + second, dim=0))


def test_the_text_tower_sees_no_image(dual: Encoder) -> None:
    batch = dual.batch(["red shirt"], [PICTURES])
    torch.testing.assert_close(batch.input_ids, dual.batch(["red shirt"], [PICTURES[:0]]).input_ids)


def test_features_made_before_stand_for_their_images(dual: Encoder) -> None:
    batch = dual.batch(["red", None], [PICTURES[[0]], PICTURES[[1, 0]]])
    with torch.no_grad():
        features = dual.image_features(to_float(torch.from_numpy(PICTURES)))
        torch.testing.assert_close(dual(batch, features[torch.tensor([0, 1, 0])]), dual(batch), atol=1e-5, rtol=1e-4)


def test_it_is_saved_with_both_heads_and_loaded_the_same(dual: Encoder, tmp_path: Path) -> None:
    dual.save(tmp_path)
    again = load_encoder(CONFIG, tmp_path)
    arguments = (["red", None], [PICTURES[:1], PICTURES[:2]])
    torch.testing.assert_close(encode(again, *arguments), encode(dual, *arguments), atol=1e-6, rtol=1e-5)


def test_both_towers_learn(dual: Encoder) -> None:
    found = new_encoder(CONFIG, ["red"]).train()
    found(found.batch(["red", None], [PICTURES[:1], PICTURES[1:]]))[:, 0].sum().backward()
    parts = (found.backbone.tower(), found.backbone.model.model.language_model)
    assert all(any(one.grad is not None and one.grad.any() for one in part.parameters()) for part in parts)


def test_it_has_as_many_weights_as_the_generative_one_but_for_a_second_head(dual: Encoder) -> None:
    generative = new_encoder(replace(CONFIG, architecture="generative"), ["red shirt", "blue mug"])
    sizes = [sum(one.numel() for one in found.parameters()) for found in (dual, generative)]
    assert sizes[0] - sizes[1] == 32 * 16


def test_it_cannot_describe_images_and_is_not_asked_to(dual: Encoder) -> None:
    assert not isinstance(dual, DescribingEncoder)
    parts: list[tuple[Part, ...]] = [(Part("", "red shirt"),), (Part("", "blue mug"),)]
    pictures = PictureStore(PICTURES[:2], np.arange(2), np.ones(2, np.int64), np.arange(2), "two")
    with pytest.raises(InputError, match=r"dual_flow cannot be trained to describe images .* text tower sees none"):
        fit(dual, Descriptions(parts, pictures, None), PretrainingConfig(encoder=CONFIG, steps=1))


def test_an_encoder_is_of_an_architecture() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Encoder(CONFIG, tiny_backbone(TINY, ["red shirt"], CONFIG.image_size))  # type: ignore[abstract]
