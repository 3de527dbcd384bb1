"""Product-to-servable times and outcomes of records, as Prometheus' text files."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

RECENT = 1_000
"""Quantiles are of so many products, the latest."""
BUCKETS_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 300.0, 3600.0, math.inf)
QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


class Metrics(Collector):
    """Metrics of one stream since it started, in a file for Prometheus' node exporter.

    The numbers are held here and not in the library's counters: Feast, once imported, puts those of a process into
    files that all registries share.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._outcomes: Counter[str] = Counter()
        self._buckets: Counter[float] = Counter()
        self._total = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def record(self, outcome: str, seconds: float) -> None:
        """Count one record; the seconds of one that is servable."""
        self._outcomes[outcome] += 1
        if outcome == "servable":
            self._buckets[next(bound for bound in BUCKETS_SECONDS if seconds <= bound)] += 1
            self._total += seconds
            self._recent.append(seconds)

    def write(self) -> None:
        """Bring the file up to date; readers find it whole."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(self.file), self._registry)

    def collect(self) -> Iterator[Metric]:
        """The figures as Prometheus takes them."""
        said = "Records of product_events by what became of them"
        outcomes = CounterMetricFamily("moonlake_product_events", said, labels=["outcome"])
        for outcome, count in self._outcomes.items():
            outcomes.add_metric([outcome], count)
        yield outcomes
        up_to = np.cumsum([self._buckets[bound] for bound in BUCKETS_SECONDS])
        buckets = [
            (str(bound).replace("inf", "+Inf"), float(n)) for bound, n in zip(BUCKETS_SECONDS, up_to, strict=True)
        ]
        said = "From handing a product in until it can be read online"
        yield HistogramMetricFamily("moonlake_product_to_servable_seconds", said, buckets, self._total)
        said = f"The same, of the last {RECENT} products"
        recent = GaugeMetricFamily("moonlake_product_to_servable_recent_seconds", said, labels=["quantile"])
        for name, value in quantiles(self._recent).items() if self._recent else ():
            recent.add_metric([name], value)
        yield recent


def quantiles(seconds: deque[float] | list[float]) -> dict[str, float]:
    """p50, p95 and max of some times."""
    return {name: float(np.quantile(np.array(seconds), q)) for name, q in QUANTILES.items()}
