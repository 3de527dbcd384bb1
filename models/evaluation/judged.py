"""Graded nDCG on judged queries: of an encoder, of BM25, and of their blend, with paired differences.

Two sets of candidates: "judged" orders the products that were judged for the query; "all" finds them among all products
on sale, where a product that nobody judged counts as irrelevant though it may be a good answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc

from models.evaluation.bootstrap import Estimate, estimates, ratios
from models.evaluation.ndcg import BM25, CUTOFF, FOLDS, WEIGHTS, Gain, blended, cross_validated, gains_of, ndcg
from models.evaluation.representations import Represent
from models.training.catalogue_pairs import products_on_sale
from moonlake.arrays import Float32s, Float64s, Int64s
from moonlake.embeddings.contents import Content
from moonlake.errors import InputError
from moonlake.lake.lake import Lake

Candidates = Literal["judged", "all"]
SETTINGS: tuple[tuple[Candidates, Gain], ...] = (
    ("judged", "exponential"),
    ("judged", "esci"),
    ("all", "exponential"),
    ("all", "esci"),
)
DIFFERENCES = (("encoder", "bm25"), ("blend", "bm25"), ("blend", "encoder"))
FULL_TEXT = "bm25 on full text"
THE_END = datetime(9999, 1, 1, tzinfo=UTC)
"""Later than any row: what is true by now."""


class JudgedQuery(NamedTuple):
    """A query with the products that were judged for it.

    Attributes:
        rows: int64 [J], rows of the pool.
        grades: int64 [J].
    """

    content: Content
    rows: Int64s
    grades: Int64s


@dataclass(frozen=True, slots=True)
class JudgedQueries:
    """The queries, judgments and products of a measurement.

    Attributes:
        queries: those with a relevant product in the pool.
        pool: content of each product on sale.
        full_texts: title, bullet points and description of each, of which the encoder reads the title only.
        left_out: judgments of a query or product that the lake does not have, or of a query without a relevant one.
    """

    queries: list[JudgedQuery]
    pool: list[Content]
    full_texts: list[str]
    left_out: int


class Figure(NamedTuple):
    """Mean nDCG of one ranking, or the paired difference of two, over the queries."""

    subject: str
    candidates: Candidates
    gain: Gain
    ndcg: Estimate


@dataclass(frozen=True, slots=True)
class JudgedFigures:
    """The figures of a measurement on judged queries.

    Attributes:
        differences: of paired queries; their interval says whether the first is better.
        weights: the encoder's weight in the blend in each fold, by candidates and gain.
    """

    figures: list[Figure]
    differences: list[Figure]
    weights: dict[tuple[Candidates, Gain], list[float]]
    queries: int
    judgments: int
    pool: int
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        weights = {f"{candidates}_{gain}": found for (candidates, gain), found in self.weights.items()}
        named = {name: [one._asdict() for one in getattr(self, name)] for name in ("figures", "differences")}
        return asdict(self) | named | {"weights": weights}

    def metrics(self) -> dict[str, float]:
        """The figures by name, as they stand with an artifact or a space."""
        return {
            f"ndcg_{CUTOFF}_{figure.subject.replace(' ', '_')}_{figure.candidates}_{figure.gain}": figure.ndcg.value
            for figure in self.figures
        }


def evaluate_judged(lake: Lake, represent: Represent | None, at: datetime = THE_END) -> JudgedFigures:
    """nDCG@10 under every one of SETTINGS, with intervals over queries; ties count against us.

    Args:
        represent: unit vectors of contents; None measures BM25 alone.
        at: the products on sale just before it are found, and the judgments made before it count.

    Raises: InputError: fewer queries with a relevant product than the folds that the blend's weight is chosen over.
    """
    judged = judged_queries(lake, at)
    if len(judged.queries) < FOLDS:
        raise InputError(
            f"{len(judged.queries)} judged queries have a relevant product on sale ({judged.left_out} judgments left "
            f"out), {FOLDS} or more are needed: ingest a source with judgments, such as moonlake ingest --source esci"
        )
    measured = _measure(judged, represent)
    weights = {}
    for subject, candidates, gain in list(measured):
        if subject == "blend":
            blend = cross_validated(measured[subject, candidates, gain])
            measured[subject, candidates, gain], weights[candidates, gain] = blend
    differences = {
        (f"{one} - {other}", *setting): measured[one, *setting] - measured[other, *setting]
        for setting in SETTINGS
        for one, other in DIFFERENCES
        if (one, *setting) in measured
    }
    judgments = sum(len(query.rows) for query in judged.queries)
    counts = len(judged.queries), judgments, len(judged.pool), judged.left_out
    return JudgedFigures(_figures(measured), _figures(differences), weights, *counts)


def judged_queries(lake: Lake, at: datetime = THE_END) -> JudgedQueries:
    """The queries judged before `at`, and the products on sale then; of a restated judgment the last one counts."""
    products = products_on_sale(lake, at)
    row = {product.product_id: place for place, product in enumerate(products)}
    rows = lake.read("queries", ["query_id", "content_id", "text", "image_ids"]).to_pylist()
    contents = {one["query_id"]: Content(one["content_id"], one["text"], tuple(one["image_ids"])) for one in rows}
    columns = ["query_id", "product_id", "grade", "event_timestamp", "created_at"]
    judgments = lake.read("judgments", columns, where=pc.field("event_timestamp") < at)
    judgments = judgments.sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for one in judgments.to_pylist():
        grades[one["query_id"]][one["product_id"]] = one["grade"]
    queries, left_out = [], 0
    for query_id, graded in sorted(grades.items()):
        here = {row[product]: grade for product, grade in graded.items() if product in row}
        if query_id in contents and any(here.values()):
            places = np.array(sorted(here), np.int64)
            queries.append(JudgedQuery(contents[query_id], places, np.array([here[one] for one in sorted(here)])))
            left_out += len(graded) - len(here)
        else:
            left_out += len(graded)
    full = ["\n".join(filter(None, [product.content.text, *product.passages])) for product in products]
    return JudgedQueries(queries, [product.content for product in products], full, left_out)


_Measured = dict[tuple[str, Candidates, Gain], Float64s]


def _figures(values: _Measured) -> list[Figure]:
    """Means over queries; every one is drawn by the same queries."""
    if not values:
        return []
    columns = np.stack(list(values.values()), axis=1)  # [Q, figures]
    drawn = ratios(columns, np.ones((len(columns), 1)), np.arange(len(columns)))
    return [Figure(*name, estimate) for name, estimate in zip(values, estimates(drawn), strict=True)]


def _measure(judged: JudgedQueries, represent: Represent | None) -> _Measured:
    """nDCG of each query, float64 [Q], by ranking, candidates and gain; of the blend [Q, W], under every weight."""
    texts = [content.text for content in judged.pool]
    same_text, full_text = BM25(texts), BM25(judged.full_texts)
    vectors = None
    if represent is not None:
        vectors = represent([query.content for query in judged.queries]), represent(judged.pool)
    found: dict[tuple[str, Candidates, Gain], list[float | list[float]]] = defaultdict(list)
    for at, query in enumerate(judged.queries):
        scores = {"bm25": same_text.scores(query.content.text), FULL_TEXT: full_text.scores(query.content.text)}
        if vectors is not None:
            scores["encoder"] = _cosines(vectors[0][at], vectors[1])
        for candidates, gain in SETTINGS:
            chosen = query.rows if candidates == "judged" else np.arange(len(judged.pool))
            gains = np.zeros(len(judged.pool))
            gains[query.rows] = gains_of(query.grades, gain)
            for subject, values in _of_candidates(scores, gains, chosen).items():
                found[subject, candidates, gain].append(values)
    return {name: np.array(values) for name, values in found.items()}


def _cosines(query: Float32s, pool: Float32s) -> Float64s:
    """float64 [N]; a product without a vector stands last, and a query without one ties all."""
    cosine = (pool @ query).astype(np.float64)
    cosine[~pool.any(1)] = -1.0
    return cosine if query.any() else np.zeros(len(pool))


def _of_candidates(scores: Mapping[str, Float64s], gains: Float64s, chosen: Int64s) -> dict[str, float | list[float]]:
    kept = {subject: values[chosen] for subject, values in scores.items()}
    gains = gains[chosen]
    found: dict[str, float | list[float]] = {subject: ndcg(values, gains) for subject, values in kept.items()}
    if "encoder" in kept:
        found["blend"] = [ndcg(blended(kept["bm25"], kept["encoder"], weight), gains) for weight in WEIGHTS]
    return found
