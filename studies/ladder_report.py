"""The encoder ladder's page: recall, share of the gap closed and paired differences, from saved places alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models.evaluation.bootstrap import Estimate, gap_closed, over_runs, paired_difference, ratios
from models.evaluation.purchase_trials import Trials
from models.evaluation.ranking import CUTOFFS
from moonlake.arrays import Float64s, Int64s
from sources.own_files.staging import SourceInfo
from studies.ladder_data import Measured

PIXELS, LATENTS = "raw pixels", "true latents"
FIRST_MLLM = "MLLM stage 1"
HEADLINE = 10
WANTED_GAP = 0.8


@dataclass(frozen=True, slots=True)
class Climbed:
    """A rung as it was measured.

    Attributes:
        stages: stage and optimiser steps of each phase.
        seeds: [S].
        places: int64 [S, T].
        minutes: of training, mean over seeds, shared phases counted in full.
        saved: what was saved of each run.
    """

    name: str
    stages: tuple[tuple[int, int], ...]
    seeds: list[int]
    places: Int64s
    minutes: float
    saved: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a rung at one cutoff, each a mean over seeds; differences are paired by trial and by seed.

    Attributes:
        gap: (model - pixels) / (true latents - pixels).
        to_before, to_first: hit rate minus that of the rung before, and of the first MLLM rung; None without one.
    """

    name: str
    cutoff: int
    hit: Estimate
    gap: Estimate
    to_before: Estimate | None
    to_first: Estimate | None


def summary(
    rungs: Sequence[tuple[str, Int64s]],
    floor: Int64s,
    ceiling: Int64s,
    clusters: Int64s,
    weights: Float64s,
    cutoffs: Sequence[int] = CUTOFFS,
) -> list[Row]:
    """The rows of the ladder, rung by rung from raw pixels on, cutoff by cutoff.

    Args:
        rungs: name and places int64 [S, T] of each, from the bottom; raw pixels are put below them.
        floor, ceiling: int64 [T], places by raw pixels and by the true latents.
        clusters, weights: [T], query of each trial, and what it counts.
    """
    every = [(PIXELS, floor[None]), *rungs]
    names = [name for name, _ in every]
    first = names.index(FIRST_MLLM) if FIRST_MLLM in names else len(names)
    found = []
    for at, (name, places) in enumerate(every):
        for cutoff in cutoffs:
            against = partial(paired_difference, clusters=clusters, cutoff=cutoff, weights=weights)
            hits = (places <= cutoff).T * weights[:, None]  # [T, S]
            before = against(places, every[at - 1][1]) if at else None
            since = against(places, every[first][1]) if at > first else None
            gap = gap_closed(places, floor, ceiling, clusters, cutoff, weights=weights)
            found.append(Row(name, cutoff, over_runs(ratios(hits, weights[:, None], clusters)), gap, before, since))
    return found


def write_report(
    path: Path,
    info: SourceInfo,
    measured: Measured,
    climbed: Sequence[Climbed],
    steps: int,
    settings: Mapping[str, Any],
) -> None:
    """Write the page."""
    trials = measured.trials
    rungs = [(rung.name, rung.places) for rung in climbed]
    rows = summary(rungs, measured.floor, measured.ceiling, trials.query_rows, trials.weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(rows, _ceiling(trials, measured.ceiling), info, trials, climbed, steps, settings), "utf-8")


def page(
    rows: Sequence[Row],
    ceiling: Sequence[Estimate],
    info: SourceInfo,
    trials: Trials,
    climbed: Sequence[Climbed],
    steps: int,
    settings: Mapping[str, Any],
) -> str:
    """The page as Markdown. Args: ceiling: hit rate of the true latents at each cutoff."""
    parts = [
        "# The encoder ladder, measured\n",
        _facts(info, trials, climbed, steps, settings),
        "## Hit rates and gap closed\n",
        _table(
            [
                "rung",
                "steps (stage 0 / 1 / 2)",
                *(f"hit@{cutoff}" for cutoff in CUTOFFS),
                "gap closed @10 [95%]",
                "min",
            ],
            [_hit_row(name, rows, climbed) for name in dict.fromkeys(row.name for row in rows)]
            + [[LATENTS, "", *(f"{one.value:.4f}" for one in ceiling), "1", ""]],
        ),
        "Gap closed is (model - raw pixels) / (true latents - raw pixels); min is the time of training on one core,\n"
        "mean over seeds, phases that rungs share counted in full.\n",
    ]
    for cutoff in sorted(CUTOFFS, key=lambda one: one != HEADLINE):
        parts += [
            f"## Paired differences, hit@{cutoff}\n",
            _table(
                ["rung", "minus the rung before [95%]", f"minus {FIRST_MLLM} [95%]", "gap closed [95%]"],
                [
                    [row.name, _signed(row.to_before), _signed(row.to_first), _plain(row.gap)]
                    for row in rows
                    if row.cutoff == cutoff
                ],
            ),
        ]
    return "\n".join([*parts, "## Wanted, and what came\n", _verdicts(rows), "## Runs\n", _runs(climbed)])


def _facts(
    info: SourceInfo, trials: Trials, climbed: Sequence[Climbed], steps: int, settings: Mapping[str, Any]
) -> str:
    saved = [one for rung in climbed for one in rung.saved]
    commits = ", ".join(sorted({str(one["commit"]) for one in saved})) or "unknown"
    cores = ", ".join(sorted({str(one["cores"]) for one in saved})) or "unknown"
    minutes = sum(one["train_seconds"] + one["measure_seconds"] for one in saved) / 60
    said = "**Simulated**: products, pictures, behaviour and the true latents." if info.simulated else "Real behaviour."
    lines = [
        f"{said} Source `{info.name}`, fingerprint `{info.fingerprint}`; image queries that ended in a purchase",
        f"from {trials.start:%Y-%m-%d} (t1: encoders saw nothing from there on) to {trials.end:%Y-%m-%d}:",
        f"{len(trials.positives):,} purchases after {len(trials.queries):,} queries, pool of {len(trials.pool):,},",
        "ties against us.",
        f"Every trained rung takes {steps:,} optimiser steps in all, of equal batch size; stages 0 and 2 take theirs",
        "from stage 1. A later rung starts from the very weights of stages 0 and 1 of its seed, computed once.",
        "Hard negatives, queue and several images belong to stage 2; evaluation reads every image on all rungs.",
        "Hit rates are means over seeds; intervals are 95%, of a bootstrap over queries crossed with seeds",
        "(`models.evaluation.bootstrap`).",
        f"Products of one SPU share one true style, so hit@1 is partly chance: hit@{HEADLINE} is the headline.",
        "",
        f"Seeds {', '.join(map(str, climbed[0].seeds))}; commit {commits}; {cores} cores, one thread a run;",
        f"{minutes:.0f} core minutes in the last phases and their measurement.",
        f"Settings: `{json.dumps(dict(settings))}`.",
    ]
    return "\n".join(lines) + "\n"


def _hit_row(name: str, rows: Sequence[Row], climbed: Sequence[Climbed]) -> list[str]:
    own = {row.cutoff: row for row in rows if row.name == name}
    rung = next((one for one in climbed if one.name == name), None)
    steps = dict(rung.stages) if rung else {}
    said = " / ".join(str(steps.get(stage, 0)) for stage in (0, 1, 2)) if steps else "0"
    minutes = f"{rung.minutes:.1f}" if rung else ""
    return [name, said, *(f"{own[cutoff].hit.value:.4f}" for cutoff in CUTOFFS), _plain(own[HEADLINE].gap), minutes]


def _verdicts(rows: Sequence[Row]) -> str:
    """Verdicts on every expectation, met or not."""
    ours = [row for row in rows if row.cutoff == HEADLINE]
    last = ours[-1]
    worse = [row for row in ours if row.to_before is not None and row.to_before.high < 0]
    better = [row for row in ours if row.to_before is not None and row.to_before.low > 0]
    lines = []
    if last.to_first is not None:
        met = "met" if last.to_first.low > 0 else "NOT met"
        lines.append(f"- Last rung minus {FIRST_MLLM}, interval above zero: {met}, {_signed(last.to_first)}.")
    lines.append(f"- No rung significantly worse than the one before: {_names(worse, 'met', 'NOT met')}.")
    lines.append(f"- Significantly better than the one before: {_names(better, 'none', 'yes')}.")
    met = "met" if last.gap.value >= WANTED_GAP else "NOT met"
    lines.append(
        f"- At least {WANTED_GAP} of the gap closed by the last rung at {HEADLINE}: {met}, {_plain(last.gap)}."
    )
    return "\n".join(lines) + "\n"


def _names(rows: Sequence[Row], none: str, some: str) -> str:
    return f"{some}: {', '.join(f'{row.name} {_signed(row.to_before)}' for row in rows)}" if rows else none


def _runs(climbed: Sequence[Climbed]) -> str:
    lines = []
    for rung in climbed:
        for seed, places, saved in zip(rung.seeds, rung.places, rung.saved, strict=True):
            metrics = saved["metrics"]
            figures = [f"{(places <= cutoff).mean():.4f}" for cutoff in CUTOFFS]
            speed = [f"{metrics[name]:.3g}" if name in metrics else "" for name in ("loss", "samples_per_second")]
            lines.append([rung.name, str(seed), *figures, *speed])
    head = ["rung", "seed", *(f"hit@{cutoff}, unweighted" for cutoff in CUTOFFS), "loss", "samples/s"]
    return "Loss and speed are those of the last phase.\n\n" + _table(head, lines)


def _ceiling(trials: Trials, places: Int64s) -> list[Estimate]:
    weights = trials.weights[:, None]
    return [over_runs(ratios(weights * (places[:, None] <= cutoff), weights, trials.query_rows)) for cutoff in CUTOFFS]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _signed(one: Estimate | None) -> str:
    return "" if one is None else f"{one:+.4f}"


def _plain(one: Estimate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
