from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.artifacts import Artifact
from models.encoder.config import EncoderConfig, TinyConfig
from models.encoder.factory import new_encoder
from models.inference import Embedder
from models.training.captioning import PretrainingConfig, pretrain_encoder
from models.training.checkpoints import Checkpoints, Resumed
from models.training.contrastive import ContrastiveObjective, TrainingConfig, train_encoder
from models.training.loop import Batches, Optimizers, Run, ahead, step_seed
from models.training.pairs import read_pairs
from models.training.stages import stage_config
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import EachNote

BEFORE = datetime(2026, 2, 1, tzinfo=UTC)
TINY = EncoderConfig(
    tiny=TinyConfig(tower="test_resnet", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2),
    image_height=32,
    image_width=32,
    dimension=16,
)
WHOLE: dict[str, Any] = {"steps": 8, "batch_size": 4, "frozen_tower": 0.0, "item_images": 2, "threads": 1}
"""One thread: with another number of them sums round differently, and processes differ in how many they start with."""
STAGES: dict[int, Any] = {
    0: PretrainingConfig(TINY, **WHOLE, chunk=3),
    1: TrainingConfig(TINY, **WHOLE, prefixes=(8,), text_dropout=0.3, precision="float32"),
    2: TrainingConfig(TINY, **WHOLE, stage=2, loss="circle", hard_negatives=2, queue=10, chunk=3),
}
KILLED = """
import time
from dataclasses import replace
from pathlib import Path
from moonlake.progress import EachNote

def stop(at):
    if at.step == 5:
        Path(flag).touch()
        time.sleep(600)

train(lake, config, folder, before=before, parent=parent, run=replace(run, progress=EachNote(stop)))
"""


def apart(script: Path, **given: Any) -> Any:
    """A process of its own that runs a script with these names given."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["models.training.contrastive", "models.training.captioning"])
    process = context.Process(target=runpy.run_path, args=(str(script), given))
    process.start()
    return process


def train_of(stage: int) -> Callable[..., Artifact]:
    return train_encoder if stage else pretrain_encoder


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_run_that_was_killed_goes_on_to_the_same_loss_and_vectors(
    stocked: Lake, tmp_path: Path, stage: int, picture: Callable[[tuple[int, int, int], int], bytes]
) -> None:
    parent = None
    if stage == 2:
        parent = tmp_path / "parent"
        train_encoder(stocked, replace(STAGES[1], steps=1), parent, before=BEFORE)
    run = Run(tmp_path / "run", checkpoint_steps=2)
    given = {"lake": stocked, "config": STAGES[stage], "folder": tmp_path / "killed", "before": BEFORE, "run": run}
    given |= {"parent": parent, "train": train_of(stage), "flag": str(tmp_path / "flag")}
    (tmp_path / "killed.py").write_text(KILLED)
    process = apart(tmp_path / "killed.py", **given)
    while not (tmp_path / "flag").exists():
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [file.name for file in sorted((tmp_path / "run/checkpoints").glob("*.pt"))] == [
        "step-000000002.pt",
        "step-000000004.pt",
    ]
    steps: list[int] = []
    train = train_of(stage)
    watched = replace(run, progress=EachNote(lambda at: steps.append(at.step)))
    resumed = train(stocked, STAGES[stage], tmp_path / "killed", before=BEFORE, parent=parent, run=watched)
    unbroken = train(stocked, STAGES[stage], tmp_path / "unbroken", before=BEFORE, parent=parent)
    assert steps == [5, 6, 7, 8]
    assert resumed.metrics["loss"] == unbroken.metrics["loss"]
    assert resumed.files == unbroken.files  # the hash of every file: weights too
    embedders = [Embedder.open(tmp_path / name) for name in ("killed", "unbroken")]
    red = picture((220, 30, 30), 99)
    again, once = (embedder.embed(["red", None], [[], [red]]) for embedder in embedders)
    np.testing.assert_array_equal(again, once)
    assert not (tmp_path / "run/checkpoints").exists()
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_checkpoint_of_another_run_is_refused_by_what_differs_and_fresh_starts_anew(
    stocked: Lake, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", checkpoint_steps=1)

    def stop(at: Any) -> None:
        if at.step == 3:
            raise KeyboardInterrupt

    config = STAGES[1]
    with pytest.raises(KeyboardInterrupt):
        train_encoder(stocked, config, tmp_path / "a", before=BEFORE, run=replace(run, progress=EachNote(stop)))
    other = replace(config, learning_rate=0.5)
    with pytest.raises(InputError, match=r"config.learning_rate was 0.003, is 0.5: .* --fresh"):
        train_encoder(stocked, other, tmp_path / "a", before=BEFORE, run=run)
    with pytest.raises(InputError, match=r"another run: data was \w+, is \w+"):
        train_encoder(stocked, config, tmp_path / "a", before=datetime(2026, 1, 1, 12, tzinfo=UTC), run=run)
    steps: list[int] = []
    anew = replace(run, fresh=True, progress=EachNote(lambda at: steps.append(at.step)))
    train_encoder(stocked, replace(other, learning_rate=1e-3), tmp_path / "a", before=BEFORE, run=anew)
    assert steps == list(range(1, 9))


def test_two_checkpoints_are_kept_and_an_unfinished_one_is_not_read(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path / "kept", {"config": {"a": [1, 2]}})
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        checkpoints.save(Resumed(step, [0.5] * step, 1.0), model, optimizer)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    torn = tmp_path / "kept" / ".0a1b2c3d-step-000000004.pt"
    torn.write_bytes(b"torn")
    nn.init.zeros_(model.weight)
    assert checkpoints.resume(model, optimizer) == Resumed(3, [0.5] * 3, 1.0)
    assert model.weight.tolist() == [[3.0, 3.0]]
    checkpoints.save(Resumed(5, [0.5] * 5, 1.0), model, optimizer)
    assert not torn.exists()


def test_every_pass_reads_each_sample_once_in_another_order_and_a_step_needs_no_step_before_it() -> None:
    batches = Batches(10, 3, seed=1)
    passes = [np.concatenate([batches.of(step) for step in steps]) for steps in ((1, 2, 3), (4, 5, 6))]
    assert all(len(set(one.tolist())) == 9 for one in passes)
    assert passes[0].tolist() != passes[1].tolist()
    np.testing.assert_array_equal(Batches(10, 3, seed=1).of(5), passes[1][3:6])
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400


def test_batches_come_in_order_and_an_error_in_their_thread_reaches_the_step() -> None:
    assert list(ahead(lambda step: step * step, range(3, 9))) == [step * step for step in range(3, 9)]
    assert list(ahead(lambda step: step, range(3, 3))) == []

    def broken(step: int) -> int:
        if step == 4:
            raise InputError("no such picture")
        return step

    coming = ahead(broken, range(3, 9))
    assert next(coming) == 3
    with pytest.raises(InputError, match="no such picture"):
        next(coming)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_tower_language_model_and_head_learn_at_their_own_rates(optimizer: Any, stocked: Lake) -> None:
    config = replace(STAGES[1], optimizer=optimizer, tower_rate=0.5, language_rate=0.125, learning_rate=0.5)
    encoder = new_encoder(config.encoder, ["red shirt"])
    objective = ContrastiveObjective(encoder, read_pairs(stocked, BEFORE, config.encoder.image_size), config)
    optimizers = Optimizers(objective, config)
    optimizers.set_rate(0.5)
    rate = {id(one): group["lr"] for each in optimizers.all for group in each.param_groups for one in group["params"]}
    full = 0.5 * (config.muon_rate if optimizer == "muon" else 0.5)
    model = encoder.backbone.model.model
    assert rate[id(encoder.head.weight)] == full
    assert rate[id(next(encoder.backbone.tower().parameters()))] == 0.5 * full
    assert rate[id(model.multi_modal_projector.linear_1.weight)] == 0.125 * full
    assert rate[id(model.language_model.layers[0].mlp.up_proj.weight)] == 0.125 * full
    assert rate[id(model.language_model.embed_tokens.weight)] == 0.25  # a table stays with AdamW, at its full rate


def test_a_configuration_file_is_held_against_its_stage() -> None:
    good = {"steps": 3, "learning_rate": 1, "prefixes": [8, 16], "encoder": {"tiny": {"tower": "x"}}}
    config = stage_config(TrainingConfig, good, where="a.toml")
    assert (config.steps, config.prefixes, config.encoder.tiny.tower) == (3, (8, 16), "x")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"step": 3}, "unknown keys step"),
        ({"encoder": {"tiny": {"towers": "x"}}}, "encoder: tiny: unknown keys towers"),
        ({"steps": "many"}, "steps|not supported"),
        ({"augment": 1}, "augment is 1, expected bool"),
        ({"loss": "circel"}, "expected 1 or 2, and info_nce or circle"),
        ({"batch_size": 1}, "batch_size 2"),
    ]
    for values, message in wrong:
        with pytest.raises(InputError, match=rf"a.toml.*({message})"):
            stage_config(TrainingConfig, values, where="a.toml")


def test_a_run_that_cannot_fit_is_refused_with_figures() -> None:
    from models.training import memory_probe

    probe = memory_probe.Probe(
        lambda copies: torch.ones(copies, 1000, requires_grad=True).exp(), 1, 10**12, 0, "lower chunk"
    )
    with pytest.raises(
        InputError, match=r"needs about \d+\.\d GiB, .* free: states of 1000000000000 prompts .*lower chunk"
    ):
        memory_probe.require_room(nn.Linear(2, 2), probe, 0)
    memory_probe.require_room(nn.Linear(2, 2), replace(probe, at_once=10), 0)


def test_the_memory_of_a_step_is_measured_by_prompt() -> None:
    from models.training.memory_probe import saved_bytes

    layer = nn.Linear(100, 50)
    inputs = [torch.ones(copies * 8, 100) for copies in (1, 2)]
    once, twice = (saved_bytes(layer, lambda _, x=x: layer(x).tanh(), 1) for x in inputs)  # type: ignore[misc]
    assert twice - once == 8 * (100 + 50) * 4  # the input for the weight's gradient, the output for tanh's
