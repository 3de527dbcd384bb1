"""`moonlake evaluate ctr`: click models on the same later rows, what each gains over another, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.printing import estimate_line
from cli.train_ctr import echo_labels, model_folder, snapshot_of
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.evaluate_encoder import simulated_sources

if TYPE_CHECKING:
    import pyarrow as pa

    from models.ctr.model import CtrModel
    from models.evaluation.bootstrap import Estimate
    from models.evaluation.click_metrics import ClickMetrics, Metric
    from models.evaluation.click_segments import ClickSegment

GAINS: dict[Metric, str] = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}
"""What a gain is told in; of log loss less is better."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A model with its scores and metrics on the test rows."""

    model: CtrModel
    folder: Path
    scored: pa.Table
    metrics: ClickMetrics


def evaluate_ctr(
    names: Annotated[list[str], typer.Argument(help="Names of trained models.")],
    training_set: Annotated[str, typer.Option("--on", help="Name of the training set with the test rows.")],
    start: Annotated[str | None, typer.Option(help="First test row; default: the end of the models' training.")] = None,
    end: Annotated[str | None, typer.Option(help="Moment behind the test rows; default: the set's end.")] = None,
    against: Annotated[str | None, typer.Option(help="Model that the others are compared with.")] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Measure by age of the product, category, merchant tier, head and tail.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there, as JSON.")] = None,
    minimum_gain: Annotated[
        float | None, typer.Option(help="Fail where the low end of the AUC gain's 95% interval is not above this.")
    ] = None,
) -> None:
    """Measure click models on the same later rows, and how much each gains over another."""
    from moonlake.training_sets.training_set import TrainingSet

    if minimum_gain is not None and against is None:
        raise InputError("--minimum-gain compares with a model: name it with --against")
    settings = Settings.from_environment()
    lake, rows = Lake(settings), TrainingSet.open(settings.training_sets / training_set)
    wanted = list(dict.fromkeys([*([against] if against else []), *names]))
    measured = _measure(settings, lake, rows, wanted, start, end)
    window = _window(next(iter(measured.values())).scored)
    simulated = sorted(simulated_sources(settings, lake, window)) if window else []
    if simulated:
        typer.echo(f"NOTE: behaviour is simulated ({', '.join(simulated)})")
    for name, one in measured.items():
        _echo_metrics(name, one)
    gains = {} if against is None else _gains(measured, against)
    _record(lake, measured, gains, against)
    for name, of_metric in gains.items():
        typer.echo(f"{name} over {against}, intervals over users:")
        for metric, title in GAINS.items():
            typer.echo(estimate_line(title, of_metric[metric]))
    parts = _by_segment(lake, measured, against) if segments else []
    if json_file is not None:
        document = {
            "training_set": training_set,
            "training_set_id": rows.manifest.training_set_id,
            "simulated": simulated,
            "window": [one.isoformat() for one in window] if window else None,
            "models": {name: _as_json(one) for name, one in measured.items()},
            "against": against,
            "gains": {name: {key: one.as_json() for key, one in found.items()} for name, found in gains.items()},
            "segments": parts,
        }
        json_file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if minimum_gain is not None:
        _require_gain({name: found["auc"] for name, found in gains.items()}, str(against), minimum_gain)


def _measure(
    settings: Settings, lake: Lake, rows: Any, names: Sequence[str], start: str | None, end: str | None
) -> dict[str, Measured]:
    """Every model on the same rows."""
    from models.ctr.model import CtrModel
    from models.ctr.train import evaluate, score

    folders = {name: model_folder(settings, name) for name in names}
    models = {name: CtrModel.open(folder) for name, folder in folders.items()}
    first = parse_moment(start) if start else max(model.lineage.window[1] for model in models.values())
    last = parse_moment(end) if end else None
    found = {}
    for name, model in models.items():
        of = model.lineage.true_space_id
        snapshot = snapshot_of(lake, settings, of, model.lineage.control) if of else None
        scored = score(model, rows, snapshot, start=first, end=last)
        found[name] = Measured(model, folders[name], scored, evaluate(scored))
    return found


def _record(
    lake: Lake,
    measured: Mapping[str, Measured],
    gains: Mapping[str, Mapping[Metric, Estimate]],
    against: str | None,
) -> None:
    """Enter every model in the lake, with what it gains over the one that it is compared with."""
    from models.ctr.train import gain_over, record_model

    for name, one in measured.items():
        gained = None
        if against is not None and name != against:
            gained = gain_over(measured[against].model, against, gains[name], len(one.scored))
        facts: dict[str, Any] = {"name": name, "artifact": one.folder, "written_at": datetime.now(UTC)}
        record_model(lake, one.model, one.metrics, gain=gained, **facts)


def _window(scored: pa.Table) -> tuple[datetime, datetime] | None:
    """First and last moment of the test rows; None without any."""
    import pyarrow.compute as pc

    times = scored["event_timestamp"]
    return (pc.min(times).as_py(), pc.max(times).as_py()) if len(times) else None


def _gains(measured: Mapping[str, Measured], against: str) -> dict[str, dict[Metric, Estimate]]:
    """How much each model exceeds the one that it is compared with, by metric."""
    from models.ctr.train import gain
    from models.evaluation.bootstrap import Estimate

    baseline = measured[against].scored
    return {
        name: {
            metric: Estimate(found.difference, found.low, found.high)
            for metric in GAINS
            for found in [gain(one.scored, baseline, metric)]
        }
        for name, one in measured.items()
        if name != against
    }


def _by_segment(lake: Lake, measured: Mapping[str, Measured], against: str | None) -> list[dict[str, Any]]:
    """Metrics of each model on each part that is large enough, with its gain in AUC; printed on the way."""
    import numpy as np

    from models.evaluation.click_segments import gains_by_segment, metrics_by_segment, read_facts, segments_of

    windows = [one.model.lineage.window for one in measured.values()]
    rows = next(iter(measured.values())).scored
    facts = read_facts(lake, rows, (min(start for start, _ in windows), max(end for _, end in windows)))
    every: list[ClickSegment] = segments_of(facts)
    clicked, users = rows["clicked"].to_numpy(), np.asarray(rows["user_id"].to_pylist())
    found = []
    for name, one in measured.items():
        scores = one.scored["score"].to_numpy()
        gains: dict[tuple[str, str], Estimate] = {}
        if against is not None and name != against:
            others = measured[against].scored["score"].to_numpy()
            of_parts = gains_by_segment(every, clicked, scores, others, users)
            gains = {(part.division, part.part): part.gain for part in of_parts}
        for segment, metrics in metrics_by_segment(every, clicked, scores, users):
            gained = gains.get((segment.division, segment.part))
            found.append(
                {
                    "model": name,
                    "division": segment.division,
                    "part": segment.part,
                    "metrics": metrics.as_json(),
                    "auc_gain": None if gained is None else gained.as_json(),
                }
            )
        typer.echo(f"{name} by segment" + (f", gain in AUC over {against}:" if gains else ":"))
        _echo_segments([line for line in found if line["model"] == name])
    return found


def _echo_segments(lines: Sequence[Mapping[str, Any]]) -> None:
    """One line a part, in columns."""
    titles = [f"{line['division']}: {line['part']}" for line in lines]
    wide = max((len(title) for title in titles), default=0)
    if lines:
        typer.echo(f"  {'':<{wide}}  impressions     AUC    GAUC  log loss  calibration")
    for title, line in zip(titles, lines, strict=True):
        metrics, gained = line["metrics"], line["auc_gain"]
        columns = (("auc", 7, 4), ("gauc", 7, 4), ("log_loss", 9, 4), ("calibration", 12, 3))
        figures = "".join(" " + _number(metrics[name], width, digits) for name, width, digits in columns)
        interval = "" if gained is None else f"  {gained[0]:+.4f} (95% interval {gained[1]:.4f} to {gained[2]:.4f})"
        typer.echo(f"  {title:<{wide}}  {metrics['impressions']:>11,}{figures}{interval}")


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _as_json(one: Measured) -> dict[str, Any]:
    """What a model is and how it fares, as plain values."""
    lineage = one.model.lineage
    return {
        "model_id": one.model.model_id,
        "model": one.model.config.model,
        "seed": one.model.config.seed,
        "space_id": lineage.space_id,
        "training_window": [edge.isoformat() for edge in lineage.window],
        "labels": list(lineage.labels),
        "metrics": one.metrics.as_json(),
    }


def _echo_metrics(name: str, one: Measured) -> None:
    found = one.metrics
    users = f"{found.gauc_users:,} users, {found.gauc_users_left_out:,} of one class left out"
    typer.echo(f"{name}: AUC {found.auc:.4f}  GAUC {found.gauc:.4f} ({users})  log loss {found.log_loss:.4f}")
    typer.echo(
        f"  calibration {found.calibration:.3f}  calibration error {found.calibration_error:.4f}  "
        f"impressions {found.impressions:,}  clicks {found.clicks:,}"
    )
    echo_labels(one.model)


def _require_gain(gains: Mapping[str, Estimate], against: str, minimum: float) -> None:
    """Nothing, if the interval of every gain lies above the minimum. Exits with 1, naming those that do not."""
    too_small = [f"{name} [{one.low:+.4f}, {one.high:+.4f}]" for name, one in gains.items() if not one.low > minimum]
    if too_small:
        typer.echo(f"gate: AUC gain over {against} must lie above {minimum:+.4f}: {', '.join(too_small)}", err=True)
        raise typer.Exit(1)
