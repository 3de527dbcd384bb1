"""Old module names of moonlake 0.1 and where they went in 0.2, and a rewrite of the files that name them.

    python tools/renames.py my_project/ notebook_helpers.py     # rewrites imports, dotted names and paths in place
    python tools/renames.py --check my_project/                 # changes nothing; exit 1 if a file would change
    python tools/renames.py --table                             # the table as Markdown, for the CHANGELOG

Run it once over code written for 0.1; it needs nothing but Python. In a Python file imports are rewritten, uses of a
module under a name that changed (`spaces.find` -> `releases.find`), and dotted names and paths in strings and comments.
In any other text file dotted names and paths are.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

MODULES: dict[str, str] = {
    "cli.lake": "cli.ingest",
    "cli.sources": "cli.source",
    "cli.retention": "cli.lake",
    "cli.jobs": "cli.job",
    "cli.releases": "cli.release",
    "cli.training_sets": "cli.training_set",
    "cli.spaces": "cli.space",
    "cli.products": "cli.product",
    "cli.figures": "cli.printing",
    "cli.quality": "cli.check",
    "cli.learning": "cli.train",
    "cli.features": "cli.feature",
    "cli.consistency": "cli.check_consistency",
    "cli.exchange_rate": "cli.evaluate_exchange_rate",
    "cli.encoder": "cli.train_encoder",
    "cli.ctr": "cli.train_ctr",
    "cli.ctr_evaluation": "cli.evaluate_ctr",
    "cli.encoder_evaluation": "cli.evaluate_encoder",
    "cli.judged": "cli.evaluate_judged",
    "dags.steps": "dags.tasks",
    "models.ctr": "models.ctr.model",
    "models.ctr_config": "models.ctr.config",
    "models.ctr_features": "models.ctr.features",
    "models.ctr_rows": "models.ctr.training_rows",
    "models.ctr_network": "models.ctr.network",
    "models.cube": "models.ctr.cube",
    "models.ctr_trees": "models.ctr.trees",
    "models.ctr_descent": "models.ctr.fit_network",
    "models.train_ctr": "models.ctr.train",
    "models.calibrators": "models.ctr.calibrators",
    "models.id_hashing": "models.ctr.id_hashing",
    "models.encoder_config": "models.encoder.config",
    "models.encoder": "models.encoder.encoder",
    "models.dual_flow": "models.encoder.dual_flow",
    "models.backbone": "models.encoder.backbone",
    "models.qwen_tower": "models.encoder.qwen_tower",
    "models.tower": "models.encoder.small_tower",
    "models.pictures": "models.encoder.pictures",
    "models.picture_store": "models.encoder.picture_store",
    "models.precision": "models.encoder.precision",
    "models.trials": "models.evaluation.purchase_trials",
    "models.trial_segments": "models.evaluation.trial_segments",
    "models.retrieval": "models.evaluation.ranking",
    "models.evaluate_encoder": "models.evaluation.recall",
    "models.evaluate_judged": "models.evaluation.judged",
    "models.relevance": "models.evaluation.ndcg",
    "models.attribute_retrieval": "models.evaluation.attributes",
    "models.geometry": "models.evaluation.geometry",
    "models.metrics": "models.evaluation.click_metrics",
    "models.click_segments": "models.evaluation.click_segments",
    "models.calibration": "models.evaluation.calibration_error",
    "models.intervals": "models.evaluation.bootstrap",
    "models.slopes": "models.evaluation.association",
    "models.exchange_rate": "models.evaluation.exchange_rate",
    "models.release_evidence": "models.evaluation.release_gates",
    "models.representations": "models.evaluation.representations",
    "models.training_run": "models.training.loop",
    "models.training_stage": "models.training.stages",
    "models.train_encoder": "models.training.contrastive",
    "models.pretraining": "models.training.captioning",
    "models.pairs": "models.training.pairs",
    "models.catalogue_pairs": "models.training.catalogue_pairs",
    "models.views": "models.training.pair_views",
    "models.augmentation": "models.training.augmentation",
    "models.losses": "models.training.losses",
    "models.negatives": "models.training.negatives",
    "models.mining": "models.training.hard_negatives",
    "models.cached_gradients": "models.training.cached_gradients",
    "models.muon": "models.training.muon",
    "models.kernel_scale": "models.training.kernel_scale",
    "models.memory": "models.training.memory_probe",
    "models.processes": "models.training.distributed",
    "models.checkpoints": "models.training.checkpoints",
    "models.training_watch": "models.training.progress",
    "models.entities": "models.training.entities",
    "moonlake.moments": "moonlake.timestamps",
    "moonlake.publishing": "moonlake.files",
    "moonlake.locks": "moonlake.files",
    "moonlake.contents": "moonlake.embeddings.contents",
    "moonlake.content_index": "moonlake.embeddings.content_index",
    "moonlake.images": "moonlake.embeddings.images",
    "moonlake.spaces": "moonlake.embeddings.spaces",
    "moonlake.space_gates": "moonlake.embeddings.gates",
    "moonlake.space_figures": "moonlake.embeddings.vector_stats",
    "moonlake.snapshots": "moonlake.embeddings.snapshots",
    "moonlake.embedding_chunks": "moonlake.embeddings.backfill",
    "moonlake.feast_delta.writing": "moonlake.feast_delta.feature_writes",
    "moonlake.feast_delta.plan": "moonlake.feast_delta.joins.plan",
    "moonlake.feast_delta.filters": "moonlake.feast_delta.joins.filters",
    "moonlake.feast_delta.labels": "moonlake.feast_delta.joins.arrow_labels",
    "moonlake.feast_delta.retrieval": "moonlake.feast_delta.joins.arrow_retrieval",
    "moonlake.feast_delta.embedded": "moonlake.feast_delta.joins.arrow_engine",
    "moonlake.feast_delta.sequences": "moonlake.feast_delta.joins.arrow_sequences",
    "moonlake.feast_delta.actions": "moonlake.feast_delta.joins.action_logs",
    "moonlake.feast_delta.spark_engine": "moonlake.feast_delta.joins.spark_engine",
    "moonlake.feast_delta.spark_join": "moonlake.feast_delta.joins.spark_join",
    "moonlake.feast_delta.spark_labels": "moonlake.feast_delta.joins.spark_labels",
    "moonlake.feast_delta.spark_retrieval": "moonlake.feast_delta.joins.spark_retrieval",
    "moonlake.feast_delta.spark_shards": "moonlake.feast_delta.joins.spark_shards",
    "moonlake.feast_delta.spark_tables": "moonlake.feast_delta.joins.spark_tables",
    "moonlake.feast_delta.online_rows": "moonlake.feast_delta.online.rules",
    "moonlake.feast_delta.change_feed": "moonlake.feast_delta.online.change_feed",
    "moonlake.feast_delta.request_log": "moonlake.feast_delta.serving_logs.request_log",
    "moonlake.feast_delta.consistency": "moonlake.feast_delta.serving_logs.consistency",
    "moonlake.lake": "moonlake.lake.lake",
    "moonlake.product_events": "moonlake.lake.product_events",
    "moonlake.differences": "moonlake.lake.column_diff",
    "moonlake.feast_delta.snapshots": "moonlake.lake.versions",
    "moonlake.feast_delta.gather": "moonlake.lake.parquet_rows",
    "moonlake.sequence_logs": "moonlake.lake.sequence_logs",
    "moonlake.retention": "moonlake.maintenance.kept_versions",
    "moonlake.data_docs": "moonlake.maintenance.data_docs",
    "moonlake.erasure": "moonlake.maintenance.erasure",
    "moonlake.erasure_search": "moonlake.maintenance.erasure_search",
    "moonlake.feast_delta.upkeep": "moonlake.maintenance.feature_store",
    "moonlake.contracts": "moonlake.schema.contract",
    "moonlake.tables": "moonlake.schema.tables",
    "moonlake.quality": "moonlake.schema.row_rules",
    "moonlake.java": "moonlake.spark.java",
    "moonlake.spark": "moonlake.spark.session",
    "moonlake.writes": "moonlake.spark.writes",
    "moonlake.small_writes": "moonlake.spark.small_writes",
    "cli.jars": "moonlake.spark.jars",
    "moonlake.training_sets": "moonlake.training_sets.training_set",
    "moonlake.label_tables": "moonlake.training_sets.labels",
    "moonlake.training_set_files": "moonlake.training_sets.files",
    "moonlake.training_set_checks": "moonlake.training_sets.verify",
    "sources.myntra": "sources.datasets.myntra",
    "sources.myntra_files": "sources.datasets.myntra_files",
    "sources.esci": "sources.datasets.esci",
    "sources.open_bandit": "sources.datasets.open_bandit",
    "sources.open_bandit_items": "sources.datasets.open_bandit_items",
    "sources.taobao": "sources.datasets.taobao",
    "sources.rees46": "sources.datasets.rees46",
    "sources.otto": "sources.datasets.otto",
    "sources.behavior_log": "sources.datasets.behavior_log",
    "sources.log_files": "sources.datasets.log_files",
    "sources.seen_products": "sources.datasets.seen_products",
    "sources.sampled_negatives": "sources.datasets.sampled_negatives",
    "sources.form": "sources.own_files.schema",
    "sources.cells": "sources.own_files.values",
    "sources.conform": "sources.own_files.conform",
    "sources.tabular": "sources.own_files.tabular",
    "sources.image_files": "sources.own_files.image_files",
    "sources.product_payload": "sources.own_files.product_payload",
    "sources.staging": "sources.own_files.staging",
    "sources.own_files": "sources.own_files.stage",
    "sources.erasing": "sources.own_files.erasing",
    "sources.marketplace": "sources.simulator.marketplace",
    "sources.presets": "sources.simulator.presets",
    "sources.styles": "sources.simulator.styles",
    "sources.rendering": "sources.simulator.rendering",
    "sources.behavior": "sources.simulator.behavior",
    "sources.clicks": "sources.simulator.clicks",
    "sources.catalogue_rows": "sources.simulator.catalogue_rows",
    "sources.behavior_tables": "sources.simulator.behavior_tables",
    "sources.augmentation": "sources.simulator.augmentation",
    "spark_jobs.arrivals.intake": "spark_jobs.intake.batch",
    "spark_jobs.arrivals.records": "spark_jobs.intake.records",
    "spark_jobs.arrivals.metrics": "spark_jobs.intake.metrics",
    "spark_jobs.pairs.choices": "spark_jobs.pairs.user_choices",
    "spark_jobs.pairs.funnel": "spark_jobs.pairs.row_counts",
    "spark_jobs.pairs.units": "spark_jobs.pairs.product_units",
    "spark_jobs.pairs.purchases": "spark_jobs.pairs.purchase_cleaning",
    "studies.long_runs": "studies.study_runner",
    "cli.steps": "workflows.resumable_steps",
    "studies.true_latents": "workflows.ceilings",
    "studies.report": "workflows.demo_report",
    "studies.exchange_rate_plot": "workflows.exchange_rate_plot",
}
"""Old name of a module -> its new name."""

NAMES: dict[str, str] = {
    "models.training_run.Lesson": "models.training.loop.Objective",
    "models.train_encoder.ContrastiveLesson": "models.training.contrastive.ContrastiveObjective",
    "models.pretraining.DescriptionLesson": "models.training.captioning.DescriptionObjective",
    "moonlake.product_events.hand_in": "moonlake.lake.product_events.submit",
    "spark_jobs.arrivals.records.take_in": "spark_jobs.intake.records.process_records",
    "spark_jobs.arrivals.records.Arrival": "spark_jobs.intake.records.IntakeRecord",
    "spark_jobs.pairs.funnel.Funnel": "spark_jobs.pairs.row_counts.RowCounts",
    "spark_jobs.pairs.funnel.Step": "spark_jobs.pairs.row_counts.StepRows",
    "sources.staging.Progress": "moonlake.progress.Step",
    "sources.staging.silent": "moonlake.progress.UNWATCHED",
    "moonlake.embedding_chunks.Progress": "moonlake.embeddings.backfill.BackfillProgress",
    "cli.learning.evaluate_app": "cli.evaluate.evaluate_app",
    "cli.sources.stage_app": "cli.source.source_app",
    "cli.features.features_app": "cli.feature.feature_app",
    "cli.products.products_app": "cli.product.product_app",
    "cli.spaces.spaces_app": "cli.space.space_app",
    "cli.quality.quality_app": "cli.check.check_app",
    "models.memory.available_bytes": "models.encoder.available_memory.available_bytes",
    "models.memory._left_in_container": "models.encoder.available_memory._left_in_container",
    "models.encoder.new_encoder": "models.encoder.factory.new_encoder",
    "models.encoder.load_encoder": "models.encoder.factory.load_encoder",
    "models.dual_flow.DualFlow": "models.encoder.dual_flow.DualFlowEncoder",
    "models.encoder._of": "models.encoder.factory._of",
    "models.encoder._ready_to_train": "models.encoder.factory._ready_to_train",
    "moonlake.publishing.publishing": "moonlake.files.publish_folder",
    "moonlake.locks.alone": "moonlake.files.exclusive",
    "sources.staging.new_folder": "moonlake.files.publish_folder",
    "moonlake.point_in_time.IntArray": "moonlake.arrays.Int64s",
    "moonlake.point_in_time.BoolArray": "moonlake.arrays.Bools",
    "moonlake.training_set_files.hash_of_file": "moonlake.hashing.hash_of_file",
    "serving.scorer.USE": "moonlake.schema.tables.CTR_RANKING",
    "moonlake.contents.stable_hash": "moonlake.hashing.stable_hash",
    "moonlake.space_gates.Check": "moonlake.embeddings.checks.Check",
    "moonlake.space_gates.record": "moonlake.embeddings.checks.record",
    "cli.quality.check_space": "workflows.releases.check_space",
    "cli.quality.require_passed": "workflows.releases.require_passed",
    "cli.releases.find_model": "workflows.releases.find_model",
    "moonlake.spaces.find": "moonlake.embeddings.releases.find",
    "moonlake.spaces.retire": "moonlake.embeddings.releases.retire",
    "moonlake.spaces.Release": "moonlake.embeddings.releases.Release",
    "moonlake.spaces.release": "moonlake.embeddings.releases.release",
    "moonlake.spaces.before_current": "moonlake.embeddings.releases.before_current",
    "moonlake.spaces.running": "moonlake.embeddings.releases.running",
    "moonlake.spaces.history": "moonlake.embeddings.releases.history",
    "moonlake.spaces.current_release": "moonlake.embeddings.releases.current_release",
    "moonlake.spaces.live": "moonlake.embeddings.releases.live",
    "moonlake.spaces._is_of": "moonlake.embeddings.releases._is_of",
    "moonlake.spaces._require_model_of_space": "moonlake.embeddings.releases._require_model_of_space",
    "moonlake.spaces._follow_releases": "moonlake.embeddings.releases._follow_releases",
    "moonlake.retention.vacuum": "moonlake.lake.vacuum.vacuum",
    "moonlake.retention.keeps_history": "moonlake.lake.vacuum.keeps_history",
    "moonlake.retention.drop_history": "moonlake.lake.vacuum.drop_history",
    "moonlake.retention.file_system": "moonlake.lake.vacuum.file_system",
    "moonlake.retention.Vacuumed": "moonlake.lake.vacuum.Vacuumed",
    "moonlake.retention.LOG": "moonlake.lake.vacuum.LOG",
    "moonlake.retention.ERASED": "moonlake.lake.vacuum.ERASED",
    "moonlake.retention.KEPT_FOR": "moonlake.lake.vacuum.KEPT_FOR",
    "moonlake.retention.RETENTIONS": "moonlake.lake.vacuum.RETENTIONS",
    "moonlake.retention._OF_VERSION": "moonlake.lake.vacuum._OF_VERSION",
    "moonlake.retention._commits": "moonlake.lake.vacuum._commits",
    "moonlake.retention._files_at": "moonlake.lake.vacuum._files_at",
    "moonlake.retention._files_of_commit": "moonlake.lake.vacuum._files_of_commit",
    "moonlake.retention._data_files": "moonlake.lake.vacuum._data_files",
    "moonlake.retention._remove": "moonlake.lake.vacuum._remove",
    "moonlake.lake.ARROW_TYPES": "moonlake.schema.arrow.ARROW_TYPES",
    "moonlake.lake.arrow_schema": "moonlake.schema.arrow.arrow_schema",
    "moonlake.lake.contract": "moonlake.schema.arrow.contract",
    "moonlake.training_sets.Declaration": "moonlake.training_sets.spec.TrainingSetSpec",
    "moonlake.training_sets.numbers_by_name": "moonlake.words.numbers_by_name",
    "moonlake.training_sets.CHOICES": "moonlake.training_sets.spec.CHOICES",
    "moonlake.training_sets.Format": "moonlake.training_sets.spec.Format",
    "moonlake.training_sets.Sequences": "moonlake.training_sets.spec.Sequences",
    "moonlake.training_sets.Manifest": "moonlake.training_sets.manifest.Manifest",
    "moonlake.training_sets.describe": "moonlake.training_sets.manifest.describe",
    "moonlake.training_set_checks.diff": "moonlake.training_sets.diff.diff",
    "cli.lake.SourceName": "sources.registry.SourceName",
    "cli.lake.BEHAVIOR_LOGS": "sources.registry.BEHAVIOR_LOGS",
    "cli.lake.WITHOUT_PICTURES": "sources.registry.WITHOUT_PICTURES",
    "cli.lake.stage": "sources.registry.stage",
    "cli.demo.Demo": "workflows.demo_run.DemoRun",
    "cli.demo.DEFAULT_PRESET": "workflows.demo.DEFAULT_PRESET",
    "cli.demo.SPACE": "workflows.demo_encoder.SPACE",
    "cli.demo.IDS_ONLY": "workflows.demo_clicks.IDS_ONLY",
    "cli.demo.WITH_CONTENT": "workflows.demo_clicks.WITH_CONTENT",
    "cli.demo.SHUFFLED": "workflows.demo_clicks.SHUFFLED",
    "cli.demo.METRICS": "workflows.demo_clicks.METRICS",
    "cli.demo.SHUFFLE_SEED": "workflows.demo_clicks.SHUFFLE_SEED",
    "cli.demo.CANDIDATES": "workflows.demo_clicks.CANDIDATES",
    "cli.demo.SHOWN_CANDIDATES": "workflows.demo_clicks.SHOWN_CANDIDATES",
    "cli.ctr.Model": "workflows.train_ctr.Model",
    "cli.ctr.ControlKind": "workflows.train_ctr.ControlKind",
    "cli.ctr.snapshot_of": "workflows.train_ctr.snapshot_of",
    "cli.exchange_rate.Subject": "workflows.recorded_models.Subject",
    "cli.exchange_rate.Target": "workflows.exchange_rate.Target",
    "cli.encoder_evaluation.Subject": "workflows.evaluate_encoder.Subject",
    "cli.encoder_evaluation.Task": "workflows.evaluate_encoder.Task",
    "cli.encoder_evaluation.TRIALS_OF": "workflows.evaluate_encoder.TRIALS_OF",
    "cli.encoder_evaluation.simulated_sources": "workflows.evaluate_encoder.simulated_sources",
    "cli.judged.BM25": "workflows.evaluate_encoder.BM25",
    "studies.encoder_ladder.Rung": "studies.ladder_plan.Rung",
    "studies.encoder_ladder.Phase": "studies.ladder_plan.Phase",
    "studies.encoder_ladder.Node": "studies.ladder_plan.Node",
    "studies.encoder_ladder.Plan": "studies.ladder_plan.Plan",
    "studies.encoder_ladder.SETTINGS": "studies.ladder_plan.SETTINGS",
    "studies.encoder_ladder.ENCODER": "studies.ladder_plan.ENCODER",
    "studies.encoder_ladder.SPLIT": "studies.ladder_plan.SPLIT",
    "studies.encoder_ladder.rungs_of": "studies.ladder_plan.rungs_of",
    "studies.encoder_ladder.phases_of": "studies.ladder_plan.phases_of",
    "studies.encoder_ladder.node_of": "studies.ladder_plan.node_of",
    "studies.encoder_ladder.nodes_of": "studies.ladder_plan.nodes_of",
    "spark_jobs.materialize_features.run": "moonlake.feast_delta.materialize.run",
    "spark_jobs.build_training_set.BuildReport": "moonlake.training_sets.build.BuildReport",
    "spark_jobs.build_training_set._Plan": "moonlake.training_sets.build._Plan",
    "spark_jobs.build_training_set._Streamed": "moonlake.training_sets.build._Streamed",
    "spark_jobs.build_training_set.run": "moonlake.training_sets.build.run",
    "spark_jobs.build_training_set.replay": "moonlake.training_sets.build.replay",
    "spark_jobs.build_training_set._plan": "moonlake.training_sets.build._plan",
    "spark_jobs.build_training_set._build": "moonlake.training_sets.build._build",
    "spark_jobs.build_training_set._in_space": "moonlake.training_sets.build._in_space",
    "spark_jobs.build_training_set._register": "moonlake.training_sets.build._register",
    "moonlake.training_set_checks.Difference": "moonlake.training_sets.diff.Difference",
    "moonlake.training_set_checks.definition_changes": "moonlake.training_sets.diff.definition_changes",
    "moonlake.training_set_checks._input_changes": "moonlake.training_sets.diff._input_changes",
    "moonlake.training_set_checks._changes": "moonlake.training_sets.diff._changes",
    "moonlake.training_set_checks._spans": "moonlake.training_sets.diff._spans",
    "moonlake.training_set_checks._group_starts": "moonlake.training_sets.diff._group_starts",
    "moonlake.training_set_checks._taken": "moonlake.training_sets.diff._taken",
    "moonlake.training_set_checks._matches": "moonlake.training_sets.diff._matches",
    "moonlake.training_set_checks._TIMESTAMP": "moonlake.training_sets.diff._TIMESTAMP",
}
"""Old name of a member that went elsewhere than the rest of its module -> its new name."""

ATTRIBUTES: dict[str, dict[str, str]] = {
    "models.metrics": {"difference": "value"},
    "moonlake.training_sets": {"declaration": "spec"},
    "spark_jobs.arrivals.records": {"arrivals": "records"},
}
"""Old module -> attributes of what it gives that have another name now. They are renamed in files that import it, as
attributes and as keywords, but not where they are called: `set.difference()` is somebody else's."""

TEXT_FILES = (".md", ".sh", ".toml", ".yaml", ".yml", ".j2", ".cfg", ".txt", ".ipynb", "Makefile")
SKIPPED_FOLDERS = {".git", ".venv", "__pycache__", "node_modules"}


class Edit(NamedTuple):
    """Text to put in place of the characters [start, stop) of a file."""

    start: int
    stop: int
    text: str


def rewritten(source: str, *, python: bool) -> str:
    """The text with new names in place of old ones; the same text where it names nothing that moved.

    Raises: SyntaxError: a Python file that cannot be parsed.
    """
    if not python:
        return _renamed_text(source)
    lines = Lines(source)
    edits = list(_import_edits(ast.parse(source), lines))
    edits += _text_edits(lines, [(one.start, one.stop) for one in edits])
    for one in sorted(edits, reverse=True):
        source = source[: one.start] + one.text + source[one.stop :]
    return source


def _import_edits(tree: ast.Module, lines: Lines) -> Iterator[Edit]:
    """Edits of the import statements, and of the uses of what they bring under another name now."""
    statements = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    modules: dict[str, str] = {}  # name in this file -> the old module that it stands for
    renamed: dict[str, str] = {}  # name in this file -> its new name
    for statement in statements:
        for alias in statement.names:
            old = f"{statement.module}.{alias.name}"
            new = (new_name(old) or old).rpartition(".")[2]
            modules[alias.asname or alias.name] = old
            if new != alias.name and alias.asname is None:
                renamed[alias.name] = new
    for plain in (node for node in ast.walk(tree) if isinstance(node, ast.Import)):
        moved = {alias.name: MODULES[alias.name] for alias in plain.names if alias.name in MODULES}
        renamed |= {alias.name: moved[alias.name] for alias in plain.names if alias.name in moved and not alias.asname}
        if moved:
            names = [moved.get(one.name, one.name) + (f" as {one.asname}" if one.asname else "") for one in plain.names]
            yield Edit(*lines.span(plain), f"import {', '.join(names)}")
    more: dict[str, set[str]] = {}  # name of an old module in this file -> new modules that its members went to
    done: set[ast.expr] = set()
    for node in ast.walk(tree):  # a whole comes before its parts
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            new = NAMES.get(f"{modules.get(node.value.id)}.{node.attr}", "")
            if new:
                module, _, member = new.rpartition(".")
                more.setdefault(node.value.id, set()).add(module)
                done.add(node.value)
                yield Edit(*lines.span(node), f"{module.rpartition('.')[2]}.{member}")
        if isinstance(node, ast.Name | ast.Attribute) and node not in done and ast.unparse(node) in renamed:
            yield Edit(*lines.span(node), renamed[ast.unparse(node)])
    yield from _attribute_edits(tree, lines, statements)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in done}
    for statement in statements:
        if text := _import_text(statement, more, more.keys() - used):
            yield Edit(*lines.span(statement), text)


def _attribute_edits(tree: ast.Module, lines: Lines, statements: Sequence[ast.ImportFrom]) -> Iterator[Edit]:
    """Edits of attributes and keywords that have another name now, of the modules that the file imports."""
    imported = {
        name for one in statements for name in (one.module, *(f"{one.module}.{alias.name}" for alias in one.names))
    }
    renamed = {old: new for module, names in ATTRIBUTES.items() if module in imported for old, new in names.items()}
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in renamed and node not in called:
            stop = lines.span(node)[1]
            yield Edit(stop - len(node.attr), stop, renamed[node.attr])
        elif isinstance(node, ast.keyword) and node.arg in renamed:
            start = lines.span(node)[0]
            yield Edit(start, start + len(node.arg), renamed[node.arg])


def _import_text(node: ast.ImportFrom, more: dict[str, set[str]], unused: set[str]) -> str | None:
    """The import statements in place of one; None where nothing of it moved.

    Args:
        more: new modules that the file needs besides, by the name of the old module in it.
        unused: names of old modules of which nothing is used any more.
    """
    by_module: dict[str, list[str]] = {}
    changed = False
    for alias in node.names:
        old = f"{node.module}.{alias.name}"
        module, _, name = (new_name(old) or old).rpartition(".")
        changed |= f"{module}.{name}" != old
        if (alias.asname or alias.name) not in unused:
            by_module.setdefault(module, []).append(f"{name} as {alias.asname}" if alias.asname else name)
        for other in sorted(more.get(alias.asname or alias.name, ())):
            changed = True
            parent, _, base = other.rpartition(".")
            by_module.setdefault(parent, []).append(base)
    if not changed:
        return None
    indent = " " * node.col_offset
    statements = (_statement(module, list(dict.fromkeys(names)), indent) for module, names in by_module.items())
    return f"\n{indent}".join(statements)


def _statement(module: str, names: list[str], indent: str) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(indent) + len(line) <= 120:
        return line
    inner = "".join(f"{indent}    {name},\n" for name in names)
    return f"from {module} import (\n{inner}{indent})"


def new_name(old: str) -> str | None:
    """The new dotted name of a module, or of a member of one; None for what did not move.

    >>> new_name("moonlake.spaces.SpaceDefinition")
    'moonlake.embeddings.spaces.SpaceDefinition'
    >>> new_name("moonlake.spaces.find")
    'moonlake.embeddings.releases.find'
    """
    if old in NAMES:
        return NAMES[old]
    if old in MODULES:
        return MODULES[old]
    module, _, member = old.rpartition(".")
    if module in MODULES and old not in _NEW and not any(new.startswith(f"{old}.") for new in _NEW):
        return f"{MODULES[module]}.{member}"
    return None


_NEW = frozenset(MODULES.values()) | {name.rpartition(".")[0] for name in NAMES.values()}


def _text_edits(lines: Lines, taken: list[tuple[int, int]]) -> Iterator[Edit]:
    """Edits of strings and comments outside what is edited anyway."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(lines.text).readline):
        if token.type not in kinds:
            continue
        start, stop = (lines.starts[row - 1] + column for row, column in (token.start, token.end))
        inside = sorted(edit for edit in taken if edit[0] < stop and start < edit[1])  # names within an f-string
        for begin, end in zip(
            [start, *(edit[1] for edit in inside)], [*(edit[0] for edit in inside), stop], strict=True
        ):
            text = lines.text[begin:end]
            if (new := _renamed_text(text)) != text:
                yield Edit(begin, end, new)


def _renamed_text(text: str) -> str:
    """Dotted names, `module:member` and paths of files, renamed."""
    return _PATH.sub(_new_path, _DOTTED.sub(_new_dotted, _IMPORT.sub(_new_import, text)))


def _alternatives(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_DOTTED = re.compile(rf"(?<![\w./-])({_alternatives([*MODULES, *NAMES])})((?:\.|:)\w+)?(?![\w/])(?!\.py\b)")
_PATH = re.compile(
    rf"(?<![\w.-])(?P<before>(?:[\w.-]+/)*?)({_alternatives([m.replace('.', '/') for m in MODULES])})\.py\b"
)


_IMPORT = re.compile(r"(?m)(?P<indent>^[ \t]*)?(?P<line>from \w[\w.]* import \w+(?:, \w+)*)")


def _new_import(match: re.Match[str]) -> str:
    """An import inside a text, in as many statements as its names went to modules."""
    new = rewritten(match["line"], python=True)
    apart = f"\n{match['indent']}" if match["indent"] is not None else "; "
    return (match["indent"] or "") + new.replace("\n", apart)


def _new_dotted(match: re.Match[str]) -> str:
    old, member = match[1], match[2] or ""
    if member.startswith("."):
        whole = f"{old}{member}"
        if whole in _NEW or any(new.startswith(f"{whole}.") for new in _NEW):
            return match[0]
        return NAMES.get(whole) or f"{MODULES.get(old) or NAMES[old]}{member}"
    if member.startswith(":") and (new := NAMES.get(f"{old}.{member[1:]}")):
        return ":".join(new.rpartition(".")[::2])
    return f"{MODULES.get(old) or NAMES[old]}{member}"


def _new_path(match: re.Match[str]) -> str:
    return f"{match['before']}{MODULES[match[2].replace('/', '.')].replace('.', '/')}.py"


@dataclass(frozen=True)
class Lines:
    """A text by its lines: where a row and a column of a parser are in it."""

    text: str

    @cached_property
    def starts(self) -> list[int]:
        """Offset of the first character of each line."""
        return list(
            accumulate((len(line) for line in self.text.split("\n")), lambda at, size: at + size + 1, initial=0)
        )

    def span(self, node: ast.stmt | ast.expr | ast.keyword) -> tuple[int, int]:
        """Character offsets of a node, whose columns count bytes of UTF-8."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, row: int, column_bytes: int) -> int:
        start, stop = self.starts[row - 1], self.starts[row] - 1
        return start + len(self.text[start:stop].encode()[:column_bytes].decode())


def files_below(paths: Sequence[Path]) -> Iterator[Path]:
    """Every Python and text file among the paths and below them."""
    for path in paths:
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file() and one.name.endswith((".py", *TEXT_FILES)) and not SKIPPED_FOLDERS & set(one.parts):
                yield one


def table() -> str:
    """The renames as a Markdown table."""
    rows = [f"| `{old}` | `{new}` |" for old, new in sorted({**MODULES, **NAMES}.items()) if "._" not in old]
    return "\n".join(["| moonlake 0.1 | moonlake 0.2 |", "|---|---|", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 if a file could not be read as Python, or --check found one to change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders to rewrite")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--table", action="store_true", help="print the table of names")
    asked = parser.parse_args(argv)
    if asked.table:
        print(table())
        return 0
    failed = False
    for path in files_below(asked.paths):
        source = path.read_text(encoding="utf-8")
        try:
            new = rewritten(source, python=path.suffix == ".py")
        except SyntaxError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        if new != source:
            failed |= asked.check
            print(path)
            if not asked.check:
                path.write_text(new, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
