"""The behaviour simulator: an exact logging policy, and a click model that can be asked about anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moonlake.errors import InputError, NotFound
from sources.simulator.behavior import _LoggingPolicy, listing_times, plan_requests, sample_shoppers, show
from sources.simulator.clicks import Catalogue, ClickModel
from sources.simulator.presets import BehaviorConfig, Window
from sources.simulator.styles import sample_styles

WINDOW = Window()
CONFIG = BehaviorConfig(users=6, sessions=20, slots=3, candidates=5)


def catalogue(count: int = 14, gone: int = 2) -> Catalogue:
    rng = np.random.default_rng(0)
    styles = sample_styles(count, rng)
    start, end = WINDOW.span_us
    on_sale_from = np.full(count, start - 1)
    on_sale_from[:gone] = end  # never on sale
    zeros = np.zeros(count, np.float32)
    until = np.full(count, end + 1)
    return Catalogue(
        [f"p{row}" for row in range(count)], styles.vectors(), styles.category % 3, zeros, zeros, on_sale_from, until
    )


def model(config: BehaviorConfig = CONFIG, products: Catalogue | None = None) -> ClickModel:
    rng = np.random.default_rng(1)
    products = products or catalogue()
    shoppers = sample_shoppers(products, config, rng)
    return ClickModel(
        config, products, shoppers, plan_requests(products, shoppers, config, WINDOW.span_us, rng), WINDOW.span_us
    )


def test_the_propensity_is_how_often_the_policy_shows_a_product_there() -> None:
    asked = model()
    policy = _LoggingPolicy(asked, asked.catalogue.vectors)
    draws = 20_000
    products, propensities = policy.fill(np.zeros(draws, np.int64), np.random.default_rng(2))
    first = np.bincount(products[:, 0], minlength=14) / draws
    for product in np.unique(products[:, 0]):
        stated = propensities[products[:, 0] == product, 0]
        assert np.ptp(stated) < 1e-6, "the first slot has nothing above it"
        deviation = np.sqrt(stated[0] * (1 - stated[0]) / draws)
        assert abs(first[product] - stated[0]) < 4.5 * deviation
    assert first[:2].sum() == 0.0, "products that are not on sale"

    second_after = products[products[:, 0] == products[0, 0]]
    stated = propensities[products[:, 0] == products[0, 0], 1]
    for product in np.unique(second_after[:, 1]):
        of_product = second_after[:, 1] == product
        expected = stated[of_product][0]
        deviation = np.sqrt(expected * (1 - expected) / len(second_after))
        assert np.ptp(stated[of_product]) < 1e-6
        assert abs(of_product.mean() - expected) < 4.5 * deviation


def test_propensities_of_all_products_sum_to_one_in_the_first_slot() -> None:
    asked = model()
    policy = _LoggingPolicy(asked, asked.catalogue.vectors)
    products, propensities = policy.fill(np.zeros(20_000, np.int64), np.random.default_rng(3))
    total = sum(propensities[products[:, 0] == product, 0][0] for product in np.unique(products[:, 0]))
    assert total == pytest.approx(1.0)


def test_relevant_products_are_shown_more_than_others() -> None:
    asked = model(replace(CONFIG, sessions=200))
    shown = show(asked, np.random.default_rng(4))
    requests = np.arange(len(shown.product))
    everything = np.broadcast_to(np.arange(2, 14), (len(requests), 12))
    assert asked.similarity(requests, shown.product).mean() > asked.similarity(requests, everything).mean() + 0.05


def test_requests_are_in_order_of_time_inside_the_window_for_products_on_sale() -> None:
    asked = model(replace(CONFIG, sessions=200)).requests
    start, end = WINDOW.span_us
    assert (np.diff(asked.time_us) >= 0).all()
    assert start <= asked.time_us[0]
    assert asked.time_us[-1] < end
    assert set(asked.target.tolist()) <= set(range(2, 14))


def test_too_small_a_catalogue_is_named() -> None:
    with pytest.raises(InputError, match="2 products on sale for 3 slots"):
        show(model(products=catalogue(count=4)), np.random.default_rng(5))


def test_clicks_grow_with_likeness_and_fall_with_position() -> None:
    asked = model()
    everything = np.broadcast_to(np.arange(14), (len(asked.requests.user), 14))
    requests = np.arange(len(everything))
    first = asked.probability(requests, everything, np.ones_like(everything))
    last = asked.probability(requests, everything, np.full_like(everything, 10))
    assert np.allclose(last / first, 10.0**-CONFIG.examination)
    correlation = np.corrcoef(
        asked.similarity(requests, everything).ravel(), asked.attraction(requests, everything).ravel()
    )
    assert correlation[0, 1] > 0.8


def test_taste_drifts_from_start_to_end() -> None:
    asked = model()
    users = np.arange(CONFIG.users)
    start, end = WINDOW.span_us
    assert np.allclose(asked.taste(users, np.full(6, start)), asked.shoppers.taste_start, atol=1e-6)
    assert np.allclose(asked.taste(users, np.full(6, end)), asked.shoppers.taste_end, atol=1e-6)
    assert np.allclose(np.linalg.norm(asked.taste(users, np.full(6, (start + end) // 2)), axis=1), 1.0)


def test_the_click_model_is_read_back_as_it_was(tmp_path: Path) -> None:
    asked = model()
    ids = [f"r{row}" for row in range(len(asked.requests.user))]
    asked.save(tmp_path, ids, ids)
    again = ClickModel.open(tmp_path)
    everything = np.broadcast_to(np.arange(14), (len(ids), 14))
    requests, position = np.arange(len(ids)), np.ones_like(everything)
    assert np.array_equal(
        again.probability(requests, everything, position), asked.probability(requests, everything, position)
    )
    assert again.config == asked.config
    with pytest.raises(NotFound, match="holds no truth"):
        ClickModel.open(tmp_path / "elsewhere")


def test_late_products_are_listed_inside_the_window() -> None:
    start, end = WINDOW.span_us
    times = listing_times(WINDOW, 0.35, 2_000, np.random.default_rng(6))
    assert times.max() < end
    assert 0.3 < (times > start).mean() < 0.4
