"""The second half of the demo: features at their time, click models with and without content, a release, a ranking.

Each step is a function of the run, and runs again only when its inputs changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.errors import InputError
from moonlake.schema.tables import CTR_RANKING, USES
from workflows.demo_run import DemoRun
from workflows.resumable_steps import Found

if TYPE_CHECKING:
    import pyarrow as pa

    from models.evaluation.click_metrics import Metric
    from serving.scorer import Scorer

IDS_ONLY = "IDs only"
WITH_CONTENT = "with content"
SHUFFLED = "shuffled content"
METRICS: tuple[Metric, ...] = ("auc", "gauc")
SHUFFLE_SEED = 1
CANDIDATES = 200
SHOWN_CANDIDATES = 10


def assemble(run: DemoRun, space_id: str) -> Found:
    """Register features, build the training set and the test set, bring the online store up to date."""
    _, t1, t2, end = run.window

    def work() -> Found:
        from moonlake.feast_delta import materialize
        from moonlake.training_sets import build
        from moonlake.training_sets.spec import TrainingSetSpec

        materialize.run(run.settings, end)
        spans = {"ctr-train": (t1, t2), "ctr-test": (t2, end)}
        found = {}
        for name, (start, stop) in spans.items():
            spec = TrainingSetSpec(name=name, start=start, end=stop, space_id=space_id)
            report = build.run(run.settings, spec, written_at=run.now)
            found[name] = str(report.training_set.folder)
        return found

    tables = ("impressions", "products", "product_stats", "user_stats", "users", "behavior_sequences", "embeddings")
    inputs = [space_id, t1, t2, end, run.versions(*tables)]
    return run.steps.run("features", "Join features point in time, fill the online store", inputs, work)


def train_ctr(run: DemoRun, space_id: str) -> Found:
    """CTR models without content, with it, and with shuffled vectors as the control; measured after T2."""
    from dataclasses import asdict

    from models.ctr.config import CtrConfig
    from moonlake.training_sets.training_set import TrainingSet

    train, test = (TrainingSet.open(run.settings.training_sets / name) for name in ("ctr-train", "ctr-test"))
    plain, content = CtrConfig(), CtrConfig(model="cube")

    def work() -> Found:
        from models.ctr.train import evaluate, gain_over, record_model, score, train_ctr
        from models.evaluation.bootstrap import Estimate
        from moonlake.embeddings.snapshots import write_snapshot

        _, t1, t2, _ = run.window
        snapshot = write_snapshot(run.lake, space_id, run.settings.snapshot(space_id))
        runs = {
            IDS_ONLY: (plain, None),
            WITH_CONTENT: (content, snapshot),
            SHUFFLED: (content, snapshot.shuffled(SHUFFLE_SEED)),
        }
        scored, metrics, found, models = {}, {}, {}, {}
        for name, (config, vectors) in runs.items():
            with run.progress.step(f"Training {name}") as step:
                model = train_ctr(train, vectors, config, window=(t1, t2), progress=step)
            folder = run.settings.ctr_model(name.replace(" ", "-").lower())
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
            record_model(run.lake, one, metrics[name], name=name, artifact=folder, written_at=run.now, gain=gained)
        return {"models": found, "gains": gains, "snapshot": str(snapshot.folder)}

    ids = [part.manifest.training_set_id for part in (train, test)]
    inputs = [ids, space_id, asdict(plain), asdict(content), run.versions("embeddings")]
    return run.steps.run("ctr", "Train and test the CTR models", inputs, work)


def serve(run: DemoRun, space_id: str, clicks: Found) -> Found:
    """Check the space and release it with its model; answer one image query: features, candidates, ranking."""
    from dataclasses import asdict

    from moonlake.embeddings.gates import GateLimits

    content = clicks["models"][WITH_CONTENT]

    def work() -> Found:
        from serving.scorer import Scorer

        checked = _release(run, space_id, content["model_id"], clicks["snapshot"])
        scorer = Scorer.live(run.settings)
        request = _last_image_request(run)
        candidates = _nearest_products(scorer, request["query_content_id"])
        ranked = scorer.rank(request["user_id"], request["query_id"], candidates, run.window[3])
        features = scorer.features.read(request["user_id"], candidates[:1]).to_pylist()[0]
        best = [{"product_id": one.product_id, "score": one.score} for one in ranked[:SHOWN_CANDIDATES]]
        return {
            "request": request,
            "candidates": len(candidates),
            "features": {name: _short(value) for name, value in features.items() if _is_of_user(name)},
            "ranked": best,
            "check": checked,
        }

    inputs = [clicks["models"], clicks["snapshot"], run.window[3], asdict(GateLimits())]
    return run.steps.run("serve", "Check, release, read online features, rank candidates", inputs, work)


def _release(run: DemoRun, space_id: str, model_id: str, snapshot: str) -> Found:
    """The gates of the space as they came out, and why their failure was waived; None where they passed."""
    from moonlake.embeddings import releases
    from workflows.releases import check_space, require_passed

    check = check_space(run.settings, releases.find(run.lake, space_id), use=CTR_RANKING, model_id=model_id)
    reason = None
    if check.failed and run.may_waive:
        names = ", ".join(gate.name for gate in check.failed)
        reason = f"a demo on {run.info.name}, which need not pass: {names}"
        for gate in check.failed:
            run.say(f"gate FAILED {gate}")
        run.say(f"Released all the same: {reason}")
        passed = check.waived(run.lake, reason=reason, written_at=check.at)
    else:
        passed = require_passed(run.settings, check)
    parts = {"model_id": model_id, "snapshot": snapshot, "feature_service": USES[CTR_RANKING]}
    releases.release(run.lake, CTR_RANKING, space_id, check=passed, **parts, written_at=check.at)
    gates = [{"name": gate.name, "passed": gate.passed, "said": gate.said} for gate in check.gates]
    return {"check_id": check.check_id, "gates": gates, "waived": reason}


def _last_image_request(run: DemoRun) -> Found:
    """user_id, query_id and query_content_id of the last impression after an image query."""
    import pyarrow.compute as pc

    image_queries = run.lake.read("queries", ["query_id"], where=pc.field("modality") == "image")["query_id"]
    asked = run.lake.read(
        "impressions",
        ["user_id", "query_id", "query_content_id", "event_timestamp", "impression_id"],
        where=pc.field("query_id").isin(image_queries) & (pc.field("event_timestamp") < run.window[3]),
    ).sort_by([("event_timestamp", "descending"), ("impression_id", "ascending")])
    if not len(asked):
        raise InputError(f"source {run.info.name} has no impression after an image query: nothing to rank for")
    return asked.select(["user_id", "query_id", "query_content_id"]).slice(0, 1).to_pylist()[0]


def _gains(scored: dict[str, pa.Table]) -> dict[str, dict[str, list[float]]]:
    """Difference, low and high of each model over the one with IDs only, by metric."""
    from models.ctr.train import gain

    found: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in scored if name != IDS_ONLY):
        found[name] = {metric: list(gain(scored[name], scored[IDS_ONLY], metric)) for metric in METRICS}
    return found


def _nearest_products(scorer: Scorer, query_content_id: str) -> list[str]:
    """The products on sale whose vectors are nearest to the query's, nearest first."""
    import numpy as np
    import pyarrow as pa

    from models.evaluation.ranking import nearest
    from workflows.api import Catalogue

    snapshot = scorer.snapshot
    assert snapshot is not None
    pool = Catalogue.of(snapshot)
    query = np.asarray(snapshot.vectors[snapshot.rows_of(pa.array([query_content_id]))], np.float32)  # [1, D]
    return [pool.product_ids[place] for place in nearest(query, pool.vectors, CANDIDATES).rows[0]]


def _is_of_user(name: str) -> bool:
    return name == "segment" or (name.startswith(("user_", "behavior_")) and name != "user_id")


def _short(value: Any) -> Any:
    """A feature as people read it: a sequence by its length, a rate with three digits."""
    if isinstance(value, list):
        return f"{len(value)} entries"
    return round(value, 3) if isinstance(value, float) else value
