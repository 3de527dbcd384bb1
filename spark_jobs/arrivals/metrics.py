"""Product-to-servable times and outcomes of records, as Prometheus' text files."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile

RECENT = 1_000
"""Quantiles are of so many products, the latest."""
BUCKETS_SECONDS = (0.5, 1, 2, 3, 5, 8, 15, 30, 60, 300, 3600)
QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


class Metrics:
    """What one stream has seen since it started, in a file for Prometheus' node exporter."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._registry = CollectorRegistry()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._outcomes = Counter(
            "moonlake_product_events", "Records of product_events by what became of them", ["outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "moonlake_product_to_servable_seconds", "From handing a product in until it can be read online",
            buckets=BUCKETS_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._quantiles = Gauge(
            "moonlake_product_to_servable_recent_seconds", f"The same, of the last {RECENT} products", ["quantile"],
            registry=self._registry,
        )  # fmt: skip

    def record(self, outcome: str, seconds: float) -> None:
        """Count one record; the seconds of one that is servable."""
        self._outcomes.labels(outcome).inc()
        if outcome == "servable":
            self._seconds.observe(seconds)
            self._recent.append(seconds)

    def write(self) -> None:
        """Bring the file up to date; readers find it whole."""
        if self._recent:
            for name, value in quantiles(self._recent).items():
                self._quantiles.labels(name).set(value)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(self.file), self._registry)


def quantiles(seconds: deque[float] | list[float]) -> dict[str, float]:
    """p50, p95 and max of some times."""
    return {name: float(np.quantile(np.array(seconds), q)) for name, q in QUANTILES.items()}
