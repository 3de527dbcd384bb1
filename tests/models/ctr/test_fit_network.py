"""A network's training that is killed and goes on ends with the weights of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from models.ctr.config import CtrConfig
from models.ctr.features import FIRST_ID
from models.ctr.model import CtrModel
from models.ctr.network import CtrNetwork
from models.ctr.train import BatchReport, train_ctr
from models.training.loop import Run
from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, EachNote

CONFIG = CtrConfig(model="cube", behavior_length=6, hidden=(8,), batch_size=256, max_epochs=3, patience=5)


class Killed(Exception):
    """The process died."""


@pytest.fixture(scope="module")
def window(world: Any) -> tuple[datetime, datetime]:
    """About eleven batches an epoch."""
    start = world.window[0]
    return start, start + timedelta(days=2)


@pytest.fixture(scope="module")
def train(world: Any, window: tuple[datetime, datetime]) -> Callable[..., CtrModel]:
    """A function that trains on the small window."""

    def on_window(config: CtrConfig, run: Run | None = None, take: Any = None, **other: Any) -> CtrModel:
        snapshot = world.snapshot if config.model == "cube" else None
        stated = {"window": window, **other}
        return train_ctr(
            world.training_set, snapshot, config, run=run, progress=EachNote(take) if take else UNWATCHED, **stated
        )

    return on_window


@pytest.fixture(scope="module")
def unbroken(train: Callable[..., CtrModel]) -> CtrModel:
    return train(CONFIG)


def killing(after: int) -> Callable[[BatchReport], None]:
    """A report that dies after so many batches."""
    seen = []

    def report(batch: BatchReport) -> None:
        seen.append(batch)
        if len(seen) == after:
            raise Killed

    return report


def weights(model: CtrModel) -> dict[str, torch.Tensor]:
    assert isinstance(model.predictor, CtrNetwork)
    return model.predictor.state_dict()


def require_equal(found: CtrModel, expected: CtrModel) -> None:
    assert weights(found).keys() == weights(expected).keys()
    for name, value in weights(expected).items():
        assert torch.equal(weights(found)[name], value), name
    assert found.metrics == expected.metrics


@pytest.mark.parametrize(("every", "deaths"), [(1, [1]), (4, [3, 6]), (3, [17]), (11, [12, 13]), (1, [33])])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    train: Callable[..., CtrModel], unbroken: CtrModel, tmp_path: Path, every: int, deaths: list[int]
) -> None:
    """Killed before the first checkpoint, within an epoch, between epochs, several times, and after the last batch."""
    run = Run(tmp_path / "run", checkpoint_steps=every)
    for after in deaths:
        with pytest.raises(Killed):
            train(CONFIG, run, killing(after))
    torch.rand(7)  # another process has drawn other numbers
    reports: list[BatchReport] = []
    require_equal(train(CONFIG, run, reports.append), unbroken)
    if sum(deaths) > every and deaths != [33]:
        assert reports[0].samples > CONFIG.batch_size
    run.finished()
    assert not list((tmp_path / "run").glob("**/*.pt"))


def test_hashed_tables_go_on_too_with_the_state_of_their_optimizer(
    train: Callable[..., CtrModel], tmp_path: Path
) -> None:
    config = replace(CONFIG, model="din", hashed={"product_id": 5000, "user_id": 1000})
    run = Run(tmp_path / "run", checkpoint_steps=5)
    with pytest.raises(Killed):
        train(config, run, killing(13))
    require_equal(train(config, run), train(config))


def test_a_step_changes_the_rows_of_its_batch_alone_in_a_hashed_table(train: Callable[..., CtrModel]) -> None:
    config = replace(CONFIG, model="id", hashed={"user_id": 50_000}, max_epochs=1, id_dropout=0.0, weight_decay=0.1)
    model = train(config)
    torch.manual_seed(config.seed)
    assert isinstance(model.predictor, CtrNetwork)
    start = CtrNetwork(config, model.features.sizes, model.features.dense_width).state_dict()
    moved = [(value != start[name]).any(-1) for name, value in weights(model).items() if name.startswith("embeddings")]
    user, product = (config.id_features.index(name) for name in ("user_id", "product_id"))
    seen = torch.from_numpy(model.features.hashed["user_id"])
    assert torch.equal(moved[user][FIRST_ID:], seen)
    assert 100 < int(seen.sum()) <= 400
    assert moved[product].float().mean() > 0.99  # weight decay reaches every row of a table that has a vocabulary


def test_a_run_that_is_done_but_not_saved_trains_no_further(
    train: Callable[..., CtrModel], unbroken: CtrModel, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", checkpoint_steps=1)
    train(CONFIG, run)
    reports: list[BatchReport] = []
    require_equal(train(CONFIG, run, reports.append), unbroken)
    assert reports == []


def test_keeping_checkpoints_changes_nothing_and_a_short_run_writes_none(
    train: Callable[..., CtrModel], unbroken: CtrModel, tmp_path: Path
) -> None:
    require_equal(train(CONFIG, Run(tmp_path / "run", checkpoint_seconds=3600.0)), unbroken)
    assert not list(tmp_path.glob("**/*.pt"))


def test_the_checkpoint_of_another_run_is_refused_by_name_and_thrown_away_when_asked_for(
    train: Callable[..., CtrModel], unbroken: CtrModel, tmp_path: Path, window: tuple[datetime, datetime]
) -> None:
    run = Run(tmp_path / "run", checkpoint_steps=1)
    other = replace(CONFIG, learning_rate=0.5)
    with pytest.raises(Killed):
        train(other, run, killing(2))
    with pytest.raises(InputError, match=r"config.learning_rate was 0.5, is 0.001.*--fresh"):
        train(CONFIG, run)
    with pytest.raises(InputError, match="window was"):
        train(other, run, window=(window[0], window[1] - timedelta(hours=1)))
    require_equal(train(CONFIG, replace(run, fresh=True)), unbroken)


def test_a_learning_rate_at_which_nothing_is_a_number_any_more_is_named(train: Callable[..., CtrModel]) -> None:
    with pytest.raises(InputError, match="diverged in epoch 1: lower learning_rate, now 1e"):
        train(replace(CONFIG, model="din", learning_rate=1e30))
