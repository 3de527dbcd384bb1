"""`moonlake evaluate ctr`: click models on the same later rows, what each gains over another, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, Output, give
from cli.printing import estimate_line
from cli.train_ctr import label_lines
from moonlake.errors import InputError
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from workflows.evaluate_ctr import evaluate_ctr as evaluate

if TYPE_CHECKING:
    from models.evaluation.click_metrics import Metric
    from workflows.evaluate_ctr import CtrEvaluation, MeasuredModel, SegmentMetrics

TITLES: dict[Metric, str] = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}


def evaluate_ctr(
    names: Annotated[list[str], typer.Argument(help="Names of trained models.")],
    training_set: Annotated[str, typer.Option("--on", help="Name of the training set with the test rows.")],
    start: Annotated[str | None, typer.Option(help="First test row; default: the end of the models' training.")] = None,
    end: Annotated[str | None, typer.Option(help="Moment behind the test rows; default: the set's end.")] = None,
    against: Annotated[str | None, typer.Option(help="Model that the others are compared with.")] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Measure by age of the product, category, merchant tier, head and tail.")
    ] = False,
    minimum_gain: Annotated[
        float | None, typer.Option(help="Fail where the low end of the AUC gain's 95% interval is not above this.")
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure click models on the same later rows, and how much each gains over another."""
    if minimum_gain is not None and against is None:
        raise InputError("--minimum-gain compares with a model: name it with --against")
    first, last = (parse_moment(one) if one else None for one in (start, end))
    found = evaluate(
        Settings.from_environment(),
        names,
        training_set,
        start=first,
        end=last,
        against=against,
        segments=segments,
        written_at=datetime.now(UTC),
    )
    give(found.as_json(), _lines(found), as_json=as_json, output=output)
    if minimum_gain is not None and (small := found.without_gain(minimum_gain)):
        named = ", ".join(f"{name} [{one.low:+.4f}, {one.high:+.4f}]" for name, one in small.items())
        typer.echo(f"gate: AUC gain over {against} must lie above {minimum_gain:+.4f}: {named}", err=True)
        raise typer.Exit(1)


def _lines(found: CtrEvaluation) -> Iterator[str]:
    """Every model, its gains, and the segments where they were asked for."""
    if found.simulated:
        yield f"NOTE: behaviour is simulated ({', '.join(found.simulated)})"
    for name, model in found.models.items():
        yield from _metric_lines(name, model)
    for name, of_metric in found.gains.items():
        yield f"{name} over {found.against}, in brackets 95% intervals over users:"
        for metric, title in TITLES.items():
            yield estimate_line(title, of_metric[metric])
    for name in found.models if found.segments else ():
        lines = [one for one in found.segments if one.model == name]
        gained = any(one.auc_gain is not None for one in lines)
        yield f"{name} by segment" + (f", gain in AUC over {found.against}:" if gained else ":")
        yield from _segment_lines(lines)


def _metric_lines(name: str, one: MeasuredModel) -> Iterator[str]:
    found = one.metrics
    users = f"{found.gauc_users:,} users, {found.gauc_users_left_out:,} of one class left out"
    yield f"{name}: AUC {found.auc:.4f}  GAUC {found.gauc:.4f} ({users})  log loss {found.log_loss:.4f}"
    yield (
        f"  calibration {found.calibration:.3f}  calibration error {found.calibration_error:.4f}  "
        f"impressions {found.impressions:,}  clicks {found.clicks:,}"
    )
    yield from label_lines(one.model)


def _segment_lines(segments: Sequence[SegmentMetrics]) -> Iterator[str]:
    """One line a part, in columns."""
    titles = [f"{one.division}: {one.part}" for one in segments]
    wide = max((len(title) for title in titles), default=0)
    if segments:
        yield f"  {'':<{wide}}  impressions     AUC    GAUC  log loss  calibration"
    for title, one in zip(titles, segments, strict=True):
        metrics, gained = one.metrics.as_json(), one.auc_gain
        columns = (("auc", 7, 4), ("gauc", 7, 4), ("log_loss", 9, 4), ("calibration", 12, 3))
        figures = "".join(" " + _number(metrics[name], width, digits) for name, width, digits in columns)
        interval = "" if gained is None else f"  {gained:+.4f}"
        yield f"  {title:<{wide}}  {metrics['impressions']:>11,}{figures}{interval}"


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
