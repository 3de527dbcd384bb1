"""The written side of simulated products: ids, titles, merchants, and the states that a product goes through."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from moonlake.arrays import Int64s
from sources.own_files.schema import KINDS
from sources.simulator.behavior_tables import timestamps
from sources.simulator.presets import Preset, microseconds
from sources.simulator.styles import Styles

SYLLABLES = ("ka", "lo", "mi", "ren", "to", "sa", "vel", "no", "ri", "du", "fen", "ga", "zu", "pe", "hol", "wy")
JUNK = ("hot sale", "new arrival", "best price", "free shipping", "gift idea", "top quality", "limited")
WORD_KEPT = {1: 0.85, 2: 0.65, 3: 0.4}
"""Share of attribute words that a title keeps, by merchant tier: small merchants write poor titles."""
JUNK_SHARE = {1: 0.1, 2: 0.3, 3: 0.6}
MATERIAL_STATED = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A later state of a product: what differs from its first one.

    Attributes:
        retitled: with another title and the pictures in another order; without, the content is the first one again.
        price_factor: against the first price.
    """

    product: int
    time_us: int
    retitled: bool = False
    price_factor: float = 1.0
    deleted: bool = False


def plan_changes(preset: Preset, listed_us: Int64s, rng: np.random.Generator) -> list[Change]:
    """States that follow the first ones: content A, B and often A again; new prices; deletions."""
    start, end = preset.window.span_us
    order = rng.permutation(len(listed_us))
    retitled = max(2, round(len(order) * preset.changing_share))
    repriced = max(1, round(len(order) * preset.changing_share))
    deleted = max(1, round(len(order) * preset.deleted_share))
    groups = np.split(order, np.cumsum([retitled, repriced, deleted]))
    changes: list[Change] = []

    def between(product: int, low: float, high: float) -> int:
        first = max(start, int(listed_us[product]) + 1)
        return first + int(rng.uniform(low, high) * (end - first))

    for place, product in enumerate(groups[0].tolist()):
        changes.append(Change(product, between(product, 0.1, 0.5), retitled=True))
        if place % 2 == 0:
            changes.append(Change(product, between(product, 0.55, 0.95)))
    repricings = [Change(product, between(product, 0.1, 0.9), price_factor=0.8) for product in groups[1].tolist()]
    deletions = [Change(product, between(product, 0.6, 0.95), deleted=True) for product in groups[2].tolist()]
    return [*changes, *repricings, *deletions]


@dataclass(frozen=True, slots=True)
class CatalogueRows:
    """The written side of P products, as lists of length P, and the tier of each merchant."""

    product_ids: list[str]
    titles: list[str | None]
    categories: list[str]
    brands: list[str]
    spu_ids: list[str]
    merchant_ids: list[str]
    attributes: list[dict[str, str]]
    price_cents: Int64s
    images: Int64s
    listed_us: Int64s
    merchant_tier: Int64s

    @classmethod
    def make(
        cls,
        prefix: str,
        styles: Styles,
        spu: Int64s,
        brand: Int64s,
        merchant: Int64s,
        merchant_tier: Int64s,
        price_cents: Int64s,
        images: Int64s,
        listed_us: Int64s,
        preset: Preset,
        rng: np.random.Generator,
    ) -> CatalogueRows:
        """Titles and names for products of these styles, SPUs, brands and merchants."""
        names = _brand_names(preset)
        words = styles.words()
        stated = rng.random(len(styles)) < MATERIAL_STATED
        origin = rng.choice(["north", "south", "east", "west"], size=len(styles))
        kept = rng.random((len(styles), 6))
        junk = rng.choice(JUNK, size=len(styles))
        titles: list[str | None] = []
        for row in range(len(styles)):
            tier = int(merchant_tier[merchant[row]])
            parts = [names[brand[row]], *(words[name][row] for name in ("colour", "pattern", "material", "category"))]
            said = [part for place, part in enumerate(parts) if kept[row, place] < WORD_KEPT[tier] and part != "plain"]
            if kept[row, 5] < JUNK_SHARE[tier]:
                said.append(str(junk[row]))
            titles.append(" ".join(said) or None)
        return cls(
            [f"{prefix}{row:06d}" for row in range(len(styles))],
            titles,
            words["category"],
            [names[index] for index in brand],
            [f"{prefix}spu{index:06d}" for index in spu],
            [f"m{index:04d}" for index in merchant],
            [
                {**({"material": words["material"][row]} if stated[row] else {}), "origin": str(origin[row])}
                for row in range(len(styles))
            ],
            price_cents,
            images,
            listed_us,
            merchant_tier,
        )

    def image_names(self, row: int) -> list[str]:
        """Names of the pictures of a product, in the merchant's first order."""
        return [f"{self.product_ids[row]}-{place}.jpg" for place in range(self.images[row])]

    def products(self, changes: list[Change]) -> pa.Table:
        """All states of all products in the own-files form, the first states first."""
        first = [Change(row, int(listed)) for row, listed in enumerate(self.listed_us)]
        states = [*first, *sorted(changes, key=lambda change: change.time_us)]
        rows = [self._state(change) for change in states]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["listed_at"] = timestamps(self.listed_us[[change.product for change in states]])
        columns["event_timestamp"] = timestamps(np.array([change.time_us for change in states], np.int64))
        schema = KINDS["products"].schema()
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def merchants(self, known_from: datetime) -> pa.Table:
        """Every merchant with its tier, in the own-files form."""
        count = len(self.merchant_tier)
        ids = [f"m{index:04d}" for index in range(count)]
        times = timestamps(np.full(count, microseconds(known_from)))
        return pa.table([ids, self.merchant_tier.astype(np.int32), times], schema=KINDS["merchants"].schema())

    def _state(self, change: Change) -> dict[str, object]:
        row = change.product
        title, names = self.titles[row], self.image_names(row)
        if change.retitled:
            title, names = f"{title} new season" if title else "new season", names[::-1]
        return {
            "product_id": self.product_ids[row],
            "title": title,
            "image_names": names,
            "spu_id": self.spu_ids[row],
            "merchant_id": self.merchant_ids[row],
            "category": self.categories[row],
            "brand": self.brands[row],
            "price_cents": int(self.price_cents[row] * change.price_factor),
            "attributes": list(self.attributes[row].items()),
            "deleted": change.deleted,
        }


def _brand_names(preset: Preset) -> list[str]:
    """A made-up word for each brand of the preset, all different."""
    rng = np.random.default_rng([preset.seed, 8])
    names: dict[str, None] = {}
    while len(names) < preset.brands:
        names["".join(rng.choice(SYLLABLES, size=rng.integers(2, 4))).capitalize()] = None
    return list(names)
