"""Graded relevance against slow twins: nDCG place by place and scikit-learn's, BM25 term by term."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from models.evaluation.ndcg import BM25, FOLDS, WEIGHTS, blended, cross_validated, gains_of, ndcg


def slow_ndcg(scores: list[float], gains: list[float], cutoff: int) -> float:
    """The worst of all orders that the scores allow, against the best order there is, summed place by place."""

    def discounted(order: list[int]) -> float:
        return sum(gains[row] / math.log2(place + 2) for place, row in enumerate(order[:cutoff]))

    orders = [list(order) for order in permutations(range(len(scores)))]
    allowed = [order for order in orders if sorted(scores, reverse=True) == [scores[row] for row in order]]
    best = max(map(discounted, orders))
    return min(map(discounted, allowed)) / best if best else math.nan


@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 3)), min_size=1, max_size=6),
    cutoff=st.integers(1, 7),
)
def test_ndcg_is_the_worst_order_of_ties_over_the_best_order_of_all(rows: list[tuple[float, int]], cutoff: int) -> None:
    scores, grades = [score for score, _ in rows], np.array([grade for _, grade in rows])
    gains = gains_of(grades, "exponential")
    found = ndcg(np.array(scores), gains, cutoff)
    assert found == pytest.approx(slow_ndcg(scores, gains.tolist(), cutoff), nan_ok=True)


@pytest.mark.parametrize("size", [3, 10, 200])
def test_without_ties_ndcg_is_that_of_scikit_learn(size: int) -> None:
    rng = np.random.default_rng(size)
    scores, grades = rng.permutation(size) / 7, rng.integers(4, size=size)
    grades[0] = 3
    for gain in ("exponential", "esci"):
        gains = gains_of(grades, gain)
        assert ndcg(scores, gains) == pytest.approx(ndcg_score(gains[None], scores[None], k=10))


def test_scores_that_differ_in_their_last_bits_tie() -> None:
    gains = np.array([1.0, 0.0, 0.0])
    assert ndcg(np.array([0.5 + 1e-9, 0.5, 0.1]), gains) == pytest.approx(1 / math.log2(3))


def test_a_tie_over_the_last_place_counts_against_us_wherever_its_rows_stand() -> None:
    scores, gains = np.r_[2.0, np.ones(20)], np.r_[np.zeros(20), 1.0]
    for order in (np.arange(21), np.arange(21)[::-1]):
        assert ndcg(scores[order], gains[order]) == 0.0


def test_ndcg_does_not_depend_on_the_unit_of_the_gain() -> None:
    rng = np.random.default_rng(0)
    scores, gains = rng.random(30), gains_of(rng.integers(4, size=30), "esci")
    assert ndcg(scores, 100 * gains) == pytest.approx(ndcg(scores, gains)), "ESCI's ratings are its gains times 100"


@pytest.mark.parametrize("scores", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_scores_that_are_no_ranking_are_an_error(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers of the same candidates"):
        ndcg(np.array(scores), np.array([1.0, 0.0]))


DOCUMENTS = ["Red oak chair", "red, red shoe without laces!", None, "a blue shoe for the left foot and the right"]


@pytest.mark.parametrize("query", ["red shoe", "SHOE without laces", "chair chair", "nothing of it", "", None])
def test_bm25_is_the_sum_of_its_terms(query: str | None) -> None:
    words = [[word.strip(",!").lower() for word in (text or "").split()] for text in DOCUMENTS]
    words = [[word for word in some if len(word) > 1] for some in words]
    mean_length = sum(map(len, words)) / len(words)

    def slow(document: list[str]) -> float:
        score, counts = 0.0, Counter(document)
        for word in (query or "").lower().split():
            having = sum(word in some for some in words)
            rarity = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            score += rarity * counts[word] / (counts[word] + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean_length))
        return score

    assert BM25(DOCUMENTS).scores(query) == pytest.approx([slow(document) for document in words], abs=1e-5)


def test_bm25_of_documents_without_words_finds_nothing() -> None:
    assert BM25([None, "", "a"]).scores("red a chair").tolist() == [0.0, 0.0, 0.0]


def test_a_blend_is_one_ranking_at_each_end_and_flat_scores_say_nothing() -> None:
    lexical, cosine = np.array([0.0, 8.0, 4.0]), np.array([0.9, -0.1, 0.4])
    assert blended(lexical, cosine, 0.0) == pytest.approx([0.0, 1.0, 0.5])
    assert blended(lexical, cosine, 1.0) == pytest.approx([1.0, 0.0, 0.5])
    assert blended(np.zeros(3), cosine, 0.5) == pytest.approx([0.5, 0.0, 0.25])


def test_a_weight_is_chosen_on_the_queries_of_the_other_folds_only() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((23, len(WEIGHTS)))
    found = cross_validated(values, seed=3)
    assert len(found.weights) == FOLDS
    fold = np.random.default_rng(3).permutation(np.arange(23) % FOLDS)
    for query in range(23):
        others = values[fold != fold[query]].mean(0)
        assert found.values[query] == values[query, others.argmax()]
        flattered = values.copy()
        flattered[query, 7] = 100.0  # what a query likes best does not choose its own weight
        assert cross_validated(flattered, seed=3).weights[fold[query]] == found.weights[fold[query]]


def test_too_few_queries_to_choose_a_weight_are_an_error() -> None:
    with pytest.raises(ValueError, match="4 queries"):
        cross_validated(np.zeros((4, len(WEIGHTS))))
