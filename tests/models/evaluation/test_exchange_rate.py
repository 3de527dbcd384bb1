"""The exchange rate on simulated truth: spaces whose AUC follows one metric, and not another, by a known slope."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np
import pytest

from models.evaluation.bootstrap import DRAWS, means_over_runs, paired_difference
from models.evaluation.click_metrics import drawn_metrics, gauc
from models.evaluation.exchange_rate import (
    STEP,
    Candidate,
    Clicks,
    compare,
    drawn_target,
    exchange_rates,
    retrieval_candidates,
)
from models.evaluation.purchase_trials import Trials
from models.evaluation.ranking import UNFOUND
from moonlake.embeddings.contents import content_of
from moonlake.errors import InputError

SLOPE = 0.4
RECALL = np.array([0.15, 0.25, 0.38, 0.50])
OTHER = np.array([0.50, 0.42, 0.55, 0.45])
Known = tuple[Candidate, Candidate, Clicks]
NAMES = ["one", "two", "three", "four"]


def hits(rng: np.random.Generator, truth: np.ndarray, name: str, queries: int = 400) -> Candidate:
    """Three trials a query, that go alike."""
    luck = rng.random((queries, 1)) * 0.5 + rng.random((queries, 1)) * 0.5
    level = np.array([np.quantile(luck, share) for share in truth])  # [N]
    numerators = np.repeat(luck < level, 3, axis=0).astype(np.float64)
    flipped = rng.random(numerators.shape) < 0.1
    wanted = np.where(flipped, rng.random(numerators.shape) < truth, numerators)
    return Candidate(name, wanted, np.ones((3 * queries, 1)), np.repeat(np.arange(queries), 3), name)


def clicks(
    rng: np.random.Generator, truth: np.ndarray, runs: int = 3, users: int = 500, noise: float = 0.004
) -> Clicks:
    """Scores whose AUC is `truth` on average over runs; impressions of one user go alike."""
    user = np.repeat(np.arange(users), 6)
    clicked = rng.random(len(user)) < rng.beta(2, 5, users)[user]
    shared = math.sqrt(0.3) * rng.normal(size=users)[user] + math.sqrt(0.3) * rng.normal(size=len(user))
    scores = []
    for one in truth:
        aucs = one + noise * rng.normal(size=runs)
        apart = [math.sqrt(2) * NormalDist().inv_cdf(value) for value in aucs]
        scores.append(
            np.stack([mean * clicked + shared + math.sqrt(0.4) * rng.normal(size=len(user)) for mean in apart])
        )
    return Clicks(clicked, user, scores)


def aucs(recall: np.ndarray) -> np.ndarray:
    return 0.55 + SLOPE * recall


@pytest.fixture(scope="module")
def measured() -> Known:
    rng = np.random.default_rng(0)
    return hits(rng, RECALL, "image_search_hit_10"), hits(rng, OTHER, "text_search_hit_10"), clicks(rng, aucs(RECALL))


def test_a_known_slope_is_found_and_the_metric_that_predicts_comes_first(measured: Known) -> None:
    image, text, impressions = measured
    found = exchange_rates(NAMES, [text, image], impressions)
    first, second = found.predictors
    assert first.metric == "image_search_hit_10"
    assert first.slope is not None
    assert first.slope.low <= SLOPE * STEP <= first.slope.high
    assert first.slope.high - first.slope.low < 0.4 * first.slope.value
    assert (first.spearman.value, first.kendall.value) == (1, 1)
    assert first.best_in > 0.95
    assert first.best_in + second.best_in == pytest.approx(1)
    assert second.pearson < 0.6
    assert any("image-based search recall is the best predictor" in line for line in found.verdict)
    assert any("one in 24 metrics" in line for line in found.verdict)
    assert not any("does not order" in line for line in found.verdict)


def test_the_text_says_so_where_the_best_predictor_orders_the_spaces_otherwise(measured: Known) -> None:
    image, _, impressions = measured
    first, second, third, fourth = (image.numerators[:, place] for place in range(4))
    close = image._replace(numerators=np.stack([first, second, fourth, third], axis=1))
    found = exchange_rates(NAMES, [close, close._replace(name="image_search_mrr")], impressions)
    assert any("nothing else was compared" in line for line in found.verdict)
    [said] = [line for line in found.verdict if "does not order the spaces as AUC does" in line]
    assert said.endswith(f"Spearman {found.predictors[0].spearman.value:+.2f}")
    assert found.predictors[0].spearman.value < 1


def test_the_text_says_so_where_image_recall_is_not_the_best_predictor(measured: Known) -> None:
    image, text, impressions = measured
    swapped = [image._replace(name="text_search_hit_10"), text._replace(name="image_search_hit_10")]
    verdict = " ".join(exchange_rates(NAMES, swapped, impressions).verdict)
    assert "text_search_hit_10 predicts AUC best" in verdict
    assert "image-based search recall is NOT the best predictor" in verdict
    assert "nothing else was compared" in " ".join(exchange_rates(NAMES, [image], impressions).verdict)
    assert "was not measured" in " ".join(exchange_rates(NAMES, swapped[:1], impressions).verdict)


def test_a_pair_says_what_moved_and_what_it_bought(measured: Known) -> None:
    image, text, impressions = measured
    found = exchange_rates(NAMES, [image, text], impressions)
    assert len(found.pairs) == 2 * 6
    pair = found.pairs[2]
    assert (pair.metric, pair.before, pair.after) == ("image_search_hit_10", "one", "four")
    rates = image.numerators.mean(0)
    assert pair.moved.value == pytest.approx(rates[3] - rates[0])
    assert pair.gained.value == pytest.approx(found.spaces[3].target.value - found.spaces[0].target.value)
    assert pair.rate is not None
    assert pair.rate.value == pytest.approx(pair.gained.value / (pair.moved.value / STEP))
    assert pair.rate.low <= SLOPE * STEP <= pair.rate.high
    assert pair.rate.low < pair.rate.value < pair.rate.high


def test_a_metric_that_moved_less_than_two_standard_errors_has_a_blank_rate(measured: Known) -> None:
    impressions = measured[2]
    rng = np.random.default_rng(3)
    flat = Candidate("flat", (rng.random((300, 4)) < 0.3).astype(float), np.ones((300, 1)), np.arange(300))
    found = exchange_rates(NAMES, [flat], impressions)
    for pair in found.pairs:
        clear = not -2 < pair.moved.value / ((pair.moved.high - pair.moved.low) / (2 * 1.96)) < 2
        assert (pair.rate is not None) == clear
    assert sum(pair.rate is None for pair in found.pairs) >= 5
    assert found.predictors[0].slope is None
    assert found.predictors[0].blank == "no clear spread over the spaces"
    assert any("nothing can be said" in line for line in found.verdict)


def test_spaces_that_are_the_same_have_neither_rate_nor_slope_nor_correlation() -> None:
    rng = np.random.default_rng(1)
    alike, impressions = hits(rng, RECALL[:1], "m"), clicks(rng, np.array([0.6]))
    same = alike._replace(numerators=np.repeat(alike.numerators, 3, axis=1))
    found = exchange_rates(NAMES[:3], [same], impressions._replace(scores=[impressions.scores[0]] * 3))
    assert all(pair.rate is None and pair.gained == (0, 0, 0) for pair in found.pairs)
    (predictor,) = found.predictors
    assert predictor.slope is None
    assert np.isnan([predictor.pearson, predictor.spearman.value, predictor.kendall.value]).all()


def test_two_spaces_have_pairs_only(measured: Known) -> None:
    image, _, impressions = measured
    two = image._replace(numerators=image.numerators[:, :2])
    found = exchange_rates(NAMES[:2], [two], impressions._replace(scores=impressions.scores[:2]))
    assert found.predictors == []
    assert len(found.pairs) == 1
    assert "2 spaces: pairs only" in found.verdict[0]
    for names in (["one"], ["one", "one"]):
        with pytest.raises(InputError, match="two or more different spaces"):
            exchange_rates(names, [], impressions)


def test_a_metric_that_is_undefined_on_a_space_is_named_and_left_blank(measured: Known) -> None:
    image, text, impressions = measured
    denominators = np.ones(text.numerators.shape)
    denominators[:, 2] = 0
    found = exchange_rates(NAMES, [text._replace(denominators=denominators), image], impressions)
    assert found.predictors[1].blank == "undefined on three"
    touched = [pair for pair in found.pairs if pair.metric == text.name and "three" in (pair.before, pair.after)]
    assert len(touched) == 3
    assert all(pair.rate is None for pair in touched)
    json.dumps(found.as_json(), allow_nan=False)


def test_impressions_of_one_class_are_refused(measured: Known) -> None:
    image, _, impressions = measured
    with pytest.raises(InputError, match="auc is undefined"):
        exchange_rates(NAMES, [image], impressions._replace(clicked=np.zeros(len(impressions.clicked), bool)))


def test_one_run_a_space_is_said_and_several_may_differ_in_number(measured: Known) -> None:
    image, _, impressions = measured
    scores = [one[: 1 + (at > 0)] for at, one in enumerate(impressions.scores)]
    found = exchange_rates(NAMES, [image], impressions._replace(scores=scores))
    assert [one.runs for one in found.spaces] == [1, 2, 2, 2]
    assert found.verdict[-1].startswith("one run of the CTR model on one:")


def test_what_is_drawn_of_a_space_is_the_mean_over_its_runs(measured: Known) -> None:
    clicked, users, scores = measured[2]
    drawn = drawn_target(measured[2], "gauc")
    assert drawn.shape == (1 + DRAWS, 4)
    for at, of_space in enumerate(scores):
        alone = drawn_metrics(clicked, of_space, users, ["gauc"])["gauc"]
        np.testing.assert_allclose(drawn[:, at], means_over_runs(alone, degrees=4))  # of a pair of spaces
    assert drawn[0, 1] == pytest.approx(np.mean([gauc(clicked, run, users) for run in scores[1]]))


def test_gauc_can_be_what_is_bought(measured: Known) -> None:
    found = exchange_rates(NAMES, [measured[0]], measured[2], target="gauc")
    assert found.as_json()["target"] == "gauc"
    assert found.spaces[0].target.value != exchange_rates(NAMES, [measured[0]], measured[2]).spaces[0].target.value


def test_hit_rates_of_trials_are_those_of_the_encoders_evaluation() -> None:
    rng = np.random.default_rng(4)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    rows = np.concatenate([np.zeros(40, np.int64), rng.integers(0, 30, 200)])
    queries = [content_of(str(at), []) for at in range(30)]
    trials = Trials("text_search", moment, moment, queries, [], [], rows, rows * 0, rows * 0 - 1, {}, 0)
    places = rng.integers(1, 100, (2, len(rows)))
    places[1, :5] = UNFOUND
    found = {one.name: one for one in retrieval_candidates(trials, places)}
    assert list(found) == ["text_search_hit_1", "text_search_hit_10", "text_search_hit_50", "text_search_mrr"]
    impressions = clicks(rng, np.array([0.6, 0.6]), runs=1)
    pair = exchange_rates(["a", "b"], list(found.values()), impressions, seed=5).pairs[1]
    expected = paired_difference(places[1], places[0], trials.query_rows, 10, weights=trials.weights, seed=6)
    assert pair.moved == pytest.approx(expected)
    reciprocal = found["text_search_mrr"].numerators / found["text_search_mrr"].denominators
    np.testing.assert_allclose(reciprocal[5:], (1 / places.T)[5:])
    assert (reciprocal[:5, 1] < 1e-9).all()


def test_json_holds_what_the_gate_reads(measured: Known) -> None:
    found = exchange_rates(NAMES, measured[:2], measured[2]).as_json()
    text = json.dumps(found, allow_nan=False)
    again = json.loads(text)
    assert set(again) == {"target", "step", "verdict", "spaces", "pairs", "predictors"}
    assert set(again["spaces"][0]) == {"name", "runs", "target", "metrics"}
    assert set(again["pairs"][0]) == {"metric", "before", "after", "moved", "gained", "rate"}
    keys = {"metric", "slope", "pearson", "spearman", "kendall", "best_in", "blank"}
    assert set(again["predictors"][0]) == keys
    assert len(again["predictors"][0]["slope"]) == 3


def test_without_candidates_the_spaces_are_still_measured(measured: Known) -> None:
    found = exchange_rates(NAMES, [], measured[2])
    assert (found.pairs, found.predictors) == ([], [])
    gains = drawn_target(measured[2], "auc")
    assert compare(NAMES, {}, gains, runs=[3] * 4).spaces == found.spaces


@pytest.mark.slow
def test_slope_and_rates_cover_the_truth_at_about_the_nominal_rate() -> None:
    rng = np.random.default_rng(5)
    slopes: list[bool] = []
    rates: list[bool] = []
    for _ in range(60):
        found = exchange_rates(NAMES, [hits(rng, RECALL, "m")], clicks(rng, aucs(RECALL), runs=5, users=300))
        assert found.predictors[0].slope is not None
        slopes.append(_covers(found.predictors[0].slope))
        rates += [_covers(pair.rate) for pair in found.pairs if pair.rate is not None]
    assert np.mean(slopes) > 0.88
    assert 0.88 < np.mean(rates) < 1


def _covers(found: Sequence[float]) -> bool:
    return found[1] <= SLOPE * STEP <= found[2]
