"""Run as a program, this file is the second of two processes that gather from each other: FOLDER WAY..."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.training.cached_gradients import cached_step
from models.training.losses import InfoNCE, Matryoshka
from models.training.negatives import NegativeQueue, gathered, repel_mask

CASES = max(1, settings().max_examples // 3)
PAIRS, HARD = 7, 5
OF_RANK = (slice(0, 5), slice(5, 7))
"""The rows of each process: not as many in one as in the other, and all hard negatives in the first."""


@settings(max_examples=CASES, deadline=None)
@given(st.data())
def test_rows_repel_unless_they_share_a_group_in_some_column(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 3))
    row = st.lists(st.integers(-1, 2), min_size=columns, max_size=columns)
    a, b = (data.draw(st.lists(row, min_size=1, max_size=4)) for _ in range(2))
    fast = repel_mask(torch.tensor(a), torch.tensor(b))
    assert fast.shape == (len(a), len(b))
    for i in range(len(a)):
        for j in range(len(b)):
            shared = any(a[i][g] == b[j][g] and a[i][g] != -1 for g in range(columns))
            assert bool(fast[i, j]) == (not shared), (i, j)


def test_groups_of_different_kinds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        repel_mask(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))


def rows(start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, groups and contents that say which row they are."""
    numbers = torch.arange(start, start + count)
    return numbers[:, None] + torch.tensor([0.25, 0.5]), torch.stack([numbers, 2 * numbers, -numbers], 1), 3 * numbers


def held(queue: NegativeQueue) -> list[list[float]]:
    """The queue's contents, a list for each row, sorted: its order does not matter."""
    return sorted(torch.cat([queue.vectors, queue.groups, queue.contents[:, None]], 1).tolist())


@settings(max_examples=CASES, deadline=None)
@given(size=st.integers(1, 6), pushes=st.lists(st.integers(0, 9), max_size=8), kill_after=st.integers(0, 8))
def test_the_queue_is_a_deque_also_when_it_goes_on_from_its_state(
    size: int, pushes: list[int], kill_after: int
) -> None:
    queue, slow, start = NegativeQueue(size, 2, 3), deque[list[float]](maxlen=size), 0
    for number, count in enumerate(pushes):
        if number == kill_after:
            state, queue = queue.state_dict(), NegativeQueue(size, 2, 3)
            queue.load_state_dict(state)
        vectors, groups, contents = rows(start, count)
        queue.push(vectors, groups, contents)
        slow.extend(torch.cat([vectors, groups, contents[:, None]], 1).tolist())
        start += count
        assert len(queue) == len(slow)
        assert held(queue) == sorted(slow)


def test_what_is_pushed_keeps_neither_graph_nor_a_smaller_type() -> None:
    queue = NegativeQueue(4, 2, 3)
    vectors, groups, contents = rows(0, 3)
    queue.push(vectors.bfloat16().requires_grad_(), groups, contents)
    assert queue.vectors.dtype == torch.float32
    assert not queue.vectors.requires_grad
    assert torch.equal(queue.vectors, vectors)


def test_an_empty_queue_changes_no_loss_and_a_full_one_takes_no_gradient() -> None:
    loss, queue = InfoNCE(0.2, learn_temperature=False), NegativeQueue(4, 2, 3)
    vectors, groups, contents = rows(0, 3)
    queries = F.normalize(vectors, dim=1).requires_grad_()
    repel = repel_mask(groups, groups)

    def with_queue() -> Tensor:
        value: Tensor = loss(queries, queries, repel, queue.vectors, repel_mask(groups, queue.groups))
        return value

    alone = loss(queries, queries, repel)
    assert with_queue() == alone
    queue.push(vectors, groups, contents)  # twins of the batch, every one
    queue.push(-vectors[:1], groups[:1] + 100, contents[:1])
    further = with_queue()
    queue.push(*rows(20, 4))  # before backward: the loss must not read the queue again
    torch.autograd.backward(further)
    assert further > alone
    assert queries.grad is not None


def test_a_queue_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        NegativeQueue(0, 2, 3)


def test_staleness_is_the_mean_cosine_over_the_contents_that_are_held() -> None:
    queue = NegativeQueue(5, 2, 1)
    east, north, north_east = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    assert math.isnan(queue.staleness(torch.tensor([0]), east[None]))
    cached = torch.stack([north, east, north_east, north])  # content 7 twice, and once more when it has left
    queue.push(north[None], torch.tensor([[0]]), torch.tensor([7]))
    queue.push(torch.zeros(1, 2), torch.tensor([[0]]), torch.tensor([5]))
    queue.push(cached, torch.zeros(4, 1, dtype=torch.int64), torch.tensor([7, 8, 7, 9]))
    fresh = queue.staleness(torch.tensor([8, 9]), torch.stack([3 * east, north]))
    assert fresh == pytest.approx(1)
    mixed = queue.staleness(torch.tensor([7, 8, 4]), torch.stack([north_east, north, east]).bfloat16())
    assert mixed == pytest.approx((math.sqrt(0.5) + 1 + 0) / 3, rel=1e-4)
    assert math.isnan(queue.staleness(torch.tensor([4]), east[None]))


def test_a_single_process_gathers_its_own_rows() -> None:
    tensor = torch.ones(2, 3)
    assert gathered(tensor) is tensor


class Trial(nn.Module):
    """A part of one large batch, or all of it, in float64."""

    def __init__(self, own: slice) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.own, self.layer = own, nn.Linear(6, 4)
        self.loss = Matryoshka(InfoNCE(0.3, learn_temperature=True), [2, 4])
        self.double()
        nn.init.normal_(self.layer.weight, generator=draws)
        nn.init.normal_(self.layer.bias, generator=draws)
        self.inputs = [torch.randn(count, 6, generator=draws, dtype=torch.float64) for count in (PAIRS, PAIRS, HARD)]
        self.groups = [torch.randint(-1, 5, (count, 2), generator=draws) for count in (PAIRS, HARD)]

    def encode(self, chunk: slice) -> tuple[Tensor, ...]:
        """Queries, items and hard negatives of a chunk, in one pass."""
        parts = [part[chunk] for part in self.inputs]
        vectors = F.normalize(self.layer(torch.cat(parts)), dim=1)
        return torch.split(vectors, [len(part) for part in parts])

    def loss_of(self, queries: Tensor, items: Tensor, hard: Tensor) -> Tensor:
        """The loss of the whole batch, of which only the own rows are given."""
        pairs, further = (gathered(groups[self.own]) for groups in self.groups)
        masks = repel_mask(pairs, pairs), repel_mask(pairs, further)
        value: Tensor = self.loss(gathered(queries), gathered(items), masks[0], gathered(hard), masks[1])
        return value

    def plain(self) -> Tensor:
        loss = self.loss_of(*self.encode(self.own))
        torch.autograd.backward(loss)
        return loss.detach()

    def cached(self) -> Tensor:
        middle = self.own.stop - 1
        return cached_step(self.encode, [slice(self.own.start, middle), slice(middle, self.own.stop)], self.loss_of)

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]


def averaged(rank: int, step: Callable[[Trial], Tensor]) -> dict[str, Any]:
    """Loss and gradients of a step, the gradients averaged over the processes by hand."""
    trial = Trial(OF_RANK[rank])
    loss = step(trial)
    for gradient in trial.gradients():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return {"loss": loss, "gradients": trial.gradients()}


def gathered_rows(rank: int) -> list[Tensor]:
    """Row numbers, of integers and of rough vectors."""
    own = OF_RANK[rank]
    return [gathered(torch.arange(PAIRS)[own]), gathered(torch.arange(2 * PAIRS).view(PAIRS, 2)[own].bfloat16())]


def losses_that_differ(rank: int) -> Tensor:
    """The gradient of a process's row when the other's loss weighs it differently."""
    row = torch.full((1, 2), float(rank), requires_grad=True)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.autograd.backward((rank + 1) * (gathered(row) * weights).sum())
    assert row.grad is not None
    return row.grad


WAYS: dict[str, Callable[[int], Any]] = {
    "rows": gathered_rows,
    "plain": lambda rank: averaged(rank, Trial.plain),
    "cached": lambda rank: averaged(rank, Trial.cached),
    "differ": losses_that_differ,
}


def part_of(rank: int, folder: Path, ways: Sequence[str]) -> dict[str, Any]:
    """The result of one process, in step with the other."""
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    try:
        return {way: WAYS[way](rank) for way in ways}
    finally:
        dist.destroy_process_group()


def in_two_processes(folder: Path, *ways: str) -> list[dict[str, Any]]:
    """The results of this process and another one."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        other = subprocess.Popen([sys.executable, __file__, str(folder), *ways])
        try:
            own = part_of(0, folder, ways)
            assert other.wait(100) == 0
        finally:
            other.kill()
    return [own, torch.load(folder / "other.pt")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two processes."""
    return in_two_processes(tmp_path_factory.mktemp("two"), "rows", "plain", "cached", "differ")


def test_rows_are_gathered_in_the_order_of_the_ranks_however_many_each_has(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert torch.equal(found["rows"][0], torch.arange(PAIRS))
        assert torch.equal(found["rows"][1], torch.arange(2 * PAIRS).view(PAIRS, 2).bfloat16())


@pytest.mark.parametrize("way", ["plain", "cached"])
def test_the_mean_of_two_processes_gradients_is_that_of_one_large_batch(two: list[dict[str, Any]], way: str) -> None:
    large = Trial(slice(0, PAIRS))
    loss = large.plain()
    assert len(large.gradients()) == 3  # weight, bias, temperature
    for found in two:
        torch.testing.assert_close(found[way]["loss"], loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(found[way]["gradients"], large.gradients(), rtol=1e-7, atol=1e-12)


def test_a_row_takes_the_gradient_of_every_process_s_own_loss(two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two):
        assert found["differ"].tolist() == [[3 * (1 + 2 * rank), 3 * (2 + 2 * rank)]]  # weight 1 + weight 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(part_of(1, Path(sys.argv[1]), sys.argv[2:]), Path(sys.argv[1]) / "other.pt")
