from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from models.encoder.config import EncoderConfig, TinyConfig, read_encoder_artifact
from models.encoder.encoder import NOT_SCORED, to_float
from models.encoder.factory import new_encoder
from models.encoder.generative import GenerativeEncoder
from models.training.captioning import (
    DescriptionObjective,
    Descriptions,
    PretrainingConfig,
    describe,
    fit,
    pretrain_encoder,
    read_descriptions,
)
from models.training.contrastive import TrainingConfig, train_encoder
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import EachNote
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import TABLES

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
BEFORE = DAY0 + timedelta(days=9)
TINY = EncoderConfig(
    tiny=TinyConfig(tower="test_resnet", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    image_height=32,
    image_width=32,
    dimension=16,
)
CONFIG = PretrainingConfig(TINY, steps=2, batch_size=4, frozen_tower=0.0, item_images=2, precision="float32")


def describing_encoder(described: Descriptions) -> GenerativeEncoder:
    """A new small encoder, its tokenizer trained on these descriptions."""
    encoder = new_encoder(TINY, described.texts)
    assert isinstance(encoder, GenerativeEncoder)
    return encoder


def change(lake: Lake, product_id: str, at: datetime, **changes: object) -> None:
    """Append a later state of a product."""
    row = next(row for row in lake.read("products").to_pylist() if row["product_id"] == product_id)
    rows = [row | {"event_timestamp": at} | changes]
    write_deltalake(lake.path("products"), pa.Table.from_pylist(rows, arrow_schema(TABLES["products"])), mode="append")


def test_a_description_says_the_fields_that_it_is_told() -> None:
    said = ("Chair", {"material": "oak", "colour": "brown", "empty": ""}, "chairs")
    parts = describe(*said, ("title", "attributes", "category"))
    assert [str(part) for part in parts] == ["Chair", "colour: brown", "material: oak", "category: chairs"]
    assert [part.given for part in parts] == ["", "colour:", "material:", "category:"]
    assert describe(*said, ("title",)) == (("", "Chair"),)
    assert describe(None, {}, None, ("title", "attributes", "category")) == ()
    with pytest.raises(ValueError, match="expected some of title, attributes, category"):
        PretrainingConfig(fields=("colour",))


def test_products_are_read_as_of_the_moment_and_only_with_a_picture_and_words(stocked: Lake) -> None:
    change(stocked, "red", DAY0 + timedelta(days=3), title="crimson shirt")
    change(stocked, "green", DAY0 + timedelta(days=2), deleted=True)
    change(stocked, "blue", DAY0 + timedelta(days=4), image_ids=[])
    change(stocked, "yellow", DAY0 + timedelta(days=20), title="from the future")
    found = read_descriptions(stocked, BEFORE, TINY.image_size, ("title", "category"))
    assert found.texts == ["crimson shirt, category: shirts", "yellow shirt, category: shirts"]
    assert found.trained_until == DAY0 + timedelta(days=3)
    assert found.pictures.counts.tolist() == [2, 2]
    earlier = read_descriptions(stocked, DAY0 + timedelta(days=1), TINY.image_size, ("title",))
    assert earlier.texts == ["blue shirt", "green shirt", "red shirt", "yellow shirt"]
    assert earlier.fingerprint != found.fingerprint


def test_the_encoder_learns_to_tell_products_from_their_pictures(stocked: Lake) -> None:
    found = read_descriptions(stocked, BEFORE, TINY.image_size)
    torch.manual_seed(0)
    encoder = describing_encoder(found)
    losses: list[float] = []
    noted = EachNote(lambda at: losses.append(at.loss))
    fit(encoder, found, replace(CONFIG, steps=60, augment=False, tower_rate=1.0), noted)
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_chunks_and_plain_batches_have_the_same_gradient(stocked: Lake) -> None:
    found = read_descriptions(stocked, BEFORE, TINY.image_size)
    gradients = []
    for chunk in (0, 1, 3):
        torch.manual_seed(0)
        encoder = describing_encoder(found)
        objective = DescriptionObjective(encoder, found, replace(CONFIG, chunk=chunk, batch_norm="frozen"))
        loss = objective.backward(objective.prepare(1))
        gradients.append([one.grad.clone() for one in encoder.parameters() if one.grad is not None] + [loss])
    for other in gradients[1:]:
        assert len(other) == len(gradients[0])
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_the_artifact_hands_its_encoder_and_its_latest_event_to_the_next_stage(stocked: Lake, tmp_path: Path) -> None:
    change(stocked, "red", DAY0 + timedelta(days=8), title="crimson shirt")
    zero = pretrain_encoder(stocked, CONFIG, tmp_path / "zero", before=BEFORE)
    assert zero.trained_until == DAY0 + timedelta(days=8)
    assert zero.tables == {"products": 1, "product_images": 0}
    one = train_encoder(
        stocked, TrainingConfig(steps=1, batch_size=4), tmp_path / "one", before=BEFORE, parent=tmp_path / "zero"
    )
    assert one.trained_until == DAY0 + timedelta(days=8)  # the pairs alone end on day 1
    assert read_encoder_artifact(tmp_path / "one").config == TINY
    assert one.config["stage"] == 1
    assert one.config["parent"]["stage"] == 0
    assert one.config["parent"]["training"]["fields"] == ["title", "attributes", "category"]
    names = ("*tokenizer.json",)
    assert one.files_hash(*names) == zero.files_hash(*names)
    other = TrainingConfig(replace(TINY, dimension=32), steps=1)
    with pytest.raises(InputError, match="configured otherwise: dimension 32, there 16"):
        train_encoder(stocked, other, tmp_path / "two", before=BEFORE, parent=tmp_path / "zero")


def test_pretraining_without_products_says_so(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"products: 0 known before .* have a readable image and a description"):
        pretrain_encoder(lake, CONFIG, tmp_path / "zero", before=BEFORE)
    assert not (tmp_path / "zero").exists()


def test_the_order_of_the_fields_is_drawn_for_each_step(stocked: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_descriptions(stocked, BEFORE, TINY.image_size)
    encoder = describing_encoder(found)
    said: list[str] = []
    original: Callable[..., object] = encoder.description_batch

    def heard(texts: Sequence[str], *others: object) -> object:
        said.extend(texts)
        return original(texts, *others)

    monkeypatch.setattr(encoder, "description_batch", heard)
    objective = DescriptionObjective(encoder, found, CONFIG)
    for step in (1, 2, 3, 4, 1):
        objective.prepare(step)
    assert len({text for text in said if "red" in text}) > 1
    assert said[:4] == said[-4:]
    assert all(sorted(text.split("; ")) == sorted(set(text.split("; "))) and "; " in text for text in said)


@pytest.mark.parametrize("apart", [1, 9])
def test_parts_told_apart_are_each_told_from_the_images_of_their_product(stocked: Lake, apart: int) -> None:
    found = read_descriptions(stocked, BEFORE, TINY.image_size)
    torch.manual_seed(0)
    encoder = describing_encoder(found)
    objective = DescriptionObjective(encoder, found, replace(CONFIG, apart=apart, augment=False, batch_norm="frozen"))
    [batch] = objective.prepare(1)
    images = iter(batch.images[batch.shown])
    losses, tokens, told = [], 0, []
    for ids, labels, count in zip(batch.batch.input_ids, batch.labels, batch.batch.image_counts.tolist(), strict=True):
        value = encoder.backbone.tokenizer.decode(ids[labels != NOT_SCORED][:-1]).strip()
        own = torch.stack([next(images) for _ in range(count)])
        [product] = [at for at in range(len(found)) if _are_of(own, found, at)]
        [part] = [part for part in found.parts[product] if part.value == value]
        alone, scored = encoder.description_batch([str(part)], [count], [part.given])
        losses.append(float(encoder.language_loss((alone, scored), own).detach()) * int((scored != NOT_SCORED).sum()))
        tokens += int((scored != NOT_SCORED).sum())
        told.append((product, part))
    wanted = {product: min(apart, len(found.parts[product])) for product in objective.batches.of(1)}
    assert {product: len({part for at, part in told if at == product}) for product in wanted} == wanted
    assert len(told) == sum(wanted.values())
    assert float(objective.backward([batch])) == pytest.approx(sum(losses) / tokens, rel=1e-4)


def test_which_parts_are_told_apart_is_drawn_for_each_step(stocked: Lake) -> None:
    found = read_descriptions(stocked, BEFORE, TINY.image_size)
    objective = DescriptionObjective(describing_encoder(found), found, replace(CONFIG, apart=1))
    rows = [objective.prepare(step)[0].batch.input_ids for step in (*range(1, 30), 1)]
    assert torch.equal(rows[0], rows[-1])
    assert len({tuple(row.tolist()) for ids in rows for row in ids}) > len(found)


def test_a_number_of_parts_below_none_is_refused() -> None:
    with pytest.raises(ValueError, match="apart -1: expected a number of parts"):
        PretrainingConfig(apart=-1)


def _are_of(images: torch.Tensor, found: Descriptions, product: int) -> bool:
    """Whether all images are those of one product."""
    rows = found.pictures.rows_of(np.array([product]), np.ones((1, int(found.pictures.counts[product])), bool))
    own = to_float(torch.from_numpy(found.pictures.pixels[rows]))
    return all(any(torch.equal(image, one) for one in own) for image in images)
