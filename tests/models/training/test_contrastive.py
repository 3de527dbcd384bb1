from __future__ import annotations

import multiprocessing
import runpy
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifacts import read_artifact
from models.encoder.config import ENCODER, EncoderConfig, TinyConfig
from models.encoder.factory import new_encoder
from models.inference import Embedder
from models.training.captioning import PretrainingConfig, pretrain_encoder
from models.training.contrastive import STALENESS_STEPS, ContrastiveObjective, TrainingConfig, train_encoder
from models.training.loop import Run
from models.training.negatives import repel_mask
from models.training.pairs import read_pairs
from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake

T0 = datetime(2026, 1, 1, tzinfo=UTC)
Picture = Callable[[tuple[int, int, int], int], bytes]
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "yellow": (220, 220, 30),
}
TINY = EncoderConfig(
    tiny=TinyConfig(tower="test_resnet", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    image_height=32,
    image_width=32,
    dimension=16,
)
CONFIG = TrainingConfig(TINY, steps=2, batch_size=4, frozen_tower=0.0)


def test_an_artifact_embeds_texts_and_images_into_unit_vectors_of_the_storage_type(
    stocked: Lake, tmp_path: Path, picture: Picture
) -> None:
    train_encoder(stocked, CONFIG, tmp_path / "encoder", before=T0 + timedelta(days=9))
    embedder = Embedder.open(tmp_path / "encoder")
    red = picture(COLOURS["red"], 1)
    vectors = embedder.embed(["red shirt", None, "red shirt"], [[red, red], [red], []])
    assert vectors.shape == (3, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    np.testing.assert_array_equal(vectors, vectors.astype(np.float16).astype(np.float32))


def test_the_same_seed_and_data_give_the_same_space_and_another_seed_another(stocked: Lake, tmp_path: Path) -> None:
    before = T0 + timedelta(days=9)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_encoder(stocked, replace(CONFIG, seed=seed), tmp_path / name, before=before)
    a, b, c = (Embedder.open(tmp_path / name).space.space_id for name in "abc")
    assert a == b
    assert a != c


def test_pairs_from_before_on_are_not_read(stocked: Lake, tmp_path: Path) -> None:
    artifact = train_encoder(stocked, CONFIG, tmp_path / "encoder", before=T0 + timedelta(days=1))
    assert artifact.trained_until == T0
    assert artifact.metrics["pairs"] == 4


def test_the_artifact_names_the_table_versions_that_it_was_made_from(stocked: Lake, tmp_path: Path) -> None:
    train_encoder(stocked, CONFIG, tmp_path / "encoder", before=T0 + timedelta(days=9))
    artifact = read_artifact(tmp_path / "encoder", ENCODER)
    assert artifact.tables == {"contrastive_pairs": 0, "products": 0, "queries": 0, "product_images": 0}


def test_no_steps_leave_an_untrained_baseline(stocked: Lake, tmp_path: Path) -> None:
    artifact = train_encoder(stocked, replace(CONFIG, steps=0), tmp_path / "encoder", before=T0 + timedelta(days=9))
    assert "loss" not in artifact.metrics
    assert Embedder.open(tmp_path / "encoder").embed(["red"], [[]]).shape == (1, 16)


def test_training_brings_queries_to_their_products_and_away_from_others(
    stocked: Lake, tmp_path: Path, picture: Picture
) -> None:
    def margin(name: str, steps: int) -> float:
        """Mean cosine of fresh queries to their own product, less that to the others."""
        config = replace(CONFIG, steps=steps, augment=False, tower_rate=1.0)
        train_encoder(stocked, config, tmp_path / name, before=T0 + timedelta(days=9))
        embedder = Embedder.open(tmp_path / name)
        fresh = [[picture(colour, 90 + at)] for at, colour in enumerate(COLOURS.values())]
        stock = [[picture(colour, 10 * at)] for at, colour in enumerate(COLOURS.values())]
        queries = embedder.embed([None] * 4, fresh)
        cosine = queries @ embedder.embed([f"{colour} shirt" for colour in COLOURS], stock).T
        own = np.eye(4, dtype=bool)
        return float(cosine[own].mean() - cosine[~own].mean())

    assert margin("trained", 40) > margin("untrained", 0) + 0.3


def test_training_without_pairs_says_what_to_do_and_leaves_nothing(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 readable pairs .* build pairs first"):
        train_encoder(lake, CONFIG, tmp_path / "encoder", before=T0)
    assert not (tmp_path / "encoder").exists()


def test_a_changed_file_of_an_artifact_is_refused(stocked: Lake, tmp_path: Path) -> None:
    train_encoder(stocked, replace(CONFIG, steps=0), tmp_path / "encoder", before=T0 + timedelta(days=9))
    (tmp_path / "encoder" / "head.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match=r"head.safetensors is missing or was changed"):
        Embedder.open(tmp_path / "encoder")
    with pytest.raises(NotFound, match="no encoder artifact"):
        Embedder.open(tmp_path)


def test_a_hostile_image_is_left_out_and_the_batch_lives_on(stocked: Lake, tmp_path: Path, picture: Picture) -> None:
    train_encoder(stocked, replace(CONFIG, steps=0), tmp_path / "encoder", before=T0 + timedelta(days=9))
    embedder = Embedder.open(tmp_path / "encoder")
    good = picture(COLOURS["blue"], 5)
    vectors, readable = embedder.embed_readable([None, None, "x"], [[b"not an image", good], [b"\x89PNG"], [b""]])
    assert readable.tolist() == [True, False, True]
    np.testing.assert_allclose(vectors[[0]], embedder.embed([None], [[good]]), atol=2e-3)
    assert not vectors[1].any()
    with pytest.raises(InputError, match=r"1 of 2 rows hold no text and no readable image: rows \[1\]"):
        embedder.embed(["x", None], [[], [b"not an image"]])


def test_a_vector_does_not_depend_on_its_batch(stocked: Lake, tmp_path: Path, picture: Picture) -> None:
    train_encoder(stocked, CONFIG, tmp_path / "encoder", before=T0 + timedelta(days=9))
    embedder = Embedder.open(tmp_path / "encoder")
    texts = ["red", "a much longer title of a product in red and blue", None, "blue"]
    images = [[], [picture(COLOURS["red"], 1)], [picture(COLOURS["blue"], 2)] * 3, []]
    together = embedder.embed(texts, images)
    alone = np.concatenate([embedder.embed([text], [row]) for text, row in zip(texts, images, strict=True)])
    np.testing.assert_allclose(together, alone, atol=2e-3)


def test_only_as_many_images_are_read_as_the_space_says(stocked: Lake, tmp_path: Path, picture: Picture) -> None:
    config = replace(CONFIG, steps=0, encoder=replace(TINY, max_images=1))
    train_encoder(stocked, config, tmp_path / "encoder", before=T0 + timedelta(days=9))
    embedder = Embedder.open(tmp_path / "encoder")
    red, blue = picture(COLOURS["red"], 1), picture(COLOURS["blue"], 1)
    first, second = embedder.embed([None, None], [[red], [red, blue]])
    np.testing.assert_array_equal(first, second)


def test_a_frozen_tower_keeps_weights_and_statistics_and_the_rest_learns(stocked: Lake, tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        train_encoder(stocked, replace(CONFIG, **changes), tmp_path / name, before=T0 + timedelta(days=9))
        encoder = Embedder.open(tmp_path / name).encoder
        return encoder.backbone.tower().state_dict(), encoder.head.weight

    before, head = weights("untrained", steps=0)
    frozen, learnt = weights("frozen", frozen_tower=1.0)
    partly, _ = weights("partly", frozen_tower=0.5)
    assert all(torch.equal(before[name], frozen[name]) for name in before)
    assert not torch.equal(head, learnt)
    names = list(before)
    assert torch.equal(before[names[0]], partly[names[0]])
    assert not all(torch.equal(before[name], partly[name]) for name in names)


def test_text_dropout_hides_the_text_of_products_that_have_an_image(stocked: Lake) -> None:
    pairs = read_pairs(stocked, T0 + timedelta(days=9), TINY.image_size)
    every = np.arange(len(pairs))
    shown = [pairs.items(every, 2, share, np.random.default_rng(0)).texts for share in (0.0, 1.0)]
    assert all(shown[0])
    assert not any(shown[1])


STAGE_2 = replace(
    CONFIG, stage=2, loss="circle", hard_negatives=2, queue=6, batch_norm="frozen", precision="float32", prefixes=(8,)
)


def objective_of(lake: Lake, config: TrainingConfig) -> ContrastiveObjective:
    pairs = read_pairs(lake, T0 + timedelta(days=9), TINY.image_size, config.stage)
    torch.manual_seed(0)
    return ContrastiveObjective(new_encoder(TINY, ["red shirt", "blue shirt"]), pairs, config)


def test_cached_gradients_equal_plain_ones_with_hard_negatives_and_a_queue(stocked: Lake) -> None:
    found = []
    for chunk in (0, 3):
        objective = objective_of(stocked, replace(STAGE_2, chunk=chunk))
        for step in (1, 2):
            objective.model.zero_grad()
            prepared = objective.prepare(step)
            loss = objective.backward(prepared)
            objective.after(step, prepared)
        assert len(prepared.chunks) > 1 if chunk else len(prepared.chunks) == 1
        found.append([loss, *(one.grad for one in objective.model.parameters() if one.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for plain, cached in zip(*found, strict=True):
        torch.testing.assert_close(plain, cached, atol=1e-4, rtol=1e-3)


def test_hard_negatives_and_the_queue_make_the_loss_harder_and_twins_do_not(stocked: Lake) -> None:
    def loss(**changes: Any) -> float:
        objective = objective_of(stocked, replace(STAGE_2, loss="info_nce", batch_size=2, **changes))
        for step in (1, 2, 3):
            prepared = objective.prepare(step)
            found = objective.backward(prepared)
            objective.after(step, prepared)
        return float(found)

    plain = loss(hard_negatives=0, queue=0)
    assert loss(hard_negatives=3, queue=0) > plain
    assert loss(hard_negatives=0, queue=6) > plain
    objective = objective_of(stocked, STAGE_2)
    prepared = objective.prepare(1)
    objective.backward(prepared)
    objective.after(1, prepared)
    assert objective.queue is not None
    repel = repel_mask(prepared.groups, objective.queue.groups)
    assert not repel.diagonal().any()  # a product that the queue holds does not repel its own query


def test_the_staleness_of_the_queue_is_one_while_the_encoder_stands_still(stocked: Lake) -> None:
    objective = objective_of(stocked, STAGE_2)
    for step in range(1, STALENESS_STEPS):
        if step > STALENESS_STEPS - 4:
            prepared = objective.prepare(step)
            objective.backward(prepared)
            objective.after(step, prepared)
    prepared = objective.prepare(STALENESS_STEPS)
    kept = {name: value.clone() for name, value in objective.model.state_dict().items()}
    figures = objective.after(STALENESS_STEPS, prepared)
    assert figures["queue_staleness"] == pytest.approx(1, abs=1e-4)
    assert all(
        torch.equal(kept[name], value) for name, value in objective.model.state_dict().items() if "queue" not in name
    )
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert objective.after(STALENESS_STEPS, prepared)["queue_staleness"] < 0.999


TWO = """
import os
os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"})
from models.training.distributed import joined
with joined():
    for train, config, folder, parent in runs:
        train(lake, config, folder, before=before, parent=parent, run=run)
"""


def test_two_processes_come_to_the_weights_of_one(stocked: Lake, tmp_path: Path) -> None:
    before = T0 + timedelta(days=9)
    steps: dict[str, Any] = {"steps": 4, "batch_size": 7, "frozen_tower": 0.0, "learning_rate": 1e-3}
    exact: dict[str, Any] = {"precision": "float32", "batch_norm": "frozen"}
    stage_1 = TrainingConfig(**steps, **exact, prefixes=(8,), item_images=2)
    stage_2 = TrainingConfig(**steps, **exact, stage=2, hard_negatives=2, queue=10, chunk=3)

    def runs(name: str) -> list[tuple[Any, Any, Path, Path | None]]:
        at = tmp_path / name
        return [
            (pretrain_encoder, PretrainingConfig(TINY, **{**steps, "batch_size": 3}, **exact), at / "0", None),
            (train_encoder, stage_1, at / "1", tmp_path / "one" / "0"),
            (train_encoder, stage_2, at / "2", tmp_path / "one" / "0"),
        ]

    for train, config, folder, parent in runs("one"):
        train(stocked, config, folder, before=before, parent=parent)
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["models.training.contrastive", "models.training.captioning"])
    given = {"port": port, "runs": runs("two"), "lake": stocked, "before": before, "run": Run(tmp_path / "run")}
    workers: list[Any] = [
        context.Process(target=runpy.run_path, args=(str(tmp_path / "two.py"), {**given, "rank": rank}))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    pretrain_encoder(stocked, replace(runs("one")[0][1], steps=0), tmp_path / "start", before=before)
    for stage in "012":
        start = weights(tmp_path / "start" if stage == "0" else tmp_path / "one" / "0")
        one, two = (weights(tmp_path / name / stage) for name in ("one", "two"))
        assert float((one - two).norm() / (one - start).norm()) < 0.05  # Adam turns rounding into whole steps
        losses = [read_artifact(tmp_path / name / stage, ENCODER).metrics["loss"] for name in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in Embedder.open(folder).encoder.parameters()])
