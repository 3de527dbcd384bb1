"""The parts that impressions are told apart by, and what click models are worth on each.

Facts are as of the impression: what a product was then, and not what it became. Head and tail are told by the training
window, so that the test rows do not sort themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from models.evaluation.bootstrap import Estimate
from models.evaluation.click_metrics import ClickMetrics, Metric, click_metrics, gain_over_runs
from models.evaluation.trial_segments import AGES, popularity
from moonlake.arrays import Bools, Float64s, Strings
from moonlake.lake.lake import Lake
from moonlake.point_in_time import NO_ROW, as_of_rows, encode_keys, microseconds

NEW_PRODUCT_AGES = ("listed under 1 day before", "listed 1 to 7 days before", *AGES[1:])
NEW_PRODUCT_DAYS = (1, 7, 28)
UNKNOWN = "unknown"
NOT_TRAINED_ON = "not in training"
SMALLEST_SEGMENT = 100
"""Impressions below which a part gets no figure of its own; it also needs a clicked one and an unclicked one."""
COLUMNS = {"products": ("category", "merchant_id", "listed_at"), "merchants": ("tier",)}
"""What is read of a product and of a merchant, besides keys and times."""
DAY_US = 86_400_000_000


class ClickFacts(NamedTuple):
    """Facts about n impressions, by which they are divided into segments.

    Attributes:
        age_days: float64 [n], since the product was first on sale; NaN where the lake does not know the product.
        category, merchant_tier: str [n].
        user, product: str [n], "head", "tail" or NOT_TRAINED_ON, by impressions in the training window.
    """

    age_days: Float64s
    category: Strings
    merchant_tier: Strings
    user: Strings
    product: Strings


class ClickSegment(NamedTuple):
    """One part of a division, such as "tier 1" of "merchant tier"; `chosen` is bool [n]."""

    division: str
    part: str
    chosen: Bools


class SegmentGain(NamedTuple):
    """The gain of one model over another on a segment."""

    division: str
    part: str
    impressions: int
    gain: Estimate


def segments_of(facts: ClickFacts) -> list[ClickSegment]:
    """Every part of every division that an impression is of; ages from new to old, the other parts largest first."""
    age = np.array(NEW_PRODUCT_AGES, np.str_)[np.digitize(facts.age_days, NEW_PRODUCT_DAYS)]
    age = np.where(np.isnan(facts.age_days), UNKNOWN, age)
    divisions = {
        "age": age,
        "category": facts.category,
        "merchant tier": facts.merchant_tier,
        "users": facts.user,
        "products": facts.product,
    }
    return [segment for division, names in divisions.items() for segment in _parts(division, names)]


def read_facts(lake: Lake, scored: pa.Table, training_window: tuple[datetime, datetime]) -> ClickFacts:
    """The facts of impressions, from products, merchants and the impressions of the training window.

    Args: scored: what `models.ctr.train.score` gave: product_id, user_id and event_timestamp.
    """
    states = _as_of(lake, "products", "product_id", scored["product_id"], scored["event_timestamp"])
    tiers = _as_of(lake, "merchants", "merchant_id", states["merchant_id"], scored["event_timestamp"])
    shown = microseconds(scored["event_timestamp"], "event_timestamp")
    listed = states["listed_at"].cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN
    start, end = training_window
    inside = (pc.field("event_timestamp") >= start) & (pc.field("event_timestamp") < end)
    trained = lake.read("impressions", ["user_id", "product_id"], where=inside)
    tier = [UNKNOWN if one is None else f"tier {one}" for one in tiers["tier"].to_pylist()]
    return ClickFacts(
        (shown - listed) / DAY_US,
        np.array(states["category"].fill_null(UNKNOWN).to_pylist(), np.str_),
        np.array(tier, np.str_),
        _traffic(scored["user_id"], trained["user_id"]),
        _traffic(scored["product_id"], trained["product_id"]),
    )


def metrics_by_segment(
    segments: Sequence[ClickSegment], clicked: ArrayLike, scores: ArrayLike, users: ArrayLike
) -> list[tuple[ClickSegment, ClickMetrics]]:
    """All metrics on each segment that is large enough."""
    return [(one, click_metrics(clicked, scores, users, segment=one.chosen)) for one in _measurable(segments, clicked)]


def gains_by_segment(
    segments: Sequence[ClickSegment],
    clicked: ArrayLike,
    scores: ArrayLike,
    baselines: ArrayLike,
    users: ArrayLike,
    *,
    metric: Metric = "auc",
    seed: int = 0,
) -> list[SegmentGain]:
    """The gain of one model over another on each segment that is large enough, over runs and the segment's users.

    Args: scores, baselines: [S, n], run by run, as in `models.evaluation.click_metrics.gain_over_runs`.
    """
    labels, of_user = np.asarray(clicked), np.asarray(users)
    runs = [np.atleast_2d(np.asarray(one)) for one in (scores, baselines)]
    found = []
    for one in _measurable(segments, labels):
        first, second = (table[:, one.chosen] for table in runs)
        gain = gain_over_runs(labels[one.chosen], first, second, of_user[one.chosen], metric=metric, seed=seed)
        found.append(SegmentGain(one.division, one.part, int(one.chosen.sum()), gain))
    return found


def _parts(division: str, names: Strings) -> Iterator[ClickSegment]:
    parts, part_of, counts = np.unique(names, return_inverse=True, return_counts=True)
    known = {name: place for place, name in enumerate(NEW_PRODUCT_AGES)}
    for at in sorted(range(len(parts)), key=lambda at: (known.get(str(parts[at]), len(known)), -counts[at])):
        yield ClickSegment(division, str(parts[at]), part_of == at)


def _measurable(segments: Sequence[ClickSegment], clicked: ArrayLike) -> list[ClickSegment]:
    labels = np.asarray(clicked, bool)
    return [
        one
        for one in segments
        if one.chosen.sum() >= SMALLEST_SEGMENT and 0 < labels[one.chosen].sum() < one.chosen.sum()
    ]


def _as_of(lake: Lake, table: str, key: str, keys: pa.ChunkedArray, times: pa.ChunkedArray) -> pa.Table:
    """COLUMNS of the row of each key that was true at the time; nulls where there was none."""
    names = pc.unique(keys).drop_null()
    rows = lake.read(table, [key, *COLUMNS[table], "event_timestamp", "created_at"], where=pc.field(key).isin(names))
    label_keys, feature_keys = encode_keys(pa.table({key: keys}), rows.select([key]))
    found = as_of_rows(
        label_keys,
        microseconds(times, "event_timestamp"),
        feature_keys,
        microseconds(rows["event_timestamp"], "event_timestamp"),
        microseconds(rows["created_at"], "created_at"),
    )
    return rows.select(list(COLUMNS[table])).take(pa.array(found, mask=found == NO_ROW))


def _traffic(wanted: pa.ChunkedArray, trained: pa.ChunkedArray) -> Strings:
    """str [n]: head, tail or NOT_TRAINED_ON, by how often a name stands in the training rows."""
    counts = pc.value_counts(trained.combine_chunks())
    encoded = wanted.combine_chunks().dictionary_encode()
    seen = {one["values"]: one["counts"] for one in counts.to_pylist()}
    return popularity(encoded.dictionary.to_pylist(), seen, none=NOT_TRAINED_ON)[encoded.indices.to_numpy()]
