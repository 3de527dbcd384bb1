"""CUBE's functions against loops over impressions and behaviours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.cube import (
    Content,
    Similarities,
    gather,
    histogram,
    largest,
    last_places,
    mean,
    pool,
    similarities,
    similarity_weights,
)

B, L, D = 7, 5, 4


@pytest.fixture
def vectors() -> Content:
    """Unit vectors with some of every kind missing; the last impression has no behaviour at all."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    known = torch.rand(B, L, generator=generator) < 0.7
    known[-1] = False
    return Content(
        target=unit(B, D),
        query=unit(B, D),
        behaviors=unit(B, L, D),
        target_known=torch.tensor([True] * 5 + [False, True]),
        query_known=torch.arange(B) % 3 > 0,
        behaviors_known=known,
    )


@pytest.fixture
def found(vectors: Content) -> Similarities:
    return similarities(vectors)


def test_similarities_are_cosines_where_both_sides_are_known(vectors: Content, found: Similarities) -> None:
    v = {name: tensor.numpy() for name, tensor in vectors._asdict().items()}
    for b in range(B):
        both = v["target_known"][b] and v["query_known"][b]
        assert found.target_query_known[b] == both
        assert found.target_query[b] == pytest.approx(v["target"][b] @ v["query"][b] if both else 0.0, abs=1e-6)
        for k in range(L):
            both = v["target_known"][b] and v["behaviors_known"][b, k]
            expected = v["target"][b] @ v["behaviors"][b, k] if both else 0.0
            assert found.behaviors_known[b, k] == both
            assert found.behaviors[b, k] == pytest.approx(expected, abs=1e-6)


def test_pools_and_statistics_are_sums_over_known_behaviors(found: Similarities) -> None:
    values = torch.randn(B, L, 3, generator=torch.Generator().manual_seed(1))
    weights = similarity_weights(found.behaviors, found.behaviors_known, 0.5)
    pooled, shares = pool(weights, values), histogram(found.behaviors, found.behaviors_known, 10)
    for b in range(B):
        own = [k for k in range(L) if found.behaviors_known[b, k]]
        cosines = found.behaviors[b, own].numpy().astype(np.float64)
        if not own:
            assert not weights[b].any()
            assert not pooled[b].any()
            assert not shares[b].any()
            assert largest(found.behaviors, found.behaviors_known)[b] == 0
            assert mean(found.behaviors, found.behaviors_known)[b] == 0
            continue
        raw = np.exp(cosines / 0.5)
        expected = (raw / raw.sum()) @ values[b, own].numpy()
        np.testing.assert_allclose(pooled[b], expected, atol=1e-5)
        np.testing.assert_allclose(shares[b], np.histogram(cosines, 10, (-1, 1))[0] / len(own), atol=1e-6)
        assert largest(found.behaviors, found.behaviors_known)[b] == pytest.approx(cosines.max(), abs=1e-6)
        assert mean(found.behaviors, found.behaviors_known)[b] == pytest.approx(cosines.mean(), abs=1e-6)


def test_what_a_missing_vector_holds_changes_nothing(vectors: Content, found: Similarities) -> None:
    garbage = vectors._replace(
        target=torch.where(vectors.target_known[:, None], vectors.target, 9.0),
        query=torch.where(vectors.query_known[:, None], vectors.query, torch.nan),
        behaviors=torch.where(vectors.behaviors_known[..., None], vectors.behaviors, torch.inf),
    )
    for clean, dirty in zip(found, similarities(garbage), strict=True):
        torch.testing.assert_close(dirty, clean)


def test_a_low_temperature_looks_at_the_nearest_behavior_alone() -> None:
    cosines = torch.tensor([[0.2, 0.9, 0.1, 1.0]])
    weights = similarity_weights(cosines, torch.tensor([[True, True, True, False]]), 1e-3)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_cosines_on_and_past_the_edges_fall_into_the_outer_bins() -> None:
    cosines = torch.tensor([[-1.0004, -1.0, 1.0, 1.0004]])
    shares = histogram(cosines, torch.ones(1, 4, dtype=torch.bool), 4)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.0, 0.0, 0.5]]))


def test_no_behaviors_at_all_is_a_shape_like_any_other(vectors: Content) -> None:
    empty = torch.zeros(B, 0, D)
    none = similarities(vectors._replace(behaviors=empty, behaviors_known=empty.any(-1)))
    assert none.behaviors.shape == (B, 0)
    assert histogram(none.behaviors, none.behaviors_known).shape == (B, 20)
    assert not largest(none.behaviors, none.behaviors_known).any()
    assert not mean(none.behaviors, none.behaviors_known).any()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_last_places_of_lists_are_those_of_a_loop(length: int) -> None:
    lists = [[], [0, 1, 2], [3], [4, 5]]
    offsets, chosen = np.array([0, 0, 3, 4, 6]), np.array([3, 1, 1, 0, 2])
    expected = [([99] * length + lists[one])[-length:] for one in chosen]
    assert last_places(offsets, chosen, length, empty=99).tolist() == expected


def test_gathering_reads_the_rows_that_there_are() -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(3, 4)
    content = gather(vectors, np.array([2, -1]), np.array([0, 1]), np.array([[1, -1], [-1, 2]], np.int32))
    assert content.target[0].tolist() == [8, 9, 10, 11]
    assert content.target_known.tolist() == [True, False]
    assert content.query.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert content.behaviors[1, 1].tolist() == [8, 9, 10, 11]
    assert content.behaviors_known.tolist() == [[True, False], [False, True]]
    assert content.behaviors.dtype == torch.float32
