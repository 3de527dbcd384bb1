"""Presets of the marketplace: frozen numbers, so that figures measured on one stay comparable.

A preset never changes. A change of the numbers, or of the simulator, is a new preset: a test pins the fingerprint of
every preset and the behaviour that `tiny` produces.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from moonlake.errors import NotFound
from moonlake.hashing import stable_hash

SIMULATOR_VERSION = 1
"""Raise it when the simulator gives other rows for the same preset, and name new presets."""


@dataclass(frozen=True, slots=True)
class BehaviorConfig:
    """Shoppers: how they arrive, search, look and buy. Shared by the marketplace and by real catalogues.

    Attributes:
        sessions: shopping sessions in the window; each is one intent and one to three requests.
        query_shares: shares of text, image and product (text and image) queries.
        slots: products shown per request.
        candidates: nearest products that the retrieval draws its relevant slots from.
        temperature: of the retrieval's softmax over similarity; smaller is greedier.
        relevant_share: probability of a relevant slot at the first and at the last position.
        category_share: probability, among the other slots, of a product of the query's category.
        examination: a shopper looks at position p with probability p ** -examination.
        click_*: log-odds of a click on an examined product: bias + relevance * (similarity - similarity_midpoint)
            + taste * similarity to the user's taste + quality + eagerness - price sensitivity * price.
        *_spread: standard deviation of the quality of products and of the eagerness of users.
    """

    users: int
    sessions: int
    query_shares: tuple[float, float, float] = (0.3, 0.6, 0.1)
    slots: int = 10
    candidates: int = 40
    temperature: float = 0.05
    relevant_share: tuple[float, float] = (0.6, 0.3)
    category_share: float = 0.5
    intent_taste: float = 6.0
    examination: float = 0.25
    click_bias: float = -0.8
    click_relevance: float = 6.0
    similarity_midpoint: float = 0.8
    click_taste: float = 2.0
    quality_spread: float = 0.7
    eagerness_spread: float = 0.5
    cart_share: float = 0.3
    purchase_share: float = 0.25

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BehaviorConfig:
        """The configuration that `json` wrote; its tuples came back as lists."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is simulated, and where the honest protocol cuts it, in days from its start."""

    end: datetime = datetime(2026, 3, 1, tzinfo=UTC)
    days: int = 28
    t1_day: int = 14
    t2_day: int = 23

    @property
    def start(self) -> datetime:
        """First moment of the window."""
        return self.end - timedelta(days=self.days)

    @property
    def t1(self) -> datetime:
        """The encoder sees nothing from here on."""
        return self.start + timedelta(days=self.t1_day)

    @property
    def t2(self) -> datetime:
        """The test starts here."""
        return self.start + timedelta(days=self.t2_day)

    @property
    def span_us(self) -> tuple[int, int]:
        """Start and end in microseconds since 1970 UTC."""
        return microseconds(self.start), microseconds(self.end)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exact."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Preset:
    """Every number of a simulated marketplace.

    Attributes:
        spus_per_product: distinct things per product: below 1, merchants sell the same thing.
        late_share: share of products that are listed inside the window.
        changing_share: share of products whose content changes; half of them change back.
        image_pixels: side of the square images.
    """

    name: str
    seed: int
    products: int
    merchants: int
    brands: int
    behavior: BehaviorConfig
    spus_per_product: float = 0.8
    late_share: float = 0.35
    changing_share: float = 0.04
    deleted_share: float = 0.02
    image_pixels: int = 64
    window: Window = field(default_factory=Window)

    @property
    def fingerprint(self) -> str:
        """Hash of all numbers and of the simulator's version."""
        return stable_hash(json.dumps([SIMULATOR_VERSION, asdict(self)], sort_keys=True, default=str))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("tiny", 1, products=60, merchants=9, brands=5, behavior=BehaviorConfig(users=40, sessions=150)),
        Preset("demo", 2, products=2_000, merchants=60, brands=40, behavior=BehaviorConfig(users=800, sessions=5_300)),
        Preset(
            "standard-1",
            3,
            products=20_000,
            merchants=400,
            brands=200,
            behavior=BehaviorConfig(users=8_000, sessions=53_000),
        ),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises NotFound, with the names that there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise NotFound(f"no preset {name}; there are {', '.join(PRESETS)}") from None
