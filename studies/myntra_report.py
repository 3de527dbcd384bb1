"""The attribute study's report, from the files of its results and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.evaluation.bootstrap import Estimate
from moonlake.errors import InputError

ISSUE = (
    ("raw pixels", "0.70 / 0.56"),
    ("frozen ImageNet EfficientNet-Lite0, 160 px", "0.76 / 0.65"),
    ("small CNN with labels, 27 minutes", "0.81 / 0.76"),
    ("image-title InfoNCE alone, Qwen2-VL of 4.3 M, 35 minutes", "0.53 / 0.43"),
    ("image-title InfoNCE alone, FastVLM from scratch, 22 minutes", "0.55 / 0.48"),
    ("image-title InfoNCE alone, FastVLM with EfficientNet-Lite0's weights, 12 minutes", "0.68 / 0.63"),
)
"""Figures of earlier trials on these pictures, P@1 / P@10: not measured here."""
WANTED = {"titles": "0.70 / 0.62", "titles-pretrained": "0.76 / 0.68", "attributes": "0.78 / 0.68"}
NAMES = {
    "titles": "titles only, from scratch",
    "titles-pretrained": "titles only, ImageNet tower",
    "attributes": "**supervised**: attributes in stage 0",
    "cnn": "**supervised** control: CNN classifier",
}


def write_report(results: Path, report: Path) -> None:
    """Write the Markdown file. Raises InputError: no results there, or some of a validation split."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    found = [one for one in found if one.get("study") == "myntra_attributes"]
    if not found:
        raise InputError(f"{results} holds no result of studies.myntra_attributes: run a variant first")
    if any(one["validation"] for one in found):
        raise InputError(f"{results} holds results of a validation split: keep them in a folder of their own")
    found.sort(key=lambda one: (list(NAMES).index(one["variant"]), one["seed"]))
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("\n".join(_lines(found)) + "\n")


def _lines(found: list[dict[str, Any]]) -> Iterator[str]:
    first = found[0]
    yield "# Same-articleType retrieval on real Myntra pictures"
    yield ""
    twins = first["queries_with_their_picture_in_the_pool"]
    yield (
        f"{first['products']:,} products; a fixed random 80% ({first['pool']:,}) is trained on and may be found, "
        f"the other {first['queries']:,} ask with their picture alone. P@1 and P@10: share of the first 1 and 10 of "
        "the query's articleType, ties against us, with 95% bootstrap intervals over queries (not over trainings). "
        f'{twins} queries have their very picture in the pool; the column "new pictures" is without them. '
        "The pool is embedded from pictures alone unless said otherwise. "
        "No setting was chosen by looking at the queries."
    )
    yield ""
    yield f"Machine: {', '.join(sorted({one['machine'] for one in found}))}; one thread a process."
    yield ""
    yield "| trained | seed | minutes | P@1 | P@10 | 64-d P@10 | new pictures P@10 | wanted |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found:
        yield _row(one, NAMES[one["variant"]], _last(one), WANTED.get(one["variant"], ""))
    yield ""
    yield "Beside and before it (the same columns):"
    yield ""
    yield "| vectors | seed | minutes | P@1 | P@10 | 64-d P@10 | new pictures P@10 |"
    yield "|---|---|---|---|---|---|---|"
    yield _row(first, "raw pixels, 16 x 16", "raw pixels", None)
    for one in found:
        for figure in one["figures"]:
            if figure not in ("raw pixels", _last(one)):
                yield _row(one, f"{NAMES[one['variant']]}: {figure}", figure, None)
    yield ""
    yield "Steps: " + "; ".join(f"{one['variant']} {one['seed']}: {_steps(one)}" for one in found) + "."
    yield ""
    yield "## Seen in earlier trials on these pictures, of another split (not measured here), P@1 / P@10"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {figure} |" for name, figure in ISSUE)


def _last(one: dict[str, Any]) -> str:
    """The figure of the vectors after the last stage."""
    return f"after {list(one['trained'])[-1]}"


def _row(one: dict[str, Any], name: str, figure: str, wanted: str | None) -> str:
    found = one["figures"][figure]
    at_1, at_10 = (_precision(rate) for rate in found["whole"]["precisions"])
    prefix = _precision(found["prefix"]["precisions"][1]) if "prefix" in found else ""
    new = _precision(found["new pictures"]["precisions"][1])
    trained = figure not in ("raw pixels", "untrained")
    minutes = f"{sum(stage['seconds'] for stage in one['trained'].values()) / 60:.1f}" if trained else "0"
    cells = [name, one["seed"], minutes, at_1, at_10, prefix, new, *([] if wanted is None else [wanted])]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _precision(rate: dict[str, float]) -> str:
    return f"{Estimate(rate['value'], rate['low'], rate['high']):.3f}"


def _steps(one: dict[str, Any]) -> str:
    return ", ".join(f"{name} {stage['steps']} in {stage['seconds']:.0f} s" for name, stage in one["trained"].items())
