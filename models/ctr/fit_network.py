"""Fit the network of the click model: epochs until the validation loss grows, from the last checkpoint if there is one.

A checkpoint holds everything that the rest of the run follows from, so that a run that was killed and goes on ends, on
a CPU and with as many threads, with the weights of one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.ctr.config import CtrConfig
from models.ctr.features import UNKNOWN, EncodedRows
from models.ctr.network import CtrNetwork
from models.evaluation.click_metrics import log_loss
from models.training.checkpoints import Identity, Resumed
from models.training.loop import Run
from moonlake.arrays import Bools, Float32s, Int64s
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError

SAVING_SHARE = 0.05
"""Of a run's time that its checkpoints may take: tables of millions of rows are written less often."""

AfterBatch = Callable[[int, int, float, float], None]
"""Called with the epoch, the samples of the run so far, the batch's loss and the seconds of the run so far."""


def descend(
    network: CtrNetwork,
    rows: EncodedRows,
    clicked: Float32s,
    fitted: Bools,
    snapshot: Snapshot | None,
    config: CtrConfig,
    *,
    run: Run,
    identity: Identity,
    after_batch: AfterBatch,
) -> dict[str, float]:
    """Figures of training a network in place on the rows where `fitted` [n] is true, until the other rows stop it.

    The network is left at the epoch of its least validation loss.

    Args: identity: what decides of the weights beside the configuration, for the checkpoints of `run`.
    Raises: InputError: the loss is no number any more, or a checkpoint is of another run.
    """
    training, validation = np.flatnonzero(fitted), np.flatnonzero(~fitted)
    state = _State(network, config)
    checkpoints = run.checkpoints(identity)
    resumed = checkpoints.resume(network, state) if checkpoints else Resumed(0, [], 0.0)
    vectors = None if snapshot is None else snapshot.vectors
    step, started = resumed.step, time.monotonic() - resumed.seconds
    saved, pause = time.monotonic(), run.checkpoint_seconds
    while state.batches or (state.epoch < config.max_epochs and state.epoch - state.best_epoch <= config.patience):
        order = state.order(training)
        network.train()
        for start in range(state.batches * config.batch_size, len(order), config.batch_size):
            chosen = order[start : start + config.batch_size]
            batch = rows.batch(chosen, config.behavior_length, vectors, config.nearest)
            batch = batch._replace(ids=_drop_ids(batch.ids, config.id_dropout, state.rng))
            state.loss = _step(state.optimizers, network(batch), torch.from_numpy(clicked[chosen]))
            step, state.batches, state.samples = step + 1, state.batches + 1, state.samples + len(chosen)
            now = time.monotonic()
            after_batch(state.epoch, state.samples, state.loss, now - started)
            if checkpoints and (_falls_on(step, run.checkpoint_steps) or now - saved >= pause):
                checkpoints.save(Resumed(step, [], now - started), network, state)
                saved = time.monotonic()
                pause = max(run.checkpoint_seconds, (saved - now) / SAVING_SHARE)
        if not math.isfinite(state.loss):
            raise InputError(
                f"training diverged in epoch {state.epoch}: lower learning_rate, now {config.learning_rate}"
            )
        state.close_epoch(log_loss(clicked[validation], network.probabilities(rows, snapshot, validation)), network)
    if state.best is not None:
        network.load_state_dict(state.best)
    network.eval()
    return {
        "validation_log_loss": state.best_loss,
        "epochs": float(state.best_epoch),
        "training_rows": float(len(training)),
        "validation_rows": float(len(validation)),
    }


class _State:
    """The state of a run, but for the weights of the network; `state_dict` is all of it.

    Attributes:
        batches: done in the epoch that is under way; 0 between epochs.
        best: weights after `best_epoch`, which had the least validation loss; None in the first epoch.
    """

    def __init__(self, network: CtrNetwork, config: CtrConfig) -> None:
        self.optimizers = optimizers(network, config)
        self.rng = np.random.default_rng(config.seed)
        self._before_order = self.rng.bit_generator.state
        self.epoch, self.batches, self.samples, self.loss = 0, 0, 0, math.nan
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_epoch = math.inf, 0

    def order(self, training: Int64s) -> Int64s:
        """The rows [n] in the order of the epoch that begins, or of the one that a checkpoint is in the middle of."""
        if not self.batches:
            self.epoch += 1
            self._before_order = self.rng.bit_generator.state
            return self.rng.permutation(training)
        again = np.random.default_rng()
        again.bit_generator.state = self._before_order
        return again.permutation(training)

    def close_epoch(self, validation_loss: float, network: CtrNetwork) -> None:
        """Keep the weights if they are the best so far."""
        self.batches = 0
        if validation_loss < self.best_loss:
            self.best, self.best_loss = copy.deepcopy(network.state_dict()), validation_loss
            self.best_epoch = self.epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {
            **plain,
            "optimizers": [one.state_dict() for one in self.optimizers],
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in _PLAIN:
            setattr(self, name, state[name])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])


_PLAIN = ("epoch", "batches", "samples", "loss", "best", "best_loss", "best_epoch", "_before_order")


def optimizers(network: nn.Module, config: CtrConfig) -> list[torch.optim.Optimizer]:
    """Adam; and for tables with sparse gradients one that touches the rows of a batch only, without weight decay."""
    tables = [one.weight for one in network.modules() if isinstance(one, nn.Embedding) and one.sparse]
    apart = {id(table) for table in tables}
    others = [one for one in network.parameters() if id(one) not in apart]
    adam = torch.optim.Adam(others, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    return [adam, torch.optim.SparseAdam(tables, config.learning_rate)] if tables else [adam]


def _step(optimizers: list[torch.optim.Optimizer], logits: Tensor, clicked: Tensor) -> float:
    """The loss of a batch, after one update by its gradients."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, clicked)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _falls_on(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _drop_ids(ids: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The ids [B, I] with a share of them replaced by the unknown id."""
    return ids.masked_fill(torch.from_numpy(rng.random(ids.shape) < share), UNKNOWN)
