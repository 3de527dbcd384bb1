"""The first half of the demo: the source into the lake, an encoder trained on it, its vectors and their recall.

Each step is a function of the run, and runs again only when its inputs changed.
"""

from __future__ import annotations

from workflows.demo_run import DemoRun
from workflows.resumable_steps import Found

SPACE = "demo"


def ingest(run: DemoRun) -> Found:
    """The staged source into the lake."""

    def work() -> Found:
        from spark_jobs import ingest_behaviors, ingest_catalogue

        reports = ingest_catalogue.run(run.spark_lake(), run.folder, written_at=run.now)
        reports += ingest_behaviors.run(run.spark_lake(), run.folder, written_at=run.now)
        return {"reports": [report.as_dict() for report in reports]}

    return run.steps.run("ingest", "Ingest catalogue and behaviour", run.info.fingerprint, work)


def behavior(run: DemoRun) -> Found:
    """Sequences, statistics and training pairs."""
    start, t1, _, end = run.window

    def work() -> Found:
        from spark_jobs import build_contrastive_pairs, compute_stats, pack_behavior_sequences

        reports = [
            pack_behavior_sequences.run(run.spark_lake(), written_at=run.now),
            *compute_stats.run(run.spark_lake(), end, written_at=run.now),
        ]
        pairs = build_contrastive_pairs.run(run.spark_lake(), start, t1, written_at=run.now)
        return {"reports": [*(report.as_dict() for report in reports), pairs.as_dict()]}

    inputs = [run.versions("impressions", "behaviors", "products", "queries"), run.window]
    return run.steps.run("behavior", "Pack sequences, compute statistics, build pairs", inputs, work)


def train_encoder(run: DemoRun) -> Found:
    """The trained encoder and the untrained one beside it, as artifact folders."""
    from dataclasses import asdict, replace

    from models.training.contrastive import TrainingConfig, train_encoder
    from models.training.loop import Run

    config = TrainingConfig() if run.encoder_steps is None else TrainingConfig(steps=run.encoder_steps)
    _, t1, _, _ = run.window

    def work() -> Found:
        folders = {name: run.settings.encoder(name) for name in ("untrained", "trained")}
        train_encoder(run.lake, replace(config, steps=0), folders["untrained"], before=t1)
        with run.progress.step("Training the encoder", config.steps) as step:
            kept = Run(run.settings.run(SPACE), fresh=True, progress=step)
            artifact = train_encoder(run.lake, config, folders["trained"], before=t1, run=kept)
        return {name: str(folder) for name, folder in folders.items()} | {"metrics": dict(artifact.metrics)}

    inputs = [run.versions("contrastive_pairs"), asdict(config), t1]
    return run.steps.run("encoder", "Train the encoder", inputs, work)


def embed(run: DemoRun, artifact: str) -> Found:
    """Every content of the lake as a vector in the space of the trained encoder."""
    from models.encoder.config import read_encoder_artifact
    from moonlake.embeddings import spaces

    described = read_encoder_artifact(artifact)

    def work() -> Found:
        from spark_jobs import embed_contents

        name = f"{SPACE}-{described.space.space_id[:8]}"
        space = spaces.register(
            run.lake,
            described.space,
            name=name,
            artifact=artifact,
            trained_until=described.artifact.trained_until,
            metrics={},
            written_at=run.now,
        )
        embed_contents.run(run.spark_lake(), space.space_id, written_at=run.now, progress=run.progress)
        return {"space_id": space.space_id, "name": name}

    inputs = [described.space.space_id, run.versions("products", "queries", "product_images")]
    return run.steps.run("embed", "Embed products and queries", inputs, work)


def recall(run: DemoRun, artifacts: Found) -> Found:
    """Image-search recall on purchases that the encoder never saw: trained, untrained, raw pixels."""
    from models.encoder.config import read_encoder_artifact

    _, t1, _, end = run.window
    trained = read_encoder_artifact(artifacts["trained"])

    def work() -> Found:
        from models.evaluation.recall import evaluate_encoder
        from models.evaluation.representations import embedder_vectors, lake_vectors, pixel_baseline
        from models.inference import Embedder

        until = trained.artifact.trained_until
        subjects = {
            "trained encoder": lake_vectors(run.lake, trained.space.space_id),
            "untrained encoder": embedder_vectors(run.lake, Embedder.open(artifacts["untrained"])),
            "raw pixels": pixel_baseline(run.lake),
        }
        found = {
            name: evaluate_encoder(run.lake, represent, t1, end, trained_until=until).as_json()
            for name, represent in subjects.items()
        }
        return {"subjects": found}

    inputs = [trained.space.space_id, t1, end, run.versions("embeddings", "behaviors", "products")]
    return run.steps.run("recall", "Measure image-search recall", inputs, work)
