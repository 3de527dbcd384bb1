"""Simulated behaviour on any catalogue with style vectors: who asks when, what is shown, and what they do about it.

The logging policy fills each slot from a mixture of a softmax over the nearest products, the category, and the whole
catalogue, without showing a product twice; the propensity recorded is exact, given the slots above.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from moonlake.arrays import Bools, Float32s, Float64s, Int64s, Strings
from moonlake.errors import InputError
from sources.simulator.clicks import SEGMENTS, Catalogue, ClickModel, Requests, Shoppers
from sources.simulator.presets import BehaviorConfig, Window
from sources.simulator.styles import unit

SECOND_US = 1_000_000
ATTRIBUTION = timedelta(hours=1)
"""A click counts for an impression this long; `label_time` is the end of it."""
INTENTS_CONSIDERED = 24
RETRIEVAL_BLUR = 0.05
BATCH_REQUESTS = 512


@dataclass(frozen=True, slots=True)
class Shown:
    """Impressions, all float or int [R, K] for R requests and K slots, positions 1 to K from left to right."""

    product: Int64s
    propensity: Float64s
    click_probability: Float64s
    clicked: Bools


@dataclass(frozen=True, slots=True)
class Actions:
    """Clicks, carts and purchases, [A]: the row of the request and of the product, the time and the action's name."""

    request: Int64s
    product: Int64s
    time_us: Int64s
    action: Strings


def listing_times(window: Window, late_share: float, count: int, rng: np.random.Generator) -> Int64s:
    """First moments on sale, int64 [count] microseconds: some inside the window, the others long before."""
    start, end = window.span_us
    late = rng.random(count) < late_share
    offset = np.where(late, rng.random(count), -6.0 * rng.random(count))
    return np.asarray(start + (offset * (end - start)).astype(np.int64))


def sample_shoppers(catalogue: Catalogue, config: BehaviorConfig, rng: np.random.Generator) -> Shoppers:
    """Users whose taste is a blend of a few products, and drifts towards another blend."""

    count = config.users

    def blend() -> Float32s:
        liked = rng.integers(len(catalogue.product_ids), size=(count, 3))
        weights = rng.dirichlet(np.ones(3), size=count).astype(np.float32)
        return unit(np.einsum("uk,ukd->ud", weights, catalogue.vectors[liked]))

    start = blend()
    segment = rng.choice(list(SEGMENTS), size=count, p=[0.3, 0.5, 0.2]).tolist()
    eagerness = (config.eagerness_spread * rng.standard_normal(count)).astype(np.float32)
    user_ids = [f"u{row:06d}" for row in range(count)]
    return Shoppers(user_ids, segment, eagerness, start, unit(0.6 * start + 0.4 * blend()))


def plan_requests(
    catalogue: Catalogue,
    shoppers: Shoppers,
    config: BehaviorConfig,
    window_us: tuple[int, int],
    rng: np.random.Generator,
) -> Requests:
    """Requests in order of time, `wanted` still the style of the target itself.

    A session is one user, one target product (on sale then, near the user's taste) and one to three requests.
    """
    start, end = window_us
    count = config.sessions
    activity = rng.lognormal(0.0, 0.6, config.users)
    user = rng.choice(config.users, size=count, p=activity / activity.sum())
    last_start = end - ATTRIBUTION // timedelta(microseconds=1)
    begun = np.sort(rng.integers(start, last_start, size=count))

    seen = rng.integers(len(catalogue.product_ids), size=(count, INTENTS_CONSIDERED))
    on_sale = (catalogue.on_sale_from[seen] <= begun[:, None]) & (begun[:, None] < catalogue.on_sale_until[seen])
    if not on_sale.any(axis=1).all():
        raise InputError("behaviour: too few products are on sale at once; take more products")
    taste = np.einsum("ud,ukd->uk", shoppers.taste_start[user], catalogue.vectors[seen])
    appeal = config.intent_taste * taste + catalogue.quality[seen] + rng.gumbel(size=seen.shape)
    target = seen[np.arange(count), np.where(on_sale, appeal, -np.inf).argmax(axis=1)]

    session = np.repeat(np.arange(count), rng.choice([1, 2, 3], size=count, p=[0.4, 0.3, 0.3]))
    first = np.searchsorted(session, session)  # row of the session's first request
    pause = rng.integers(60 * SECOND_US, 300 * SECOND_US, size=len(session))
    time_us = begun[session] + (np.arange(len(session)) - first) * 300 * SECOND_US + pause
    order = np.argsort(time_us, kind="stable")
    modality = rng.choice(3, size=len(session), p=config.query_shares)
    chosen = target[session[order]]
    return Requests(user[session[order]], chosen, time_us[order], modality, catalogue.vectors[chosen])


def show(model: ClickModel, rng: np.random.Generator) -> Shown:
    """The products that the logging policy shows for every request, and the clicks on them."""
    total, slots = len(model.requests.user), model.config.slots
    product = np.empty((total, slots), np.int64)
    propensity = np.empty((total, slots))
    seen_vectors = model.catalogue.vectors
    blurred = unit(seen_vectors + RETRIEVAL_BLUR * rng.standard_normal(seen_vectors.shape, dtype=np.float32))
    policy = _LoggingPolicy(model, blurred)
    for start in range(0, total, BATCH_REQUESTS):
        rows = np.arange(start, min(start + BATCH_REQUESTS, total))
        product[rows], propensity[rows] = policy.fill(rows, rng)
    position = np.broadcast_to(np.arange(1, slots + 1), product.shape)
    probability = model.probability(np.arange(total), product, position)
    return Shown(product, propensity, probability, rng.random(product.shape) < probability)


def act(model: ClickModel, shown: Shown, rng: np.random.Generator) -> Actions:
    """Clicks, and the carts and purchases that follow some of them; the better the match, the more of them."""
    config = model.config
    request, slot = np.nonzero(shown.clicked)
    product = shown.product[request, slot]
    count = len(request)
    clicked_at = model.requests.time_us[request] + (4 * slot + rng.integers(1, 20, size=count)) * SECOND_US
    clicked_at += rng.integers(0, SECOND_US, size=count)
    similarity = model.similarity(request, product[:, None])[:, 0]
    match = 1.0 / (1.0 + np.exp(-8.0 * (similarity - config.similarity_midpoint)))
    carted = rng.random(count) < 2.0 * config.cart_share * match
    bought = rng.random(count) < 2.0 * config.purchase_share * match
    cart_at = clicked_at + rng.integers(20 * SECOND_US, 240 * SECOND_US, size=count)
    hesitation = 1.0 + np.minimum(rng.lognormal(6.0, 1.5, size=count), 86_400.0)
    buy_at = cart_at + hesitation.astype(np.int64) * SECOND_US
    parts = [("click", np.full(count, True), clicked_at), ("cart", carted, cart_at), ("purchase", bought, buy_at)]
    end = model.window_us[1]
    kept = [(name, chosen & (time < end), time) for name, chosen, time in parts]
    return Actions(
        np.concatenate([request[chosen] for _, chosen, _ in kept]),
        np.concatenate([product[chosen] for _, chosen, _ in kept]),
        np.concatenate([time[chosen] for _, chosen, time in kept]),
        np.concatenate([np.full(int(chosen.sum()), name) for name, chosen, _ in kept]),
    )


class _LoggingPolicy:
    """Fills the slots of batches of requests, and says with which probability."""

    def __init__(self, model: ClickModel, blurred: Float32s) -> None:
        self.config, self.catalogue, self.requests = model.config, model.catalogue, model.requests
        self.blurred = blurred
        self.by_category = np.argsort(self.catalogue.category, kind="stable")
        self.category_size = np.bincount(self.catalogue.category)
        self.category_start = np.cumsum(self.category_size) - self.category_size

    def fill(self, rows: Int64s, rng: np.random.Generator) -> tuple[Int64s, Float64s]:
        """Products and propensities, [B, K] each, for B requests."""
        config, size = self.config, len(rows)
        time = self.requests.time_us[rows][:, None]
        on_sale = (self.catalogue.on_sale_from <= time) & (time < self.catalogue.on_sale_until)  # [B, P]
        wanted_category = self.catalogue.category[self.requests.target[rows]]
        left = on_sale.sum(axis=1)
        if left.min() < config.slots:
            raise InputError(f"behaviour: {left.min()} products on sale for {config.slots} slots; take more products")
        of_category = on_sale & (self.catalogue.category == wanted_category[:, None])
        left_of_category = of_category.sum(axis=1)

        similarity = np.where(on_sale, self.requests.wanted[rows] @ self.blurred.T, -np.inf)
        depth = min(config.candidates, similarity.shape[1] - 1)
        near = np.argpartition(-similarity, depth, axis=1)[:, :depth]  # [B, M]
        score = np.take_along_axis(similarity, near, axis=1)
        weight = np.exp((score - score.max(axis=1, keepdims=True)) / config.temperature).astype(np.float64)

        unseen = on_sale
        products = np.empty((size, config.slots), np.int64)
        propensities = np.empty((size, config.slots))
        batch = np.arange(size)
        for slot, relevant_share in enumerate(np.linspace(*config.relevant_share, config.slots)):
            mass = weight.sum(axis=1)
            relevant = np.where(mass > 0.0, relevant_share, 0.0)
            category = np.where(left_of_category > 0, (1.0 - relevant) * config.category_share, 0.0)
            dice = rng.random(size)
            by_relevance = dice < relevant
            by_category = ~by_relevance & (dice < relevant + category)

            picked = np.empty(size, np.int64)
            picked[by_relevance] = _draw_weighted(near[by_relevance], weight[by_relevance], rng)
            picked[~by_relevance] = self._draw_unseen(
                unseen[~by_relevance], wanted_category[~by_relevance], by_category[~by_relevance], rng
            )
            hit = near == picked[:, None]
            in_category = self.catalogue.category[picked] == wanted_category
            propensities[:, slot] = (
                relevant * (weight * hit).sum(axis=1) / np.maximum(mass, 1e-300)
                + np.where(in_category, category / np.maximum(left_of_category, 1), 0.0)
                + (1.0 - relevant - category) / left
            )
            products[:, slot] = picked
            weight = np.where(hit, 0.0, weight)
            unseen[batch, picked] = False
            left = left - 1
            left_of_category = left_of_category - in_category
        return products, propensities

    def _draw_unseen(self, unseen: Bools, category: Int64s, by_category: Bools, rng: np.random.Generator) -> Int64s:
        """A product drawn evenly from those unseen, of the category where asked, by rejection: [N]."""
        picked = np.empty(len(unseen), np.int64)
        open_rows = np.arange(len(unseen))
        while len(open_rows):
            dice = rng.random(len(open_rows))
            kind = category[open_rows]
            within = self.by_category[self.category_start[kind] + (dice * self.category_size[kind]).astype(np.int64)]
            anywhere = (dice * unseen.shape[1]).astype(np.int64)
            proposal = np.where(by_category[open_rows], within, anywhere)
            picked[open_rows] = proposal
            open_rows = open_rows[~unseen[open_rows, proposal]]
        return picked


def _draw_weighted(items: Int64s, weights: Float64s, rng: np.random.Generator) -> Int64s:
    """One item of each row, drawn by weight: int64 [N] from [N, M]."""
    reach = np.cumsum(weights, axis=1)
    dice = rng.random(len(items)) * reach[:, -1]
    place = np.minimum((reach <= dice[:, None]).sum(axis=1), items.shape[1] - 1)
    return np.asarray(items[np.arange(len(items)), place])
