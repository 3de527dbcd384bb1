"""Gates of an embedding space: each a figure and its limit. `moonlake.embeddings.checks` keeps their results.

    measured here       contents_known, coverage, shape, finite, zero, norm, duplicates, neighbour_overlap, drift
    measured by models  agreement, recall, ctr_gain, ctr_gain_over_live, exchange_rate
                        (`models.evaluation.release_gates`)

A gate that does not apply says why, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moonlake.embeddings.spaces import Space
from moonlake.embeddings.vector_stats import ContentsNow, SpaceFigures, neighbour_overlap, sample_vectors
from moonlake.lake.lake import Lake

OF_SPACE = (
    "coverage", "contents_known", "shape", "finite", "zero", "norm", "duplicates", "contract", "drift",
    "neighbour_overlap", "agreement", "recall",
)  # fmt: skip
OF_CLICK_MODEL = ("ctr_gain", "ctr_gain_over_live", "exchange_rate")
"""The gates that a release asks for: the second ones of a use with a click model."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The limits that an embedding space must keep.

    Attributes:
        max_duplicate_share: vectors that another content has too; distinct contents may show the same thing.
        min_neighbour_overlap: with the live space, beyond chance. Two encoders that learnt from behaviour share 0.4 to
            0.6 of the neighbours, a trained and an untrained one 0.02, shuffled vectors 0 (`standard-1`).
        max_drift: of the mean vector of products. An ordinary day measures 0.01, one of a single category 0.6.
        min_agreement_share, agreement_cosine: share of the contents embedded again whose vector comes out like this.
        min_recall_ratio: hit@10 over that of the live space, for the high end of the 95% interval.
        min_recall_ratio_for_ctr: the same for `ctr_ranking`, which has its own measure: on `standard-1` the space with
            the best click model has 0.83 times the recall of the one before it.
        min_recall_over_chance: hit@10 over that of a random order, for the low end, where no space is live.
        min_ctr_gain_auc: over a model of IDs alone, for the low end.
        min_ctr_gain_over_live_auc: over the model that runs, for the high end.
    """

    min_coverage: float = 0.999
    norm_tolerance: float = 0.002
    max_duplicate_share: float = 0.1
    overlap_neighbours: int = 10
    overlap_contents: int = 2_000
    overlap_fewest_contents: int = 500
    min_neighbour_overlap: float = 0.01
    recent_hours: float = 24.0
    drift_fewest_products: int = 100
    max_drift: float = 0.7
    agreement_contents: int = 64
    agreement_cosine: float = 0.999
    min_agreement_share: float = 0.98
    recall_days: float = 28.0
    recall_fewest_trials: int = 30
    min_recall_ratio: float = 0.95
    min_recall_ratio_for_ctr: float = 0.75
    min_recall_over_chance: float = 2.0
    min_ctr_gain_auc: float = 0.0001
    min_ctr_gain_over_live_auc: float = -0.001


@dataclass(frozen=True, slots=True)
class Gate:
    """One measured figure against its limits.

    Attributes:
        value: None where it could not be measured: then an applicable gate has failed.
        detail: the figure in words, or why there is none.
    """

    name: str
    value: float | None
    detail: str
    minimum: float | None = None
    maximum: float | None = None
    applicable: bool = True

    @property
    def passed(self) -> bool | None:
        """Whether the value keeps the limits; None where the gate does not apply."""
        if not self.applicable:
            return None
        if self.value is None:
            return False
        low, high = self.minimum, self.maximum
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    @property
    def said(self) -> str:
        """The value with its limit and in words; only the words where the gate does not apply."""
        if not self.applicable:
            return self.detail
        limits = [
            f"{word} {at:g}" for word, at in (("at least", self.minimum), ("at most", self.maximum)) if at is not None
        ]
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{value}{f' (expected {limits[0]})' if limits else ''}: {self.detail}"

    def __str__(self) -> str:
        return f"{self.name}: {self.said if self.applicable else f'does not apply: {self.said}'}"


def not_applicable(name: str, reason: str) -> Gate:
    """A gate that stops nothing, and why."""
    return Gate(name, None, reason, applicable=False)


def vector_gates(figures: SpaceFigures, limits: GateLimits) -> list[Gate]:
    """The gates that all vectors of a space went through."""
    of = f"of {figures.rows:,} vectors"
    contents = f"{figures.covered:,} of {figures.contents:,} contents have a vector"
    missing = figures.contents - figures.covered
    gates = [
        Gate("coverage", figures.covered / figures.contents, contents, limits.min_coverage)
        if figures.contents
        else Gate("coverage", None, "the lake holds no content that can be read", limits.min_coverage),
        Gate("contents_known", figures.strange_ids, f"{of}, with an id that is malformed or stands twice", maximum=0),
        Gate("shape", figures.misshapen, f"{of}, null or of another length than the space's", maximum=0),
        Gate("finite", figures.not_finite, f"{of}, with a null, NaN or infinite number", maximum=0),
        Gate("zero", figures.zero, f"{of}, all zeros", maximum=0),
    ]
    if missing and gates[0].passed is False:
        gates[0] = Gate("coverage", gates[0].value, f"{contents}; run embed_contents", limits.min_coverage)
    if figures.norm_error is None or figures.duplicate_share is None:
        reason = "no vector can be used"
        return [*gates, *(Gate(name, None, reason) for name in ("norm", "duplicates"))]
    largest = "largest distance of a vector's norm from 1"
    return [
        *gates,
        Gate("norm", figures.norm_error, largest, maximum=limits.norm_tolerance),
        Gate(
            "duplicates",
            figures.duplicate_share,
            "share of vectors that could go without one being lost",
            maximum=limits.max_duplicate_share,
        ),
    ]


def drift_gate(figures: SpaceFigures, limits: GateLimits) -> Gate:
    """The gate on the distance between the mean vectors of the products embedded last and of those before.

    Of products alone: queries of another kind lie elsewhere, and how many of each kind come in varies by the day.
    """
    fewest = limits.drift_fewest_products
    if figures.drift is None or min(figures.recent, figures.earlier) < fewest:
        reason = f"{figures.recent:,} products in the last {limits.recent_hours:g} hours of writing"
        return not_applicable("drift", f"{reason}, {figures.earlier:,} before; {fewest} of each are needed")
    detail = f"mean vector of the {figures.recent:,} products written last from that of {figures.earlier:,} before"
    return Gate("drift", figures.drift, detail, maximum=limits.max_drift)


def overlap_gate(
    lake: Lake, space: Space, live: Space | None, contents: ContentsNow, check_id: str, limits: GateLimits
) -> Gate:
    """The gate on the nearest neighbours that a space and the live space have in common, over a sample of contents.

    Args: check_id: where the sample begins, so that the next check looks at other contents.
    """
    name = "neighbour_overlap"
    if live is None:
        return not_applicable(name, "no space is live")
    if live.space_id == space.space_id:
        return not_applicable(name, "it is the live space")
    chosen: Sequence[str] = contents.sample(limits.overlap_contents, check_id)
    first, second = (sample_vectors(lake, one, chosen)[0] for one in (space, live))
    both = first.any(1) & second.any(1)
    if (count := int(both.sum())) < limits.overlap_fewest_contents:
        reason = f"{count} of {len(chosen)} sampled contents have a vector in both spaces"
        return not_applicable(name, f"{reason}, {limits.overlap_fewest_contents} are needed")
    neighbours = limits.overlap_neighbours
    share = neighbour_overlap(first[both], second[both], neighbours)
    detail = f"of the {neighbours} nearest among {count:,} contents shared with {live.name}, beyond chance"
    return Gate(name, share, detail, limits.min_neighbour_overlap)
