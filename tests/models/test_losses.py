from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.losses import InfoNCE, in_batch_negatives, info_nce


def slow_info_nce(queries: torch.Tensor, items: torch.Tensor, allowed: torch.Tensor, scale: float) -> float:
    """Both directions, pair by pair, from the formula."""

    def one_side(left: torch.Tensor, right: torch.Tensor) -> float:
        total = 0.0
        for i in range(len(left)):
            own = math.exp(scale * float(left[i] @ right[i]))
            others = sum(
                math.exp(scale * float(left[i] @ right[j])) for j in range(len(right)) if j != i and allowed[i, j]
            )
            total -= math.log(own / (own + others))
        return total / len(left)

    return (one_side(queries, items) + one_side(items, queries)) / 2


def unit(seed: int, rows: int = 7) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_info_nce_is_the_formula_pair_by_pair() -> None:
    queries, items = unit(0), unit(1)
    allowed = in_batch_negatives(torch.tensor([0, 1, 2, 0, 3, 4, -1]), torch.tensor([0, 1, 1, 2, -1, -1, 3]))
    fast = info_nce(queries, items, allowed, 10.0)
    assert float(fast) == pytest.approx(slow_info_nce(queries, items, allowed, 10.0), rel=1e-5)


def test_pairs_that_share_anything_are_never_negatives_of_each_other() -> None:
    query, product, spu = [0, 0, 1, 2, 3], [0, 1, 1, 2, 3], [-1, -1, 5, 5, -1]
    fast = in_batch_negatives(*(torch.tensor(group) for group in (query, product, spu)))
    for i in range(5):
        for j in range(5):
            shared = any(group[i] == group[j] and group[i] >= 0 for group in (query, product, spu))
            assert bool(fast[i, j]) == (i != j and not shared), (i, j)


def test_a_masked_twin_has_no_gradient_through_the_other_pair() -> None:
    queries, items = unit(0, 3).requires_grad_(), unit(1, 3)
    negatives = in_batch_negatives(torch.tensor([7, 7, 7]))
    info_nce(queries, items, negatives, 10.0).backward()
    assert queries.grad is not None
    assert not queries.grad.any()


def test_the_temperature_is_learnt_or_fixed() -> None:
    for learnt in (True, False):
        loss = InfoNCE(0.1, learn_temperature=learnt)
        value = loss(unit(0).requires_grad_(), unit(1), in_batch_negatives(torch.arange(7)))
        assert value.item() == pytest.approx(
            float(info_nce(unit(0), unit(1), in_batch_negatives(torch.arange(7)), 10.0)), rel=1e-5
        )
        value.backward()
        assert (loss.log_scale.grad is not None) == learnt
