"""The encoders of a ladder as embedding spaces of the lake, to embed all contents in and to train click models on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.artifacts import Artifact
from models.encoder.config import read_encoder_artifact
from models.encoder.factory import new_encoder
from models.training.contrastive import TrainingConfig
from models.training.loop import Run, RunConfig
from models.training.stages import Start, publish
from moonlake.embeddings import spaces
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

if TYPE_CHECKING:
    from studies.ladder_data import LadderData
    from studies.ladder_plan import Node, Plan


def register_spaces(
    settings: Settings, plan: Plan, data: LadderData, nodes: Mapping[str, Node], *, written_at: datetime
) -> list[spaces.Space]:
    """A space for each encoder that is trained, in the state "building"; one that is registered stays as it is."""
    found = []
    for name, node in nodes.items():
        if not plan.path(node, ".pt").is_file():
            continue
        folder = settings.encoder(name)
        artifact = publish_node(plan, data, node, folder)
        described = read_encoder_artifact(folder)
        space = spaces.register(
            Lake(settings),
            described.space,
            name=name,
            artifact=str(folder),
            trained_until=artifact.trained_until,
            metrics=dict(artifact.metrics),
            written_at=written_at,
        )
        found.append(space)
    return found


def publish_node(plan: Plan, data: LadderData, node: Node, folder: Path) -> Artifact:
    """The artifact of a trained encoder, and beside it those of the stages that it went through."""
    before = folder.with_name(f"{folder.name}-{len(node.phases) - 1}")
    parent = publish_node(plan, data, node.parent, before) if node.parent else None
    config: RunConfig
    if node.phases:
        stage = node.phases[-1].stage
        config = plan.config(node, node.phases[-1])
        until = (data.pairs[stage] if stage else data.described).trained_until
    else:
        stage, config, until = 1, TrainingConfig(encoder=plan.encoder, steps=0), None
    encoder = new_encoder(config.encoder, [text for text in data.pairs[1].texts if text])
    encoder.load_state_dict(torch.load(plan.path(node, ".pt"), weights_only=True))
    start, tables = Start(encoder, {}, parent), plan.versions or {}
    return publish(folder, stage, start, config, Run(), tables=tables, trained_until=until, metrics={})
