"""The truth behind simulated behaviour: products, shoppers, what each request wanted, and who clicks on what.

The click model answers for any (request, product, position), not only for what was shown, so that an A/B simulation
can ask it again about another ranking. It is saved apart from the lake, under `settings.truth`, and nothing that learns
reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moonlake.arrays import Float32s, Float64s, Int64s
from moonlake.errors import NotFound
from sources.simulator.presets import BehaviorConfig
from sources.simulator.styles import unit

SEGMENTS = {"value": 0.6, "regular": 0.2, "premium": -0.2}
"""Log-odds of a click that one standard deviation of price costs, by user segment."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Traits of P products that decide what shoppers click and buy.

    Attributes:
        vectors: float32 [P, D], unit norm: the true style.
        category: int64 [P].
        quality: float32 [P], log-odds that everybody agrees on.
        price: float32 [P], logarithm, standardised.
        on_sale_from, on_sale_until: int64 [P], microseconds since 1970 UTC, half open.
    """

    product_ids: list[str]
    vectors: Float32s
    category: Int64s
    quality: Float32s
    price: Float32s
    on_sale_from: Int64s
    on_sale_until: Int64s


@dataclass(frozen=True, slots=True)
class Shoppers:
    """U users.

    Attributes:
        eagerness: float32 [U], log-odds of a click that is the user's own.
        taste_start, taste_end: float32 [U, D], unit norm: the taste drifts from one to the other over the window.
    """

    user_ids: list[str]
    segment: list[str]
    eagerness: Float32s
    taste_start: Float32s
    taste_end: Float32s


@dataclass(frozen=True, slots=True)
class Requests:
    """R requests in order of time.

    Attributes:
        user, target: int64 [R], row of the shopper and of the product that the intent came from.
        time_us: int64 [R], microseconds since 1970 UTC.
        modality: int64 [R], index into moonlake.schema.tables.MODALITIES.
        wanted: float32 [R, D], unit norm: the style that the shopper has in mind.
    """

    user: Int64s
    target: Int64s
    time_us: Int64s
    modality: Int64s
    wanted: Float32s


@dataclass(frozen=True, slots=True)
class ClickModel:
    """Probability that the shopper of a request clicks a product at a position."""

    config: BehaviorConfig
    catalogue: Catalogue
    shoppers: Shoppers
    requests: Requests
    window_us: tuple[int, int]

    def taste(self, user: Int64s, time_us: Int64s) -> Float32s:
        """Taste of users at times, float32 [N, D], unit norm."""
        start, end = self.window_us
        share = np.clip((time_us - start) / (end - start), 0.0, 1.0).astype(np.float32)[:, None]
        return unit((1.0 - share) * self.shoppers.taste_start[user] + share * self.shoppers.taste_end[user])

    def similarity(self, request: Int64s, product: Int64s) -> Float32s:
        """Cosine of what requests [R] want and products [R, K], float32 [R, K]."""
        return np.asarray(np.einsum("rd,rkd->rk", self.requests.wanted[request], self.catalogue.vectors[product]))

    def attraction(self, request: Int64s, product: Int64s) -> Float64s:
        """Log-odds of a click on an examined product, float64 [R, K], for requests [R] and products [R, K]."""
        config, user = self.config, self.requests.user[request]
        taste = self.taste(user, self.requests.time_us[request])
        sensitivity = np.array([SEGMENTS[name] for name in self.shoppers.segment])[user][:, None]
        return np.asarray(
            config.click_bias
            + config.click_relevance * (self.similarity(request, product) - config.similarity_midpoint)
            + config.click_taste * np.einsum("rd,rkd->rk", taste, self.catalogue.vectors[product])
            + self.catalogue.quality[product]
            + self.shoppers.eagerness[user][:, None]
            - sensitivity * self.catalogue.price[product],
            dtype=np.float64,
        )

    def examination(self, position: Int64s) -> Float64s:
        """Probability that a shopper looks at a position (from 1)."""
        return np.asarray(np.asarray(position, np.float64) ** -self.config.examination)

    def probability(self, request: Int64s, product: Int64s, position: Int64s) -> Float64s:
        """Probability of a click, float64 [R, K], for requests [R], products [R, K] and positions [R, K] from 1."""
        return self.examination(position) / (1.0 + np.exp(-self.attraction(request, product)))

    def save(self, folder: Path, request_ids: list[str], query_ids: list[str]) -> None:
        """Lay the truth down as Parquet: products, users, requests, and the numbers of the model."""
        catalogue, shoppers, requests = self.catalogue, self.shoppers, self.requests
        products = {
            "product_id": catalogue.product_ids,
            "vector": _lists(catalogue.vectors),
            "category": catalogue.category,
            "quality": catalogue.quality,
            "price": catalogue.price,
            "on_sale_from": catalogue.on_sale_from,
            "on_sale_until": catalogue.on_sale_until,
        }
        users = {
            "user_id": shoppers.user_ids,
            "segment": shoppers.segment,
            "eagerness": shoppers.eagerness,
            "taste_start": _lists(shoppers.taste_start),
            "taste_end": _lists(shoppers.taste_end),
        }
        asked = {
            "request_id": request_ids,
            "query_id": query_ids,
            "user": requests.user,
            "target": requests.target,
            "time_us": requests.time_us,
            "modality": requests.modality,
            "wanted": _lists(requests.wanted),
        }
        for name, columns in {"products": products, "users": users, "requests": asked}.items():
            pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")
        numbers = {"config": asdict(self.config), "window_us": self.window_us}
        (folder / "model.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> ClickModel:
        """The click model of a staged simulation. Raises NotFound when the folder holds none."""
        if not (folder / "model.json").is_file():
            raise NotFound(f"{folder} holds no truth of a simulation; stage a simulated source first")
        numbers = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        files = (folder / f"{name}.parquet" for name in ("products", "users", "requests"))
        products, users, asked = (pq.read_table(path) for path in files)
        catalogue = Catalogue(
            products["product_id"].to_pylist(),
            _matrix(products["vector"]),
            *(products[name].to_numpy() for name in ("category", "quality", "price", "on_sale_from", "on_sale_until")),
        )
        tastes = (_matrix(users[name]) for name in ("taste_start", "taste_end"))
        names, segments = (users[name].to_pylist() for name in ("user_id", "segment"))
        shoppers = Shoppers(names, segments, users["eagerness"].to_numpy(), *tastes)
        columns = {name: asked[name].to_numpy() for name in ("user", "target", "time_us", "modality")}
        requests = Requests(**columns, wanted=_matrix(asked["wanted"]))
        start, end = numbers["window_us"]
        return cls(BehaviorConfig.from_json(numbers["config"]), catalogue, shoppers, requests, (start, end))


def _lists(vectors: Float32s) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]).cast(pa.list_(pa.float32()))


def _matrix(column: pa.ChunkedArray) -> Float32s:
    flat = column.combine_chunks().flatten().to_numpy()
    return np.asarray(flat.reshape(len(column), -1), dtype=np.float32)
