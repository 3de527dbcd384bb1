"""The demo: the whole product once on one source, from a catalogue to ranked candidates and a page to look at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Progress
from moonlake.settings import Settings
from sources.registry import WITHOUT_PICTURES, SourceName, stage
from workflows import demo_clicks, demo_encoder
from workflows.demo_run import DemoRun
from workflows.resumable_steps import Found, Steps

DEFAULT_PRESET = "demo"
MYNTRA_PRODUCTS = 3000


@dataclass(frozen=True, slots=True)
class DemoFigures:
    """Figures of a demo, as its steps found them.

    Attributes:
        home: folder that the demo filled; its report is `report`.
        recall: `models.evaluation.recall.Recall` as JSON, by subject.
        models: `models.evaluation.click_metrics.ClickMetrics` as JSON, by model.
        gains: difference, low and high of a model's AUC and GAUC over the one with IDs only, by model and metric.
        served: one request, its best candidates, and the check of the release.
    """

    home: Path
    report: Path
    source: str
    simulated: bool
    space_id: str
    recall: dict[str, Any]
    models: dict[str, Any]
    gains: dict[str, dict[str, list[float]]]
    served: Found


def run_demo(
    settings: Settings,
    source: SourceName = SourceName.MARKETPLACE,
    *,
    preset: str = DEFAULT_PRESET,
    data: Path | None = None,
    products: int = MYNTRA_PRODUCTS,
    encoder_steps: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress = UNWATCHED,
) -> DemoFigures:
    """The figures of everything on one source: lake, encoder, features, CTR models, ranking, report.

    Unchanged steps are skipped. The preset `demo` fills the home of the settings itself; another source gets a home of
    its own inside it, since two catalogues in one lake would speak of each other's products. On the preset `demo` every
    gate must pass; elsewhere one that fails is told, and waived by name.

    Args:
        preset: of the simulated marketplace.
        data: folder of the data set, or of your own files.
        products: to take of the Myntra catalogue.
        encoder_steps: optimiser steps of the encoder; default: its configuration.
        say: takes a line for each step that is done; default: the log.

    Raises: InputError: a source without pictures or without behaviour.
    """
    if source in WITHOUT_PICTURES:
        raise InputError(f"--source {source.value} has no pictures to learn from: moonlake ingest takes it")
    name = preset if source is SourceName.MARKETPLACE else source.value
    if name != DEFAULT_PRESET:
        settings = settings.model_copy(update={"home": settings.home / f"demo-{name}"})
    say = say or logging.getLogger(__name__).info
    staged = Steps(settings.demo / "steps.json", say, progress)
    folder = stage(settings, source, preset=preset, data=data, products=products, progress=progress)
    run = DemoRun(
        settings, folder, staged, say, progress, encoder_steps=encoder_steps, may_waive=name != DEFAULT_PRESET
    )
    try:
        return _everything(run)
    finally:
        run.stop_spark()


def _everything(run: DemoRun) -> DemoFigures:
    """All steps in order."""
    ingested = demo_encoder.ingest(run)
    demo_encoder.behavior(run)
    artifacts = demo_encoder.train_encoder(run)
    space_id = demo_encoder.embed(run, artifacts["trained"])["space_id"]
    recall = demo_encoder.recall(run, artifacts)
    demo_clicks.assemble(run, space_id)
    run.stop_spark()
    clicks = demo_clicks.train_ctr(run, space_id)
    served = demo_clicks.serve(run, space_id, clicks)
    found = DemoFigures(
        home=run.settings.home,
        report=run.settings.report,
        source=run.info.name,
        simulated=run.info.simulated,
        space_id=space_id,
        recall=recall["subjects"],
        models=clicks["models"],
        gains=clicks["gains"],
        served=served,
    )
    _write_report(run, found, ingested)
    return found


def _write_report(run: DemoRun, found: DemoFigures, ingested: Found) -> None:
    """Write the page to look at."""
    from moonlake.embeddings.contents import read_contents
    from workflows.demo_report import ReportFacts, product_contents, show, write_report

    served = found.served
    of_product = product_contents(run.lake, [one["product_id"] for one in served["ranked"]])
    contents = read_contents(run.lake, of_product.values())
    ranking = [
        show(run.lake, contents[of_product[one["product_id"]]], one["product_id"], f"{one['score']:.3f}")
        for one in served["ranked"]
    ]
    user = {"user_id": served["request"]["user_id"], "features": served["features"]}
    facts = ReportFacts(
        source=run.info.name,
        source_kind=run.info.kind,
        simulated=run.info.simulated,
        window=run.window,
        recall=found.recall,
        models=found.models,
        gains=found.gains,
        user=user | {"candidates": served["candidates"]},
        ranking=ranking,
        check=served["check"],
        steps=[(record.title, record.seconds) for record in run.steps.records.values()],
        writes=ingested["reports"],
    )
    write_report(found.report, run.lake, found.space_id, facts)
