"""Gates of a release that need an encoder, later purchases or a click model.

`moonlake.embeddings.gates` has the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from models.evaluation.association import quotient
from models.evaluation.bootstrap import DRAWS, NORMAL, Estimate, estimates, ratios
from models.evaluation.exchange_rate import STEP
from models.evaluation.purchase_trials import Trials, read_trials
from models.evaluation.recall import places_of, vectors_of
from models.evaluation.representations import Represent, embedder_vectors
from models.inference import Embedder
from moonlake.arrays import Float32s, Float64s, Int64s
from moonlake.embeddings.contents import Content, read_contents
from moonlake.embeddings.gates import Gate, GateLimits, not_applicable
from moonlake.embeddings.spaces import Space, require_same
from moonlake.embeddings.vector_stats import sample_vectors
from moonlake.errors import MoonlakeError
from moonlake.lake.lake import Lake
from moonlake.schema.tables import CTR_RANKING

CUTOFF = 10
"""Recall is the hit rate of image search at this place."""


class ModelToRelease(NamedTuple):
    """A recorded CTR model.   running: model_id and name of the one that the use runs on; None for none."""

    model_id: str
    name: str
    running: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class RecallMove:
    """The recall gate, and what recall moved against the live space: float64 [1 + DRAWS], None without one."""

    gate: Gate
    moved: Float64s | None = None


def agreement_gate(lake: Lake, space: Space, content_ids: Sequence[str], limits: GateLimits) -> Gate:
    """Whether stored vectors are those that the space's own encoder makes: of some contents, made again now.

    Contents without a vector are left out: they are the coverage gate's. A vector that cannot be used disagrees.
    """
    name, least = "agreement", limits.min_agreement_share
    ids = list(dict.fromkeys(content_ids))
    stored, there = sample_vectors(lake, space, ids)
    if not there.any():
        return Gate(name, None, "no sampled content has a vector", least)
    kept = [one for one, has in zip(ids, there, strict=True) if has]
    contents = read_contents(lake, kept)
    try:
        embedder = Embedder.open(space.artifact)
        made_by = embedder.space.space_id
        require_same(space.space_id, made_by, what=f"encoder artifact {space.artifact}")
    except MoonlakeError as error:
        return Gate(name, None, f"no vector can be made again: {error}", least)
    again = embedder_vectors(lake, embedder)([contents[one] for one in kept])
    cosines = _cosines(stored[there], again)
    share = float((cosines >= limits.agreement_cosine).mean())
    detail = (
        f"of {len(kept)} contents embedded again, share whose stored vector has cosine {limits.agreement_cosine:g} or "
        f"more to the new one; smallest {cosines.min():.4f}, median {np.median(cosines):.4f}"
    )
    return Gate(name, share, detail, least)


def recall_gate(lake: Lake, space: Space, live: Space | None, use: str, limits: GateLimits) -> RecallMove:
    """Hit rate of image search on stored vectors, against that of the live space on the same purchases.

    The purchases are later than all that either encoder learnt from. Without a live space chance is what to beat.

    Args: use: what `live` is live for.
    """
    name = "recall"
    if live is not None and live.space_id == space.space_id:
        return RecallMove(not_applicable(name, "it is the live space"))
    trials = _trials(lake, [space, *([live] if live else [])], limits)
    if trials is None or len(trials.positives) < limits.recall_fewest_trials:
        found = 0 if trials is None else len(trials.positives)
        reason = f"{found} purchases after an image query, later than the encoders' data"
        return RecallMove(not_applicable(name, f"{reason}; {limits.recall_fewest_trials} are needed"))
    weights = trials.weights[:, None]
    hits = _places(lake, space, trials)[:, None] <= CUTOFF
    if live is None:
        low = estimates(ratios(hits * weights, weights, trials.query_rows))[0]
        least = limits.min_recall_over_chance * min(1.0, CUTOFF / len(trials.pool))
        detail = f"low end of hit@{CUTOFF} {low:.4f} on {len(hits):,} purchases, pool of {len(trials.pool):,}"
        if least >= 1:
            return RecallMove(not_applicable(name, f"a pool of {len(trials.pool)} products is too small to say"))
        return RecallMove(Gate(name, low.low, detail, least))
    before = _places(lake, live, trials)[:, None] <= CUTOFF
    share = estimates(ratios(hits * weights, before * weights, trials.query_rows))[0]
    moved = ratios((hits.astype(np.float64) - before) * weights, weights, trials.query_rows)
    detail = f"high end of hit@{CUTOFF} over that of {live.name}, {share:.4f}; it changes by "
    detail += f"{estimates(moved)[0]:+.4f} on {len(hits):,} purchases from {trials.start:%Y-%m-%d}"
    if np.isnan(share.high):
        return RecallMove(not_applicable(name, f"the live space finds nothing; {detail}"), moved[:, 0])
    least = limits.min_recall_ratio_for_ctr if use == CTR_RANKING else limits.min_recall_ratio
    return RecallMove(Gate(name, share.high, detail, least), moved[:, 0])


def ctr_gates(lake: Lake, model: ModelToRelease, recall: RecallMove, limits: GateLimits) -> list[Gate]:
    """Gates on a CTR model's gain over IDs alone and over the model that runs, as `evaluate ctr --against` recorded it.

    The exchange rate has no limit of its own: what recall moved and what AUC gained have theirs.
    """
    rows = lake.read("model_versions", ["metrics", "created_at"], where=pc.field("model_id") == model.model_id)
    recorded = [json.loads(row["metrics"]).get("gain") for row in rows.sort_by("created_at").to_pylist()]
    gains: list[Mapping[str, Any]] = [gain for gain in recorded if gain is not None]
    over_ids = [one for one in gains if one["space_id"] is None]
    found = [_ctr_gate("ctr_gain", over_ids[-1], "low", limits.min_ctr_gain_auc) if over_ids else _not_evaluated(model)]
    live = "ctr_gain_over_live"
    if model.running is None or model.running[0] == model.model_id:
        reason = "no model runs" if model.running is None else "it is the model that runs"
        return [*found, *(not_applicable(name, reason) for name in (live, "exchange_rate"))]
    over_live = [one for one in gains if one["model_id"] == model.running[0]]
    if not over_live:
        command = f"moonlake evaluate ctr {model.name} --on TRAINING_SET --against {model.running[1]}"
        reason = f"never measured on the same rows as the model that runs: {command}"
        return [*found, *(not_applicable(name, reason) for name in (live, "exchange_rate"))]
    found.append(_ctr_gate(live, over_live[-1], "high", limits.min_ctr_gain_over_live_auc))
    return [*found, _exchange_gate(over_live[-1], recall)]


def _exchange_gate(gain: Mapping[str, Any], recall: RecallMove) -> Gate:
    name = "exchange_rate"
    value, low, high = gain["auc"]
    if recall.moved is None or value is None:
        return not_applicable(name, f"recall was not measured against the live space: {recall.gate.detail}")
    spread = (high - low) / (2 * NORMAL)
    gained = np.concatenate([[value], value + spread * np.random.default_rng(1).normal(size=DRAWS)])
    rate = quotient(gained * STEP, recall.moved)
    if rate is None:
        return not_applicable(name, "recall moved less than two standard errors: there is nothing to divide by")
    return Gate(name, rate.value, f"AUC {rate:+.5f} for each +{STEP:g} of hit@{CUTOFF}; no limit")


def _ctr_gate(name: str, gain: Mapping[str, Any], end: str, least: float) -> Gate:
    value, low, high = gain["auc"]
    if value is None or low is None or high is None:
        return Gate(name, None, f"AUC over {gain['against']} is undefined on the rows that it was measured on", least)
    detail = f"{end} end of AUC {Estimate(value, low, high):+.4f} over {gain['against']}"
    detail += f" on {gain['impressions']:,} impressions"
    return Gate(name, low if end == "low" else high, detail, least)


def _not_evaluated(model: ModelToRelease) -> Gate:
    command = f"moonlake evaluate ctr {model.name} --on TRAINING_SET --against A_MODEL_OF_IDS_ALONE"
    return Gate("ctr_gain", None, f"what it gains over IDs alone was never measured: {command}")


def _trials(lake: Lake, spaces: Sequence[Space], limits: GateLimits) -> Trials | None:
    """The last days' purchases after all that the encoders learnt from; None where there are none."""
    bought = lake.read("behaviors", ["event_timestamp"], where=pc.field("action") == "purchase")["event_timestamp"]
    last: datetime | None = pc.max(bought).as_py()
    if last is None:
        return None
    end = last + timedelta(microseconds=1)
    known = [one.trained_until + timedelta(microseconds=1) for one in spaces if one.trained_until is not None]
    start = max([end - timedelta(days=limits.recall_days), *known])
    return read_trials(lake, start, end) if start < end else None


def _places(lake: Lake, space: Space, trials: Trials) -> Int64s:
    return places_of(trials, *vectors_of(trials, _stored(lake, space)))


def _stored(lake: Lake, space: Space) -> Represent:
    def represent(contents: Sequence[Content]) -> Float32s:
        return sample_vectors(lake, space, [one.content_id for one in contents])[0]

    return represent


def _cosines(first: Float32s, second: Float32s) -> Float32s:
    """float32 [n]: cosine of rows; 0 where one is all zeros."""
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray(np.divide((first * second).sum(1), sizes, out=np.zeros_like(sizes), where=sizes > 0), np.float32)
