from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.training.cached_gradients import cached_step
from models.training.losses import InfoNCE, Matryoshka

ROWS, HARD = 9, 4
CASES = max(1, settings().max_examples // 4)
Encode = Callable[[slice], tuple[Tensor, ...]]


class Trial(nn.Module):
    """An encoder of queries, items and fewer hard negatives, with a loss that has a parameter of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 5))
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, generator=draws)
        self.loss = Matryoshka(InfoNCE(0.3, learn_temperature=True), [3, 5])
        self.inputs = [torch.randn(rows, 6, generator=draws) for rows in (ROWS, ROWS, HARD)]
        self.repel = torch.rand(ROWS, ROWS + HARD, generator=draws) < 0.7
        self.modes: list[bool] = []

    def encode(self, chunk: slice) -> tuple[Tensor, ...]:
        self.modes.append(torch.is_grad_enabled())
        return tuple(F.normalize(self.layers(rows[chunk]), dim=-1) for rows in self.inputs)

    def loss_of(self, queries: Tensor, items: Tensor, hard: Tensor) -> Tensor:
        return self.loss(queries, items, self.repel[:, :ROWS], hard, self.repel[:, ROWS:])

    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters()]


def plain_step(encode: Encode, chunks: Sequence[slice], loss_of: Callable[..., Tensor]) -> Tensor:
    """The slow twin: the graphs of all chunks at once."""
    loss = loss_of(*(torch.cat(column) for column in zip(*[encode(chunk) for chunk in chunks], strict=True)))
    torch.autograd.backward(loss)
    return loss.detach()


def cut_at(*cuts: int) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise([0, *cuts, ROWS])]


def assert_same_gradients(one: Trial, other: Trial) -> None:
    for left, right in zip(one.gradients(), other.gradients(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@settings(max_examples=CASES, deadline=None)
@given(st.sets(st.integers(1, ROWS - 1)).map(sorted))
def test_any_chunks_give_the_loss_and_the_gradients_of_the_whole_batch(cuts: list[int]) -> None:
    cached, plain = Trial(), Trial()
    loss = cached_step(cached.encode, cut_at(*cuts), cached.loss_of)
    torch.testing.assert_close(loss, plain_step(plain.encode, cut_at(), plain.loss_of))
    assert_same_gradients(cached, plain)
    assert not loss.requires_grad
    assert all(gradient is not None and gradient.any() for gradient in cached.gradients())


def test_every_draw_is_the_same_in_both_passes_and_the_generators_end_as_after_a_plain_step() -> None:
    def run(step: Callable[..., Tensor]) -> tuple[Tensor, Trial, list[float]]:
        torch.manual_seed(3)
        trial, mine = Trial(dropout=0.4), torch.Generator().manual_seed(4)

        def augmented(chunk: slice) -> tuple[Tensor, ...]:
            return tuple(one + 0.3 * torch.rand(one.shape, generator=mine) for one in trial.encode(chunk))

        def noisy_loss(*vectors: Tensor) -> Tensor:
            return trial.loss_of(*vectors) * torch.rand(()) * torch.rand((), generator=mine)

        named = {"generators": [mine]} if step is cached_step else {}
        loss = step(augmented, cut_at(2, 6), noisy_loss, **named)
        return loss, trial, [torch.rand(()).item(), torch.rand((), generator=mine).item()]

    loss, cached, next_draws = run(cached_step)
    expected, plain, expected_draws = run(plain_step)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(cached, plain)
    assert next_draws == expected_draws


def test_the_first_pass_keeps_no_graph_and_the_second_one_chunk_at_a_time() -> None:
    trial, alive, peak = Trial(), 0, 0

    class Kept:
        """Bytes that a graph holds until it is freed."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, peak
            self.tensor, self.size = tensor, tensor.numel()
            alive += self.size
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    def unpack(kept: Kept) -> Tensor:
        return kept.tensor

    def encode(chunk: slice) -> tuple[Tensor, ...]:
        with torch.autograd.graph.saved_tensors_hooks(Kept, unpack):
            return trial.encode(chunk)

    def peak_of(step: Callable[..., Tensor], chunks: Sequence[slice]) -> int:
        nonlocal peak
        peak = alive
        step(encode, chunks, trial.loss_of)
        assert alive == 0
        return peak

    whole, cached = peak_of(plain_step, cut_at(3, 6)), peak_of(cached_step, cut_at(3, 6))
    assert trial.modes == [True] * 3 + [False] * 3 + [True] * 3
    assert cached < whole / 2


def test_a_single_chunk_is_encoded_once() -> None:
    cached, plain = Trial(dropout=0.4), Trial(dropout=0.4)
    torch.manual_seed(5)
    loss = cached_step(cached.encode, [slice(0, ROWS)], cached.loss_of)
    torch.manual_seed(5)
    assert loss == plain_step(plain.encode, [slice(0, ROWS)], plain.loss_of)
    assert cached.modes == [True]
    assert_same_gradients(cached, plain)
    assert not loss.requires_grad


def test_gradients_are_added_to_those_that_are_there() -> None:
    twice, once = Trial(), Trial()
    for _ in range(2):
        cached_step(twice.encode, cut_at(4), twice.loss_of)
    cached_step(once.encode, cut_at(4), once.loss_of)
    for left, right in zip(twice.gradients(), once.gradients(), strict=True):
        assert right is not None
        torch.testing.assert_close(left, 2 * right)


def test_frozen_and_unused_vectors_are_left_alone_as_by_a_plain_step() -> None:
    def run(step: Callable[..., Tensor]) -> list[Tensor | None]:
        used, unused = nn.Linear(6, 5), nn.Linear(6, 5)
        for parameter in (*used.parameters(), *unused.parameters()):
            nn.init.constant_(parameter, 0.5)
        trial = Trial()

        def encode(chunk: slice) -> tuple[Tensor, ...]:
            rows = trial.inputs[0][chunk]
            return used(rows), rows, unused(rows)

        step(encode, cut_at(4), lambda one, frozen, _: (one.sigmoid() * frozen[:, :5]).sum())
        return [parameter.grad for parameter in (*used.parameters(), *unused.parameters())]

    cached, plain = run(cached_step), run(plain_step)
    assert [gradient is None for gradient in cached] == [False, False, True, True]
    torch.testing.assert_close(cached[:2], plain[:2])


def test_under_autocast_around_the_whole_step_the_weights_still_learn() -> None:
    cached, plain = Trial(), Trial()
    with torch.autocast("cpu", torch.bfloat16):
        cached_step(cached.encode, cut_at(4), cached.loss_of)
        plain_step(plain.encode, cut_at(4), plain.loss_of)
    for left, right in zip(cached.gradients(), plain.gradients(), strict=True):
        torch.testing.assert_close(left, right, rtol=0.02, atol=0.002)


def test_a_generator_that_was_not_named_is_refused_and_not_trained_on() -> None:
    trial, hidden = Trial(), torch.Generator().manual_seed(0)

    def encode(chunk: slice) -> tuple[Tensor, ...]:
        return tuple(one * torch.rand(5, generator=hidden) for one in trial.encode(chunk))

    with pytest.raises(RuntimeError, match="generators"):
        cached_step(encode, cut_at(4), trial.loss_of)
    assert all(parameter.grad is None for parameter in trial.layers.parameters())
    cached_step(encode, cut_at(4), trial.loss_of, generators=[hidden])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dropout_on_a_gpu_is_the_same_in_both_passes() -> None:
    def run(step: Callable[..., Tensor]) -> tuple[Trial, Tensor]:
        torch.manual_seed(6)
        trial = Trial(dropout=0.4).cuda()
        trial.inputs, trial.repel = [rows.cuda() for rows in trial.inputs], trial.repel.cuda()
        step(trial.encode, cut_at(2, 6), trial.loss_of)
        return trial, torch.rand(3, device="cuda")

    (cached, next_draws), (plain, expected_draws) = run(cached_step), run(plain_step)
    assert_same_gradients(cached, plain)
    assert torch.equal(next_draws, expected_draws)
