"""The exchange rate drawn: intermediate metrics against AUC, a point a space, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.evaluation.bootstrap import Estimate
from models.evaluation.exchange_rate import STEP, ExchangeRates, Measured, Predictor

PANELS_ACROSS = 3
PANEL_WIDTH, PANEL_HEIGHT = 320, 270
LEFT, TOP, WIDTH, HEIGHT = 62, 44, 236, 166
"""Where the axes of a panel stand, and how long they are, in pixels."""
ROOM = 0.08
"""Empty share of an axis at either end."""


class Axis(NamedTuple):
    """Figures from `low` to `high` on pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """The pixel of a figure."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and text of three figures."""
        values = [self.low + (self.high - self.low) * share for share in (0.1, 0.5, 0.9)]
        return [(self.at(value), f"{value:.3f}") for value in values]


class Point(NamedTuple):
    """A space: where it stands, and the ends of its two intervals, in pixels."""

    name: str
    x: float
    y: float
    left: float
    right: float
    lower: float
    upper: float


class Panel(NamedTuple):
    """One metric; `line` is x1, y1, x2, y2 in pixels, and None where there is no slope."""

    title: str
    words: str
    x: Axis
    y: Axis
    points: list[Point]
    line: tuple[float, float, float, float] | None


def draw(found: ExchangeRates, *, simulated: bool) -> str:
    """The picture as SVG text: a panel for each metric, best predictors first, error bars of 95%."""
    by_metric = {one.metric: one for one in found.predictors}
    metrics = list(by_metric) or list(found.spaces[0].metrics)
    panels = [panel for one in metrics if (panel := _panel(one, found.spaces, by_metric.get(one)))]
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    return page.get_template("exchange_rate.svg.j2").render(
        panels=panels,
        across=min(PANELS_ACROSS, max(len(panels), 1)),
        size=(PANEL_WIDTH, PANEL_HEIGHT),
        target=found.target.upper(),
        simulated=simulated,
    )


def _panel(metric: str, spaces: Sequence[Measured], predictor: Predictor | None) -> Panel | None:
    """The panel of a metric, over the spaces on which it is defined; None where it is on none."""
    shown = [(one.name, one.metrics[metric], one.target) for one in spaces if not math.isnan(one.metrics[metric].value)]
    if not shown:
        return None
    x = _axis([figure for _, figure, _ in shown], LEFT, LEFT + WIDTH)
    y = _axis([figure for _, _, figure in shown], TOP + HEIGHT, TOP)
    points = [
        Point(
            name, x.at(across.value), y.at(up.value), x.at(across.low), x.at(across.high), y.at(up.low), y.at(up.high)
        )
        for name, across, up in shown
    ]
    if predictor is None:
        return Panel(metric, "", x, y, points, None)
    if predictor.slope is None:
        return Panel(metric, f"no slope: {predictor.blank}", x, y, points, None)
    value, low, high = predictor.slope
    words = f"for each +{STEP}: {value:+.5f} [{low:+.5f}, {high:+.5f}]"
    at, reached = [one.value for _, one, _ in shown], [one.value for _, _, one in shown]
    centre, height = sum(at) / len(at), sum(reached) / len(reached)
    ends = [(end, height + (end - centre) * value / STEP) for end in (min(at), max(at))]
    line = (x.at(ends[0][0]), y.at(ends[0][1]), x.at(ends[1][0]), y.at(ends[1][1]))
    return Panel(metric, words, x, y, points, line)


def _axis(figures: Sequence[Estimate], start: float, stop: float) -> Axis:
    """An axis that all intervals fit on."""
    ends = [end for one in figures for end in one if not math.isnan(end)]
    low, high = min(ends), max(ends)
    room = (high - low) * ROOM or 0.01
    return Axis(low - room, high + room, start, stop)
