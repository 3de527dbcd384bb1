"""The page of what content is worth to a click model: figures, paired gains, controls, ceiling, streams, segments."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.ctr.config import CtrConfig
from models.evaluation.bootstrap import Estimate
from models.evaluation.click_segments import SegmentGain, gains_by_segment
from sources.own_files.staging import SourceInfo
from studies.ctr_worth_figures import (
    CUBE,
    DIN,
    GAINED,
    IDS,
    LATENTS,
    METRICS,
    RANDOM,
    RANKED,
    SHUFFLED,
    TREES,
    TREES_CONTENT,
    Draws,
    Measured,
    without,
)  # fmt: skip

GAINS = ((DIN, IDS), (CUBE, IDS), (CUBE, DIN), (TREES_CONTENT, TREES), (CUBE, TREES_CONTENT))
CONTROLLED = ((SHUFFLED, DIN), (RANDOM, DIN), (CUBE, SHUFFLED), (CUBE, RANDOM))
BOUNDED = ((LATENTS, DIN), (LATENTS, CUBE))


class Setup(NamedTuple):
    """The setup of the measurement. Attributes: window: T1, T2 and the end.   config: of cube."""

    info: SourceInfo
    space: str
    window: tuple[datetime, datetime, datetime]
    config: CtrConfig


class Verdict(NamedTuple):
    """An expectation, whether it was met, and the figures that say so."""

    wanted: str
    came: bool
    figures: str


def write_report(path: Path, figures: Path, setup: Setup, measured: Measured, report: Callable[[str], None]) -> None:
    """Write the page, and all its figures as JSON."""
    report("drawing users")
    draws = Draws.of(measured)
    by_segment = {}
    models = {one.name: one for one in measured.scored}
    for against in (IDS, DIN):
        if seeds := draws.common(CUBE, against):
            report(f"gains over {against} by segment")
            runs = models[CUBE].of(seeds), models[against].of(seeds)
            by_segment[against] = gains_by_segment(measured.segments, measured.clicked, *runs, measured.users)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(setup, measured, draws, by_segment), "utf-8")
    document = as_json(setup, measured, draws, by_segment)
    figures.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    report(f"wrote {path} and {figures}")


def page(setup: Setup, measured: Measured, draws: Draws, by_segment: Mapping[str, Sequence[SegmentGain]]) -> str:
    """The page as Markdown. Args: by_segment: gain of cube in AUC over the model of each name."""
    parts = [
        "# What content is worth to a click model, measured\n",
        _facts(setup, measured),
        _section("Wanted, and what came", "", _verdict_lines(verdicts(draws))),
        _section("Models", "", _models(measured, draws)),
        _section("Gains", "", _gains(draws, GAINS)),
        _section(
            "Controls",
            "Vectors that know nothing of a product must not help: what a control gains, the method gains by itself.",
            _gains(draws, CONTROLLED),
        ),
        _section(
            "Ceiling",
            "Simulated: the styles that products truly have and requests truly wanted, read as if an encoder had made\n"
            "them. Share is (cube - din) / (true latents - din).",
            _gains(draws, BOUNDED) + _shares(draws),
        ),
        _section(
            "What each stream is worth",
            "Cube minus cube without the stream, all else equal. Streams say much of the same: their worths do not\n"
            "add up, and one that is worth nothing beside the others may be worth much alone.",
            _streams(draws, measured.streams),
        ),
        _section(
            "Where the gain comes from",
            "Gain of cube in AUC on each part with enough impressions, whatever it is. Facts are as of the\n"
            "impression; head and tail are told by the training window (`models.evaluation.click_segments`).",
            _segments(by_segment),
        ),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, words: str, figures: str) -> str:
    """A part of the page; nothing where there is no figure."""
    return "\n".join(["## " + title + "\n", *([words + "\n"] if words else []), figures]) if figures else ""


def _shares(draws: Draws) -> str:
    if not draws.have(CUBE, DIN, LATENTS):
        return ""
    shares = [[metric.upper(), _plain(draws.share(CUBE, DIN, LATENTS, metric))] for metric in RANKED]
    return "\n" + _table(["", "share of the ceiling [95%]"], shares)


def _streams(draws: Draws, streams: Sequence[str]) -> str:
    """The worth of each stream, and which of them are clear of zero."""
    table = _gains(draws, [(CUBE, without(stream)) for stream in streams])
    if not table:
        return ""
    known = [stream for stream in streams if draws.have(CUBE, without(stream))]
    worth = {stream: draws.gain(CUBE, without(stream), "auc") for stream in known}
    some = ", ".join(stream for stream, one in worth.items() if one.low > 0) or "none"
    less = ", ".join(stream for stream, one in worth.items() if one.high < 0) or "none"
    return f"{table}\nClear of zero in AUC: worth something {some}; better left out {less}.\n"


def verdicts(draws: Draws) -> list[Verdict]:
    """Verdicts on every expectation, met or not."""

    def above(better: str, worse: str) -> Verdict:
        gains = [draws.gain(better, worse, metric) for metric in RANKED]
        return Verdict(f"{better} above {worse}", all(one.low > 0 for one in gains), _both(gains))

    def no_better(control: str, than: str) -> Verdict:
        gains = [draws.gain(control, than, metric) for metric in RANKED]
        return Verdict(f"{control}: no gain over {than}", all(one.low <= 0 for one in gains), _both(gains))

    wanted = ((CUBE, IDS), (CUBE, DIN), (TREES_CONTENT, TREES), (CUBE, SHUFFLED), (CUBE, RANDOM))
    found = [above(*pair) for pair in wanted if draws.have(*pair)]
    found += [no_better(*pair) for pair in ((SHUFFLED, DIN), (RANDOM, DIN)) if draws.have(*pair)]
    if draws.have(CUBE, LATENTS):
        gains = [draws.gain(CUBE, LATENTS, metric) for metric in RANKED]
        found.append(Verdict("true latents bound cube", all(one.value < 0 for one in gains), _both(gains)))
    return found


def as_json(
    setup: Setup, measured: Measured, draws: Draws, by_segment: Mapping[str, Sequence[SegmentGain]]
) -> dict[str, Any]:
    """All figures as plain values: an estimate is [value, low, high], what is undefined is None."""
    of_streams = [(CUBE, without(stream)) for stream in measured.streams]
    pairs = [pair for pair in (*GAINS, *CONTROLLED, *BOUNDED, *of_streams) if draws.have(*pair)]
    bounded = draws.have(CUBE, DIN, LATENTS)
    shares = {metric: draws.share(CUBE, DIN, LATENTS, metric).as_json() for metric in RANKED if bounded}
    return {
        "simulated": setup.info.simulated,
        "source": setup.info.name,
        "fingerprint": setup.info.fingerprint,
        "space": setup.space,
        "window": [one.isoformat() for one in setup.window],
        "config": asdict(setup.config),
        "models": [
            {
                "name": one.name,
                "metrics": {metric: draws.mean(one.name, metric).as_json() for metric in METRICS},
                "runs": list(one.saved),
            }
            for one in measured.scored
        ],
        "gains": [
            {"model": one, "over": other, "seeds": draws.common(one, other)}
            | {metric: draws.gain(one, other, metric).as_json() for metric in GAINED}
            for one, other in pairs
        ],
        "share_of_ceiling": shares,
        "segments": {
            other: [one._asdict() | {"gain": one.gain.as_json()} for one in found]
            for other, found in by_segment.items()
        },
        "verdicts": [one._asdict() for one in verdicts(draws)],
    }


def _facts(setup: Setup, measured: Measured) -> str:
    info, (t1, t2, end) = setup.info, setup.window
    saved = [run for one in measured.scored for run in one.saved]
    training = measured.scored[0].saved[0]["training"]
    trained_rows = training["training_rows"] + training["validation_rows"]
    minutes = sum(run["train_seconds"] + run["score_seconds"] for run in saved) / 60
    said = "**Simulated**: products, pictures, behaviour and clicks." if info.simulated else "Real behaviour."
    config = {name: value for name, value in asdict(setup.config).items() if name not in ("seed", "trees", "model")}
    seeds = ", ".join(map(str, sorted({run["seed"] for run in saved})))
    commits = ", ".join(sorted({str(run["commit"]) for run in saved}))
    return "\n".join(
        [
            f"{said} Source `{info.name}`, fingerprint `{info.fingerprint}`; vectors of the space",
            f"`{setup.space}`, whose encoder saw events before the training rows only.",
            f"Models learn from {trained_rows:,.0f} impressions of [{t1:%Y-%m-%d} (T1),",
            f"{t2:%Y-%m-%d} (T2)), and are tested on {len(measured.clicked):,} of [T2, {end:%Y-%m-%d}), "
            f"{int(measured.clicked.sum()):,} of them clicked, by {len(np.unique(measured.users)):,} users.",
            "All models see the same rows, and differ in what they are named for. Figures are means over seeds;",
            "intervals are 95%, of a bootstrap over users crossed with seeds (`models.evaluation.bootstrap`);",
            "gains are paired by both.",
            "",
            f"Seeds {seeds}; commit {commits}; {minutes:.0f} core minutes, one thread a model, at most "
            f"{max(run['peak_mb'] for run in saved) / 1024:.1f} GB of memory.",
            f"Networks: `{json.dumps(config)}`.",
            "",
        ]
    )


def _models(measured: Measured, draws: Draws) -> str:
    head = [
        "model",
        "AUC [95%]",
        "GAUC",
        "log loss",
        "predicted / observed clicks",
        "calibration error",
        "seeds",
        "min",
        "note",
    ]
    lines = []
    for one in measured.scored:
        means = {metric: draws.mean(one.name, metric) for metric in METRICS}
        minutes = float(np.mean([run["train_seconds"] for run in one.saved])) / 60
        labels = dict.fromkeys(label.split(" with seed")[0] for run in one.saved for label in run["labels"])
        rest = [f"{means[metric].value:.4f}" for metric in METRICS[1:]]
        lines.append(
            [one.name, _plain(means["auc"], 4), *rest, str(len(one.saved)), f"{minutes:.1f}", "; ".join(labels)]
        )
    return _table(head, lines) + "\nmin is the processor time of training.\n"


def _gains(draws: Draws, pairs: Sequence[tuple[str, str]]) -> str:
    """A table of the pairs that were measured; nothing without any."""
    lines = [
        [
            f"{one} - {other}",
            *(_signed(draws.gain(one, other, metric)) for metric in GAINED),
            str(len(draws.common(one, other))),
        ]
        for one, other in pairs
        if draws.have(one, other)
    ]
    return _table(["", "AUC [95%]", "GAUC [95%]", "log loss [95%], less is better", "seeds"], lines) if lines else ""


def _segments(by_segment: Mapping[str, Sequence[SegmentGain]]) -> str:
    if not by_segment:
        return ""
    lines = [
        [first.division, first.part, f"{first.impressions:,}", *(_signed(one.gain) for one in of_part)]
        for of_part in zip(*by_segment.values(), strict=True)
        for first in of_part[:1]
    ]
    return _table(["division", "part", "impressions", *(f"over {name} [95%]" for name in by_segment)], lines)


def _verdict_lines(found: Sequence[Verdict]) -> str:
    return "\n".join(f"- {one.wanted}: {'met' if one.came else 'NOT met'}; {one.figures}." for one in found) + "\n"


def _both(gains: Sequence[Estimate]) -> str:
    return ", ".join(f"{metric.upper()} {_signed(one)}" for metric, one in zip(RANKED, gains, strict=True))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _signed(one: Estimate) -> str:
    return f"{one:+.4f}"


def _plain(one: Estimate, digits: int = 3) -> str:
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
