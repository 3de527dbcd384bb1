from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.training.losses import CircleLoss, ContrastiveLoss, InfoNCE, Matryoshka
from models.training.negatives import repel_mask

TEMPERATURE, MARGIN, GAMMA = 0.2, 0.3, 8.0
CASES = max(1, settings().max_examples // 2)
RowLoss = Callable[[Tensor, list[Tensor]], Tensor]
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def info_nce_of_row(own: Tensor, others: list[Tensor]) -> Tensor:
    """Minus the logarithm of the own pair's share."""
    attraction = torch.exp(own / TEMPERATURE)
    return -torch.log(attraction / (attraction + sum(torch.exp(other / TEMPERATURE) for other in others)))


def circle_of_row(own: Tensor, others: list[Tensor]) -> Tensor:
    """Equation 6 of the paper with one positive; the weights are numbers, without gradient."""
    pull = torch.exp(-GAMMA * max(0.0, 1 + MARGIN - own.item()) * (own - (1 - MARGIN)))
    push = [torch.exp(GAMMA * max(0.0, other.item() + MARGIN) * (other - MARGIN)) for other in others]
    return torch.log(1 + pull * sum(push))


def slow(row_loss: RowLoss, queries: Tensor, items: Tensor, repel: Tensor, more: Tensor, more_repel: Tensor) -> Tensor:
    """Both directions, row by row and column by column."""
    total, rows = torch.zeros((), dtype=torch.float64), range(len(queries))
    for i in rows:
        own = queries[i] @ items[i]
        by_query = [queries[i] @ items[j] for j in rows if j != i and repel[i, j]]
        by_query += [queries[i] @ more[e] for e in range(len(more)) if more_repel[i, e]]
        by_item = [queries[j] @ items[i] for j in rows if j != i and repel[j, i]]
        total = total + row_loss(own, by_query) + row_loss(own, by_item)
    return total / (2 * len(queries))


def batch(seed: int, rows: int = 5, more: int = 3, dimension: int = 6) -> Batch:
    """Unit vectors in float64 that want a gradient, and masks that are not symmetric."""
    draws = torch.Generator().manual_seed(seed)

    def unit(count: int) -> Tensor:
        random = torch.randn(count, dimension, generator=draws, dtype=torch.float64)
        return F.normalize(random, dim=-1).requires_grad_()

    def mask(columns: int) -> Tensor:
        return torch.rand(rows, columns, generator=draws) < 0.6

    return unit(rows), unit(rows), mask(rows), unit(more), mask(more)


def assert_same(fast: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """The values are equal, and so are their gradients at the leaves."""
    torch.testing.assert_close(fast, expected, rtol=1e-6, atol=1e-7)
    of_fast = torch.autograd.grad(fast, leaves, allow_unused=True, materialize_grads=True)
    of_expected = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    for one, other in zip(of_fast, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def info_nce() -> InfoNCE:
    return InfoNCE(TEMPERATURE, learn_temperature=True)


def circle() -> CircleLoss:
    return CircleLoss(MARGIN, GAMMA)


LOSSES = pytest.mark.parametrize(
    ("loss", "row_loss"), [(info_nce(), info_nce_of_row), (circle(), circle_of_row)], ids=["InfoNCE", "circle"]
)


@LOSSES
@settings(max_examples=CASES, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), more=st.integers(0, 4))
def test_a_loss_is_its_formula_row_by_row_with_the_same_gradient(
    loss: ContrastiveLoss, row_loss: RowLoss, seed: int, rows: int, more: int
) -> None:
    queries, items, repel, more_items, more_repel = batch(seed, rows, more)
    fast = loss(queries, items, repel, more_items, more_repel)
    assert_same(fast, slow(row_loss, queries, items, repel, more_items, more_repel), queries, items, more_items)


@LOSSES
def test_without_further_items_only_the_batch_repels(loss: ContrastiveLoss, row_loss: RowLoss) -> None:
    queries, items, repel, more_items, more_repel = batch(0)
    expected = slow(row_loss, queries, items, repel, more_items[:0], more_repel[:, :0])
    assert_same(loss(queries, items, repel), expected, queries, items)


def test_two_orthogonal_pairs_by_hand() -> None:
    vectors, everyone = torch.eye(2), torch.ones(2, 2, dtype=torch.bool)
    softmax = InfoNCE(0.5, learn_temperature=False)(vectors, vectors, everyone)
    assert softmax.item() == pytest.approx(math.log(1 + math.exp(-2)))
    # own logit: 2 x weight 0.25 x distance 0.25 to the boundary; the other's: 2 x 0.25 x -0.25
    assert CircleLoss(0.25, 2.0)(vectors, vectors, everyone).item() == pytest.approx(math.log(1 + math.exp(-0.25)))


@LOSSES
def test_rows_that_nothing_repels_are_free_and_without_gradient(loss: ContrastiveLoss, row_loss: RowLoss) -> None:
    queries, items, repel, more_items, more_repel = batch(1)
    value = loss(queries, items, torch.zeros_like(repel), more_items, torch.zeros_like(more_repel))
    value.backward()
    assert value.item() == 0
    assert queries.grad is not None
    assert not queries.grad.any()


@LOSSES
def test_one_masked_row_among_others_is_free(loss: ContrastiveLoss, row_loss: RowLoss) -> None:
    queries, items, repel, *_ = batch(2)
    repel = torch.ones_like(repel)
    repel[0], repel[:, 0] = False, False
    loss(queries, items, repel).backward()
    assert queries.grad is not None
    assert not queries.grad[0].any()
    assert queries.grad[1:].any(dim=1).all()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize("loss", [info_nce(), circle(), Matryoshka(info_nce(), [16, 64])])
def test_vectors_in_bfloat16_lose_nothing_in_the_loss_even_under_autocast(loss: torch.nn.Module) -> None:
    queries, items, repel, more_items, more_repel = batch(3, 6, 4, 64)
    rough = [vectors.detach().bfloat16() for vectors in (queries, items, more_items)]
    expected = loss(rough[0].float(), rough[1].float(), repel, rough[2].float(), more_repel)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(rough[0], rough[1], repel, rough[2], more_repel)
    assert value.dtype == torch.float32
    assert value.item() == expected.item()


@pytest.mark.parametrize("learnt", [True, False])
def test_the_temperature_is_learnt_or_fixed(learnt: bool) -> None:
    loss = InfoNCE(0.1, learn_temperature=learnt)
    assert math.exp(-loss.log_scale.item()) == pytest.approx(0.1)
    loss(*batch(4)[:3]).backward()
    assert (loss.log_scale.grad is not None) == learnt


def test_the_gradient_of_the_temperature_is_the_slope_of_the_loss() -> None:
    loss, step = info_nce().double(), 1e-5
    loss(*batch(5)).backward()

    def at(move: float) -> float:
        moved = InfoNCE(TEMPERATURE * math.exp(-move), learn_temperature=False).double()
        moved.log_scale.data.fill_(loss.log_scale.item() + move)
        return float(moved(*batch(5)).detach())

    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.item() == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-6)


def test_a_scale_beyond_the_bound_is_set_back_and_still_learns() -> None:
    loss = InfoNCE(0.01, learn_temperature=True)
    vectors = batch(6)[:3]
    at_bound = loss(*vectors).item()
    loss.log_scale.data += 3
    beyond = loss(*vectors)
    beyond.backward()
    assert beyond.item() == pytest.approx(at_bound, rel=1e-5)
    assert loss.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.item() != 0


def slow_matryoshka(row_loss: RowLoss, prefixes: dict[int, float], given: Batch) -> Tensor:
    """The weighted mean over the prefixes; each row cut and divided by its own length."""
    queries, items, repel, more_items, more_repel = given
    total = torch.zeros((), dtype=torch.float64)
    for prefix, weight in prefixes.items():
        cut = [
            torch.stack([row[:prefix] / row[:prefix].square().sum().sqrt() for row in rows])
            for rows in (queries, items, more_items)
        ]
        total = total + weight * slow(row_loss, cut[0], cut[1], repel, cut[2], more_repel)
    return total / sum(prefixes.values())


@LOSSES
@pytest.mark.parametrize("weights", [None, [3.0, 0.5, 1.0]])
def test_matryoshka_is_the_mean_over_prefixes_cut_and_normalised_again(
    loss: ContrastiveLoss, row_loss: RowLoss, weights: list[float] | None
) -> None:
    vectors = batch(7)
    fast = Matryoshka(loss, [2, 3, 6], weights)(*vectors)
    prefixes = dict(zip([2, 3, 6], weights or [1.0, 1.0, 1.0], strict=True))
    assert_same(fast, slow_matryoshka(row_loss, prefixes, vectors), vectors[0], vectors[1], vectors[3])


def test_matryoshka_learns_the_temperature_of_the_loss_within() -> None:
    loss = Matryoshka(info_nce(), [2, 6])
    assert loss(*batch(8)[:3]).item() != pytest.approx(info_nce()(*batch(8)[:3]).item(), rel=1e-3)
    loss(*batch(8)[:3]).backward()
    (log_scale,) = loss.parameters()
    assert log_scale is loss.loss.log_scale
    assert log_scale.grad is not None


def test_what_cannot_be_meant_is_refused() -> None:
    queries, items, repel, more_items, _ = batch(9)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("more_repel", lambda: info_nce()(queries, items, repel, more_items)),
        ("temperature", lambda: InfoNCE(0.005, learn_temperature=False)),
        ("temperature", lambda: InfoNCE(0.0, learn_temperature=True)),
        ("margin", lambda: CircleLoss(1.0, 80)),
        ("gamma", lambda: CircleLoss(0.25, 0)),
        ("prefixes", lambda: Matryoshka(circle(), [])),
        ("prefixes", lambda: Matryoshka(circle(), [0, 4])),
        ("weights", lambda: Matryoshka(circle(), [2, 4], [1.0])),
        ("prefix of 7", lambda: Matryoshka(circle(), [2, 7])(queries, items, repel)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_pairs_that_share_anything_are_never_negatives_of_each_other() -> None:
    query, product, spu = [0, 0, 1, 2, 3], [0, 1, 1, 2, 3], [-1, -1, 5, 5, -1]
    groups = torch.tensor([query, product, spu]).T
    fast = repel_mask(groups, groups)
    for i in range(5):
        for j in range(5):
            shared = any(group[i] == group[j] and group[i] >= 0 for group in (query, product, spu))
            assert bool(fast[i, j]) == (not shared), (i, j)
