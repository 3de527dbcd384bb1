"""Recall of purchases by vectors: hit rate and precision over the whole pool, in all and by segment.

`measure` is a pure function of trials and vectors: trials are read once and serve many encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from models.evaluation.bootstrap import Rate, rates, ratios
from models.evaluation.purchase_trials import Task, Trials, read_trials
from models.evaluation.ranking import CUTOFFS, ranks
from models.evaluation.representations import Represent
from moonlake.arrays import Float32s, Float64s, Int64s
from moonlake.errors import InputError
from moonlake.lake.lake import Lake

PIXELS = "pixels"
SMALLEST_SEGMENT = 30
"""Trials below which a segment gets no figure of its own."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Hit rates on the trials of one part of a division, such as "tier 1" of "merchant tier"."""

    division: str
    part: str
    purchases: int
    hit_rates: list[Rate]


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall figures of one task.

    Attributes:
        hit_rates: share of purchases with the product among the first k of the pool; a query content weighs at most
            `models.evaluation.purchase_trials.TRIALS_PER_QUERY` purchases.
        precisions: of the first k, the share that was bought after that very query in the window, by whomever; the mean
            over distinct queries.
        precision_limits: what the precision would be if all that was bought stood first.
        seen: the window holds rows from before `trained_until`: the figure flatters.
    """

    task: Task
    hit_rates: list[Rate]
    precisions: list[Rate]
    precision_limits: list[float]
    segments: list[Segment]
    purchases: int
    queries: int
    pool: int
    left_out: int
    start: datetime
    end: datetime
    seen: bool = False

    def metrics(self) -> dict[str, float]:
        """The figures by name, as they stand with an artifact or a space."""
        return {f"{self.task}_hit_{rate.cutoff}": rate.value for rate in self.hit_rates} | {
            f"{self.task}_precision_{rate.cutoff}": rate.value for rate in self.precisions
        }

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self) | {"start": self.start.isoformat(), "end": self.end.isoformat()}


def evaluate_encoder(
    lake: Lake,
    represent: Represent,
    start: datetime,
    end: datetime,
    *,
    trained_until: datetime | None,
    task: Task = "image_search",
    allow_seen: bool = False,
) -> Recall:
    """Recall on the purchases of [start, end): `require_unseen`, `read_trials` and `measure` in one.

    Raises: InputError: the window begins before `trained_until`, or holds nothing to measure on.
    """
    seen = require_unseen(start, trained_until, allow_seen=allow_seen)
    trials = read_trials(lake, start, end, task)
    require_trials(trials)
    return measure(trials, *vectors_of(trials, represent), seen=seen)


def require_unseen(start: datetime, trained_until: datetime | None, *, allow_seen: bool) -> bool:
    """True when rows from `start` on may have been seen in training. Raises InputError unless that is allowed."""
    seen = trained_until is not None and start <= trained_until
    if seen and not allow_seen:
        raise InputError(
            f"the encoder was trained until {trained_until}, the evaluation starts {start}: "
            "start later, or ask for seen rows by name"
        )
    return seen


def require_trials(trials: Trials) -> None:
    """Raise InputError, with the counts, unless there are purchases to measure on."""
    if not len(trials.positives):
        raise InputError(
            f"{trials.task}: no purchase in [{trials.start}, {trials.end}) that can be measured on "
            f"({trials.left_out} left out, {len(trials.pool)} products live)"
        )


def vectors_of(trials: Trials, represent: Represent) -> tuple[Float32s, Float32s]:
    """Vectors of `trials.queries` and of `trials.pool`, float32 [Q, D] and [N, D]; each content is represented once."""
    contents = trials.contents
    row = {content.content_id: at for at, content in enumerate(contents)}
    vectors = represent(contents)
    queries, pool = ([row[one.content_id] for one in side] for side in (trials.queries, trials.pool))
    return vectors[queries], vectors[pool]


def measure(
    trials: Trials,
    query_vectors: Float32s,
    pool_vectors: Float32s,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    seen: bool = False,
) -> Recall:
    """Recall figures of vectors, with ties counted against them.

    Args:
        query_vectors, pool_vectors: float32 [Q, D] of `trials.queries` and [N, D] of `trials.pool`, unit rows.
        seen: label the figures as measured on rows that training may have seen.
    """
    return recall_of(trials, places_of(trials, query_vectors, pool_vectors), cutoffs=cutoffs, seen=seen)


def places_of(trials: Trials, query_vectors: Float32s, pool_vectors: Float32s) -> Int64s:
    """int64 [T]: place of what was bought in the pool, from 1: what models are compared by, trial by trial."""
    return ranks(query_vectors, pool_vectors, trials.query_rows, trials.positives, trials.own)


def recall_of(trials: Trials, places: Int64s, *, cutoffs: Sequence[int] = CUTOFFS, seen: bool = False) -> Recall:
    """The figures of places that `places_of` gave."""
    weights = trials.weights[:, None]
    hits = (places[:, None] <= np.array(cutoffs)).astype(np.float64)  # [T, K]
    right, held = _right_of_queries(trials, places, cutoffs)
    return Recall(
        trials.task,
        rates(cutoffs, ratios(weights * hits, weights, trials.query_rows)),
        rates(cutoffs, ratios(right / np.array(cutoffs), np.ones((len(right), 1)), np.arange(len(right)))),
        (np.minimum(held[:, None], cutoffs) / np.array(cutoffs)).mean(0).tolist(),
        _segments(trials, hits, cutoffs),
        len(places),
        len(trials.queries),
        len(trials.pool),
        trials.left_out,
        trials.start,
        trials.end,
        seen,
    )


def _right_of_queries(trials: Trials, places: Int64s, cutoffs: Sequence[int]) -> tuple[Float64s, Int64s]:
    """For each query the distinct products bought after it: among the first k [Q, K], and in all [Q]."""
    pairs = np.stack([trials.query_rows, trials.positives], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    query = trials.query_rows[first]
    within = [np.bincount(query, places[first] <= cutoff, len(trials.queries)) for cutoff in cutoffs]
    return np.stack(within, axis=1), np.bincount(query, minlength=len(trials.queries))


def _segments(trials: Trials, hits: Float64s, cutoffs: Sequence[int]) -> list[Segment]:
    """Hit rates of every part that is large enough, the largest of each division first."""
    found, weights = [], trials.weights
    for division, names in trials.segments.items():
        parts, part_of, counts = np.unique(names, return_inverse=True, return_counts=True)
        shown = [at for at in np.argsort(-counts, kind="stable").tolist() if counts[at] >= SMALLEST_SEGMENT]
        if not shown:
            continue
        inside = weights[:, None] * (part_of[:, None] == shown)  # [T, parts]
        over = np.repeat(inside, len(cutoffs), axis=1)  # [T, parts * K]
        drawn = ratios(over * np.tile(hits, len(shown)), over, trials.query_rows)
        for place, part in enumerate(shown):
            own = drawn[:, place * len(cutoffs) : (place + 1) * len(cutoffs)]
            found.append(Segment(division, str(parts[part]), int(counts[part]), rates(cutoffs, own)))
    return found
