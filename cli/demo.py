"""`moonlake demo`: the whole product once, from a catalogue to ranked candidates and a page to look at."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Grid

from cli.progress import progress_on
from moonlake.errors import InputError
from moonlake.lake.lake import Lake
from moonlake.progress import Progress
from moonlake.settings import Settings
from sources.registry import WITHOUT_PICTURES, SourceName, stage
from workflows.resumable_steps import Found, Steps

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

    from models.evaluation.click_metrics import Metric
    from serving.scorer import Scorer
    from sources.own_files.staging import SourceInfo

DEFAULT_PRESET = "demo"
SPACE = "demo"
SERVICE = "ctr_ranking_v1"
IDS_ONLY, WITH_CONTENT, SHUFFLED = "IDs only", "with content", "shuffled content"
METRICS: tuple[Metric, ...] = ("auc", "gauc")
SHUFFLE_SEED = 1
CANDIDATES = 200
SHOWN_CANDIDATES = 10


def demo(
    source: Annotated[SourceName, typer.Option(help="Where the catalogue comes from.")] = SourceName.MARKETPLACE,
    preset: Annotated[str, typer.Option(help="Preset of the simulated marketplace.")] = DEFAULT_PRESET,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or of your own files.")] = None,
    products: Annotated[int, typer.Option(help="Products to take of the Myntra catalogue.")] = 3000,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of the encoder; default: its configuration.")
    ] = None,
) -> None:
    """Run everything on one source: lake, encoder, features, CTR models, ranking, report. Unchanged steps are skipped.

    The preset `demo` fills MOONLAKE_HOME itself; another source gets a home of its own inside it, since two
    catalogues in one lake would speak of each other's products.
    """
    if source in WITHOUT_PICTURES:
        raise InputError(f"--source {source.value} has no pictures to learn from: moonlake ingest takes it")
    settings = Settings.from_environment()
    name = preset if source is SourceName.MARKETPLACE else source.value
    if name != DEFAULT_PRESET:
        settings = settings.model_copy(update={"home": settings.home / f"demo-{name}"})
    started = time.monotonic()
    console = Console()
    progress = progress_on(console)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    staged = Steps(settings.home / "demo" / "steps.json", say, progress)
    folder = stage(settings, source, preset=preset, data=data, products=products, progress=progress)
    run = Demo(settings, folder, staged, console, progress, encoder_steps=steps, may_waive=name != DEFAULT_PRESET)
    try:
        run.everything()
    finally:
        run.stop_spark()
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Open {run.report_path} in a browser.", soft_wrap=True)
    if name != DEFAULT_PRESET:
        console.print(f"Other commands look there after: export MOONLAKE_HOME={settings.home}", soft_wrap=True)


@dataclass
class Demo:
    """One run of the demo on a staged source.

    Attributes:
        may_waive: whether it releases a space that fails a gate, and says so. The preset `demo` passes them all.
    """

    settings: Settings
    folder: Path
    steps: Steps
    console: Console
    progress: Progress
    encoder_steps: int | None = None
    may_waive: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _opened: ExitStack = field(default_factory=ExitStack)
    _spark: SparkSession | None = None

    @cached_property
    def lake(self) -> Lake:
        """The lake of the settings."""
        return Lake(self.settings)

    @cached_property
    def info(self) -> SourceInfo:
        """Facts about the staged source."""
        from sources.own_files.staging import SourceInfo

        return SourceInfo.read(self.folder)

    @cached_property
    def window(self) -> tuple[datetime, datetime, datetime, datetime]:
        """Start, T1, T2 and end: encoder data < T1 <= CTR training < T2 <= test."""
        if self.info.window is None or self.info.t1 is None or self.info.t2 is None:
            raise InputError(f"source {self.info.name} has no behaviour: the demo needs impressions to learn from")
        return self.info.window[0], self.info.t1, self.info.t2, self.info.window[1]

    @property
    def report_path(self) -> Path:
        """The page at the end."""
        return self.settings.home / "report.html"

    def spark(self) -> SparkSession:
        """The Spark session, started when the first step needs it."""
        if self._spark is None:
            from moonlake.spark.session import session

            self._spark = self._opened.enter_context(session(self.settings, "demo"))
        return self._spark

    def stop_spark(self) -> None:
        """End the Spark session, if one was started."""
        self._opened.close()
        self._spark = None

    def versions(self, *tables: str) -> dict[str, int]:
        """The latest version of each table: what a step that reads them depends on."""
        return {name: self.lake.version(name) for name in tables}

    def everything(self) -> None:
        """All steps in order."""
        ingested = self.ingest()
        self.behavior()
        artifacts = self.train_encoder()
        space_id = self.embed(artifacts["trained"])["space_id"]
        recall = self.recall(artifacts)
        self.assemble(space_id)
        self.stop_spark()
        clicks = self.train_ctr(space_id)
        served = self.serve(space_id, clicks)
        self.report(space_id, ingested, recall, clicks, served)
        self.show(recall, clicks, served)

    def ingest(self) -> Found:
        """The staged source into the lake."""

        def work() -> Found:
            from spark_jobs import ingest_behaviors, ingest_catalogue

            reports = ingest_catalogue.run(self.spark(), self.settings, self.folder, written_at=self.now)
            reports += ingest_behaviors.run(self.spark(), self.settings, self.folder, written_at=self.now)
            return {"reports": [report.as_dict() for report in reports]}

        return self.steps.run("ingest", "Ingest catalogue and behaviour", self.info.fingerprint, work)

    def behavior(self) -> Found:
        """Sequences, statistics and training pairs."""
        start, t1, _, end = self.window

        def work() -> Found:
            from spark_jobs import build_contrastive_pairs, compute_stats, pack_behavior_sequences

            reports = [
                pack_behavior_sequences.run(self.spark(), self.settings, written_at=self.now),
                *compute_stats.run(self.spark(), self.settings, end, written_at=self.now),
            ]
            pairs = build_contrastive_pairs.run(self.spark(), self.settings, start, t1, written_at=self.now)
            return {"reports": [*(report.as_dict() for report in reports), pairs.as_dict()]}

        inputs = [self.versions("impressions", "behaviors", "products", "queries"), self.window]
        return self.steps.run("behavior", "Pack sequences, compute statistics, build pairs", inputs, work)

    def train_encoder(self) -> Found:
        """The trained encoder and the untrained one beside it, as artifact folders."""
        from dataclasses import asdict, replace

        from models.training.contrastive import TrainingConfig, train_encoder
        from models.training.loop import Run

        config = TrainingConfig() if self.encoder_steps is None else TrainingConfig(steps=self.encoder_steps)
        _, t1, _, _ = self.window

        def work() -> Found:
            folders = {name: self.settings.artifacts / f"encoder-{name}" for name in ("untrained", "trained")}
            train_encoder(self.lake, replace(config, steps=0), folders["untrained"], before=t1)
            with self.progress.step("Training the encoder", config.steps) as step:
                run = Run(self.settings.artifacts / "runs" / SPACE, fresh=True, progress=step)
                artifact = train_encoder(self.lake, config, folders["trained"], before=t1, run=run)
            return {name: str(folder) for name, folder in folders.items()} | {"metrics": dict(artifact.metrics)}

        inputs = [self.versions("contrastive_pairs"), asdict(config), t1]
        return self.steps.run("encoder", "Train the encoder", inputs, work)

    def embed(self, artifact: str) -> Found:
        """Every content of the lake as a vector in the space of the trained encoder."""
        from models.encoder.config import read_encoder_artifact
        from moonlake.embeddings import spaces

        described = read_encoder_artifact(artifact)

        def work() -> Found:
            from spark_jobs import embed_contents

            name = f"{SPACE}-{described.space.space_id[:8]}"
            space = spaces.register(
                self.lake,
                described.space,
                name=name,
                artifact=artifact,
                trained_until=described.artifact.trained_until,
                metrics={},
                written_at=self.now,
            )
            embed_contents.run(self.spark(), self.settings, space.space_id, written_at=self.now, progress=self.progress)
            return {"space_id": space.space_id, "name": name}

        inputs = [described.space.space_id, self.versions("products", "queries", "product_images")]
        return self.steps.run("embed", "Embed products and queries", inputs, work)

    def recall(self, artifacts: Found) -> Found:
        """Image-search recall on purchases that the encoder never saw: trained, untrained, raw pixels."""
        from models.encoder.config import read_encoder_artifact

        _, t1, _, end = self.window
        trained = read_encoder_artifact(artifacts["trained"])

        def work() -> Found:
            from models.evaluation.recall import evaluate_encoder
            from models.evaluation.representations import embedder_vectors, lake_vectors, pixel_baseline
            from models.inference import Embedder

            until = trained.artifact.trained_until
            subjects = {
                "trained encoder": lake_vectors(self.lake, trained.space.space_id),
                "untrained encoder": embedder_vectors(self.lake, Embedder.open(artifacts["untrained"])),
                "raw pixels": pixel_baseline(self.lake),
            }
            found = {
                name: evaluate_encoder(self.lake, represent, t1, end, trained_until=until).as_json()
                for name, represent in subjects.items()
            }
            return {"subjects": found}

        inputs = [trained.space.space_id, t1, end, self.versions("embeddings", "behaviors", "products")]
        return self.steps.run("recall", "Measure image-search recall", inputs, work)

    def assemble(self, space_id: str) -> Found:
        """Register features, build the training set and the test set, bring the online store up to date."""
        _, t1, t2, end = self.window

        def work() -> Found:
            from moonlake.feast_delta import materialize
            from moonlake.training_sets import build
            from moonlake.training_sets.spec import TrainingSetSpec

            materialize.run(self.settings, end)
            spans = {"ctr-train": (t1, t2), "ctr-test": (t2, end)}
            found = {}
            for name, (start, stop) in spans.items():
                spec = TrainingSetSpec(name=name, start=start, end=stop, space_id=space_id)
                report = build.run(self.settings, spec, written_at=self.now)
                found[name] = str(report.training_set.folder)
            return found

        tables = ("impressions", "products", "product_stats", "user_stats", "users", "behavior_sequences", "embeddings")
        inputs = [space_id, t1, t2, end, self.versions(*tables)]
        return self.steps.run("features", "Join features point in time, fill the online store", inputs, work)

    def train_ctr(self, space_id: str) -> Found:
        """CTR models without content, with it, and with shuffled vectors as the control; measured after T2."""
        from dataclasses import asdict

        from models.ctr.config import CtrConfig
        from moonlake.training_sets.training_set import TrainingSet

        train, test = (TrainingSet.open(self.settings.training_sets / name) for name in ("ctr-train", "ctr-test"))
        plain, content = CtrConfig(), CtrConfig(model="cube")

        def work() -> Found:
            from models.ctr.train import evaluate, gain_over, record_model, score, train_ctr
            from models.evaluation.bootstrap import Estimate
            from moonlake.embeddings.snapshots import write_snapshot

            _, t1, t2, _ = self.window
            snapshot = write_snapshot(self.lake, space_id, self.settings.snapshots / space_id)
            runs = {
                IDS_ONLY: (plain, None),
                WITH_CONTENT: (content, snapshot),
                SHUFFLED: (content, snapshot.shuffled(SHUFFLE_SEED)),
            }
            scored, metrics, found, models = {}, {}, {}, {}
            for name, (config, vectors) in runs.items():
                with self.progress.step(f"Training {name}") as step:
                    model = train_ctr(train, vectors, config, window=(t1, t2), progress=step)
                folder = self.settings.artifacts / f"ctr-{name.replace(' ', '-').lower()}"
                models[name] = model = model.save(folder)
                scored[name] = score(model, test, vectors, start=t2)
                metrics[name] = evaluate(scored[name])
                found[name] = metrics[name].as_json() | {"folder": str(folder), "model_id": model.model_id}
            gains = _gains(scored)
            for name in (IDS_ONLY, WITH_CONTENT):  # a control is no model to release
                one, folder, gained = models[name], Path(found[name]["folder"]), None
                if name != IDS_ONLY:
                    estimates = {metric: Estimate(*gains[name][metric]) for metric in METRICS}
                    gained = gain_over(models[IDS_ONLY], IDS_ONLY, estimates, metrics[name].impressions)
                record_model(
                    self.lake, one, metrics[name], name=name, artifact=folder, written_at=self.now, gain=gained
                )
            return {"models": found, "gains": gains, "snapshot": str(snapshot.folder)}

        ids = [part.manifest.training_set_id for part in (train, test)]
        inputs = [ids, space_id, asdict(plain), asdict(content), self.versions("embeddings")]
        return self.steps.run("ctr", "Train and test the CTR models", inputs, work)

    def serve(self, space_id: str, clicks: Found) -> Found:
        """Check the space and release it with its model; answer one image query: features, candidates, ranking."""
        from dataclasses import asdict

        from moonlake.embeddings.gates import GateLimits

        content = clicks["models"][WITH_CONTENT]

        def work() -> Found:
            from serving.scorer import Scorer

            checked = self._release(space_id, content["model_id"], clicks["snapshot"])
            scorer = Scorer.live(self.settings)
            request = self._last_image_request()
            candidates = _nearest_products(scorer, request["query_content_id"])
            ranked = scorer.rank(request["user_id"], request["query_id"], candidates, self.window[3])
            features = scorer.features.read(request["user_id"], candidates[:1]).to_pylist()[0]
            best = [{"product_id": one.product_id, "score": one.score} for one in ranked[:SHOWN_CANDIDATES]]
            return {
                "request": request,
                "candidates": len(candidates),
                "features": {name: _short(value) for name, value in features.items() if _is_of_user(name)},
                "ranked": best,
                "check": checked,
            }

        inputs = [clicks["models"], clicks["snapshot"], self.window[3], asdict(GateLimits())]
        return self.steps.run("serve", "Check, release, read online features, rank candidates", inputs, work)

    def _release(self, space_id: str, model_id: str, snapshot: str) -> Found:
        """The gates of the space as they came out, and why their failure was waived; None where they passed."""
        from moonlake.embeddings import releases
        from serving.scorer import USE
        from workflows.releases import check_space, require_passed

        check = check_space(self.settings, releases.find(self.lake, space_id), use=USE, model_id=model_id)
        reason = None
        if check.failed and self.may_waive:
            names = ", ".join(gate.name for gate in check.failed)
            reason = f"a demo on {self.info.name}, which need not pass: {names}"
            for gate in check.failed:
                self.console.print(f"gate FAILED {gate}", style="yellow", soft_wrap=True, markup=False)
            self.console.print(f"Released all the same: {reason}", soft_wrap=True, markup=False)
            passed = check.waived(self.lake, reason=reason, written_at=check.at)
        else:
            passed = require_passed(self.settings, check)
        parts = {"model_id": model_id, "snapshot": snapshot, "feature_service": SERVICE}
        releases.release(self.lake, USE, space_id, check=passed, **parts, written_at=check.at)
        gates = [{"name": gate.name, "passed": gate.passed, "said": gate.said} for gate in check.gates]
        return {"check_id": check.check_id, "gates": gates, "waived": reason}

    def _last_image_request(self) -> Found:
        """user_id, query_id and query_content_id of the last impression after an image query."""
        import pyarrow.compute as pc

        image_queries = self.lake.read("queries", ["query_id"], where=pc.field("modality") == "image")["query_id"]
        asked = self.lake.read(
            "impressions",
            ["user_id", "query_id", "query_content_id", "event_timestamp", "impression_id"],
            where=pc.field("query_id").isin(image_queries) & (pc.field("event_timestamp") < self.window[3]),
        ).sort_by([("event_timestamp", "descending"), ("impression_id", "ascending")])
        if not len(asked):
            raise InputError(f"source {self.info.name} has no impression after an image query: nothing to rank for")
        return asked.select(["user_id", "query_id", "query_content_id"]).slice(0, 1).to_pylist()[0]

    def report(self, space_id: str, ingested: Found, recall: Found, clicks: Found, served: Found) -> None:
        """The page to look at."""
        from moonlake.embeddings.contents import read_contents
        from workflows.demo_report import ReportFacts, product_contents, show, write_report

        of_product = product_contents(self.lake, [one["product_id"] for one in served["ranked"]])
        contents = read_contents(self.lake, of_product.values())
        ranking = [
            show(self.lake, contents[of_product[one["product_id"]]], one["product_id"], f"{one['score']:.3f}")
            for one in served["ranked"]
        ]
        user = {"user_id": served["request"]["user_id"], "features": served["features"]}
        facts = ReportFacts(
            source=self.info.name,
            source_kind=self.info.kind,
            simulated=self.info.simulated,
            window=self.window,
            recall=recall["subjects"],
            models=clicks["models"],
            gains=clicks["gains"],
            user=user | {"candidates": served["candidates"]},
            ranking=ranking,
            check=served["check"],
            steps=[(record.title, record.seconds) for record in self.steps.records.values()],
            writes=ingested["reports"],
        )
        write_report(self.report_path, self.lake, space_id, facts)

    def show(self, recall: Found, clicks: Found, served: Found) -> None:
        """The figures on the screen."""
        label = " [dim](behaviour is simulated)[/dim]" if self.info.simulated else ""
        grid = Grid(title=f"Image-search recall{label}", title_justify="left", box=None)
        for heading in ("vectors", "hit@1", "hit@10", "hit@50"):
            grid.add_column(heading, justify="left" if heading == "vectors" else "right")
        for name, subject in recall["subjects"].items():
            grid.add_row(name, *(f"{rate['value']:.3f}" for rate in subject["hit_rates"]))
        self.console.print("\n", grid, sep="")
        grid = Grid(title=f"Click-through rate{label}", title_justify="left", box=None)
        for heading in ("model", "AUC", "gain [95%]", "GAUC", "gain [95%]", "log loss"):
            grid.add_column(heading, justify="left" if heading == "model" else "right")
        for name, model in clicks["models"].items():
            gains = [_interval(clicks["gains"].get(name, {}).get(metric)) for metric in ("auc", "gauc")]
            grid.add_row(
                name, f"{model['auc']:.4f}", gains[0], f"{model['gauc']:.4f}", gains[1], f"{model['log_loss']:.4f}"
            )
        self.console.print("\n", grid, sep="")
        user, best = served["request"]["user_id"], served["ranked"][0]
        self.console.print(
            f"\nUser {user} searched with a picture: of {served['candidates']} candidates "
            f"{best['product_id']} is first (click probability {best['score']:.3f})."
        )


def _gains(scored: dict[str, pa.Table]) -> dict[str, dict[str, list[float]]]:
    """Difference, low and high of each model over the one with IDs only, by metric."""
    from models.ctr.train import gain

    found: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in scored if name != IDS_ONLY):
        intervals = {metric: gain(scored[name], scored[IDS_ONLY], metric) for metric in METRICS}
        found[name] = {metric: [one.difference, one.low, one.high] for metric, one in intervals.items()}
    return found


def _nearest_products(scorer: Scorer, query_content_id: str) -> list[str]:
    """The products on sale whose vectors are nearest to the query's, nearest first."""
    import numpy as np
    import pyarrow as pa

    from models.evaluation.ranking import nearest

    snapshot = scorer.snapshot
    assert snapshot is not None
    names, contents = zip(*sorted(snapshot.products.items()), strict=True)
    pool, query = (snapshot.rows_of(pa.array(ids)) for ids in (contents, [query_content_id]))
    of_query, of_pool = (np.asarray(snapshot.vectors[rows], np.float32) for rows in (query, pool))
    return [names[place] for place in nearest(of_query, of_pool, CANDIDATES).rows[0]]


def _is_of_user(name: str) -> bool:
    return name == "segment" or (name.startswith(("user_", "behavior_")) and name != "user_id")


def _short(value: Any) -> Any:
    """A feature as people read it: a sequence by its length, a rate with three digits."""
    if isinstance(value, list):
        return f"{len(value)} entries"
    return round(value, 3) if isinstance(value, float) else value


def _interval(gain: list[float] | None) -> str:
    return f"{gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]" if gain else ""
