"""The click model and its artifact: a network over ids, statistics and, if asked, content; or gradient boosted trees.

The networks "id", "din" and "cube" grow by one thing each: attention over the behaviours' ids, then the content streams
of CUBE. Everything else about them is equal, so that what they differ by is what that thing is worth.

Source:  MOON (arXiv 2511.11305), figure 5; DIN (arXiv 1706.06978) for the attention over ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import cube
from models.artifacts import config_from, publishing, read_artifact, write_artifact
from models.ctr_features import CONTEXTS, PADDING, SAME_PRODUCT, Batch, EncodedRows, FeatureEncoder, column_reader
from models.ctr_trees import TreeColumns, Trees, TreesConfig
from moonlake.contents import stable_hash
from moonlake.errors import InputError, PointInTimeError, SpaceMismatch
from moonlake.snapshots import Snapshot

KIND = "ctr"
ModelName = Literal["id", "din", "cube", "trees"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
WEIGHTS, LINEAGE = "weights.safetensors", "lineage.json"
NEVER_FEATURES = {
    "position": "the place in the answer is not known before ranking",
    "propensity": "it follows from the place in the answer",
    "clicked": "it is the label",
    "label_time": "it follows the impression",
    "created_at": "it is about the write",
    "event_timestamp": "it is the time of the impression itself",
    "impression_id": "it names one impression",
    "request_id": "it names one answer",
}
READ_BY_TREES = {"id_features", "dense_features", "behavior_length", "min_count", "validation_share", "seed"}
WINDOW_COUNTS = ("impressions_7d", "clicks_7d", "purchases_7d", "ctr_7d")
ATTENTION = 32
"""Units that score a behaviour."""


@dataclass(frozen=True, kw_only=True)
class CtrConfig:
    """One experiment. Unknown keys and columns that could know the label are errors.

    Attributes:
        model: "id" is a network that knows ids and statistics, "din" one with attention over the behaviours' ids,
            "cube" one with the content streams of CUBE as well; "trees" are gradient boosted trees over statistics,
            categories and, given a snapshot, similarities.
        id_features: ids that enter; trees leave some of them out.
        behavior_length: how many of the latest actions are looked at.
        min_count: an id seen less often in training shares the row of unknown ids.
        id_dropout: share of ids that training replaces by the unknown id, so that it is learnt what a new id is worth.
        validation_share: the last part of the training window, by time, which tells when to stop.
        patience: epochs without a better validation loss before training stops.
        trees: how trees are grown. They read that and READ_BY_TREES; a network reads all but that.
    """

    model: ModelName = "din"
    id_features: tuple[str, ...] = (
        "user_id", "product_id", "query_id", "category", "brand", "merchant_id", "segment",
    )  # fmt: skip
    dense_features: tuple[str, ...] = (
        "price_cents", *(f"{who}_{what}" for who in ("product", "user") for what in WINDOW_COUNTS),
    )  # fmt: skip
    behavior_length: int = 50
    min_count: int = 5
    id_dimension: int = 16
    content_dimension: int = 32
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.1
    id_dropout: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 1024
    max_epochs: int = 10
    patience: int = 1
    validation_share: float = 0.1
    seed: int = 0
    trees: TreesConfig = field(default_factory=TreesConfig)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model is one of {', '.join(MODELS)}, found {self.model!r}")
        for name in (*self.id_features, *self.dense_features):
            if name in NEVER_FEATURES:
                raise PointInTimeError(f"column {name} can never be a feature of a click model: {NEVER_FEATURES[name]}")
        if "product_id" not in self.id_features:
            raise InputError("id_features must hold product_id: the behaviours share its ids")
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share must be between 0 and 1, found {self.validation_share}")


@dataclass(frozen=True)
class Lineage:
    """What a model was made from.

    Attributes:
        space_id: the space that the model reads; None if it reads none. A control reads a space of its own.
        true_space_id, shuffle_seed: where a control's vectors came from, and what they were dealt to others by.
        window: [T1, T2) of the training rows.
        labels: what is unusual about the model and must stand beside its figures; empty for an honest one.
    """

    training_set_id: str
    space_id: str | None
    dimension: int | None
    window: tuple[datetime, datetime]
    true_space_id: str | None = None
    shuffle_seed: int | None = None
    labels: tuple[str, ...] = ()


class CtrNetwork(nn.Module):
    """Logits of clicks from batches of impressions; the streams are those of MOON's figure 5.

    Args:
        sizes: rows of each id embedding.   product: place of product_id among them.   dense_width: F of a batch.
        dimension: length D of a vector, or None for a network without content.
    """

    def __init__(
        self, config: CtrConfig, sizes: tuple[int, ...], dense_width: int, dimension: int | None = None
    ) -> None:
        super().__init__()
        wide = config.id_dimension
        self.length = config.behavior_length
        self.product = config.id_features.index("product_id")
        self.embeddings = nn.ModuleList(nn.Embedding(size, wide, padding_idx=PADDING) for size in sizes)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.05)  # type: ignore[arg-type]
        self.attention = None if config.model == "id" else IdInterest(wide)
        width = len(sizes) * wide + dense_width + (0 if self.attention is None else wide + 1)
        self.content = None
        if dimension is not None:
            self.content = ContentStreams(dimension, config.content_dimension, config.behavior_length)
            width += self.content.width + wide
        layers: list[nn.Module] = []
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.predictor = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 [B]."""
        of_id = [embed(ids) for embed, ids in zip(self.embeddings, batch.ids.unbind(1), strict=True)]  # I x [B, E]
        behaviors = self.embeddings[self.product](batch.behavior_ids)  # [B, L, E]
        streams = [*of_id, batch.dense]  # [B, I*E + F]
        if self.attention is not None:
            streams.append(self.attention(of_id[self.product], behaviors, batch))  # [B, E + 1]
        if self.content is not None and batch.content is not None:
            weights, content = self.content(batch.content)  # [B, L], [B, W]
            streams += [content, cube.pool(weights, behaviors)]  # fusion-interest [B, E]
        logits: Tensor = self.predictor(torch.cat(streams, -1)).squeeze(-1)  # [B]
        return logits

    def probabilities(
        self, rows: EncodedRows, snapshot: Snapshot | None, chosen: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Click probabilities [n] of encoded rows, or of the `chosen` [n] among them, in eval mode from then on."""
        vectors = None if snapshot is None else snapshot.vectors
        self.eval()
        with torch.inference_mode():
            logits = [self(batch) for batch in rows.batches(self.length, vectors, chosen)]
            found: NDArray[np.float64] = torch.sigmoid(torch.cat([torch.empty(0), *logits]).double()).numpy()
        return found

    def write(self, folder: Path) -> None:
        """Write the weights into an artifact folder."""
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def open(
        cls, folder: Path, config: CtrConfig, sizes: tuple[int, ...], dense_width: int, dimension: int | None
    ) -> CtrNetwork:
        """The network that `write` wrote; the other arguments are those that it was made with."""
        network = cls(config, sizes, dense_width, dimension)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return network.eval()


class IdInterest(nn.Module):
    """ID-interest: what the behaviours' ids say about the target's id, by learned attention (DIN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Embedding(CONTEXTS, width)
        nn.init.normal_(self.context.weight, std=0.05)
        # Together one layer over [target, behaviour, their product]; apart, the target's share is computed once a row.
        self.of_target, self.of_behavior = nn.Linear(width, ATTENTION), nn.Linear(width, ATTENTION, bias=False)
        self.of_product = nn.Linear(width, ATTENTION, bias=False)
        self.score = nn.Linear(ATTENTION, 1)

    def forward(self, target: Tensor, behaviors: Tensor, batch: Batch) -> Tensor:
        """float32 [B, E + 1], the last of it how often the user acted on the target; zeros without behaviours.

        Args:    target: float32 [B, E].   behaviors: float32 [B, L, E].
        """
        known = batch.behavior_ids != PADDING  # [B, L]
        keys = behaviors + self.context(batch.behavior_contexts)  # [B, L, E]
        wanted = target[:, None]  # [B, 1, E]
        hidden = self.of_target(wanted) + self.of_behavior(keys) + self.of_product(wanted * behaviors)  # [B, L, A]
        scores = self.score(hidden.relu()).squeeze(-1)  # [B, L]
        same = batch.behavior_contexts >= SAME_PRODUCT  # [B, L]
        times = same.sum(-1, keepdim=True).float().log1p()  # [B, 1]
        return torch.cat([cube.pool(cube.similarity_weights(scores, known, 1.0), keys), times], -1)  # [B, E + 1]


class ContentStreams(nn.Module):
    """The streams that read vectors: similarities, content-interest, target and query."""

    def __init__(self, dimension: int, projected: int, length: int) -> None:
        super().__init__()
        self.target, self.query, self.interest = (nn.Linear(dimension, projected, bias=False) for _ in range(3))
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))
        self.width = 3 * projected + length + cube.HISTOGRAM_BINS + 6

    def forward(self, content: cube.Content) -> tuple[Tensor, Tensor]:
        """Weights of the behaviours, float32 [B, L], and the streams side by side, float32 [B, width]."""
        found = cube.similarities(content)
        cosines, known = found.behaviors, found.behaviors_known  # [B, L], [B, L]
        weights = cube.similarity_weights(cosines, known, self.log_temperature.exp())  # [B, L]
        summary = [
            found.target_query, found.target_query_known, content.target_known, known.any(-1),
            cube.largest(cosines, known), cube.mean(cosines, known),
        ]  # fmt: skip
        streams = [
            cosines,  # the similarity vector [B, L]
            cube.histogram(cosines, known),  # [B, bins]
            torch.stack([one.float() for one in summary], -1),  # [B, 6]
            self.interest(cube.pool(weights, content.behaviors)),  # content-interest [B, P]
            self.target(content.target * content.target_known[:, None]),  # [B, P]
            self.query(content.query * content.query_known[:, None]),  # [B, P]
        ]
        return weights, torch.cat(streams, -1)


@dataclass(frozen=True)
class CtrModel:
    """A trained click model: rows in the layout of a training set in, click probabilities out.

    Attributes: predictor: what learnt: a network, or trees.
    """

    config: CtrConfig
    features: FeatureEncoder
    predictor: CtrNetwork | Trees
    lineage: Lineage
    metrics: Mapping[str, float]
    model_id: str | None = None

    @property
    def space_id(self) -> str | None:
        """The embedding space that the model reads; None if it reads none."""
        return self.lineage.space_id

    def predict(self, rows: pa.Table, snapshot: Snapshot | None = None) -> NDArray[np.float64]:
        """Click probabilities [n] of rows in the layout of a training set.

        Raises:
            SpaceMismatch: the snapshot is of another space than the model.
            SchemaMismatch: a column is missing or has another type.
        """
        self.require_snapshot(snapshot)
        encoded = self.features.encode(column_reader(rows.select), snapshot)
        return self.predictor.probabilities(encoded, snapshot)

    def require_snapshot(self, snapshot: Snapshot | None) -> None:
        """Nothing, if the snapshot is the one that the model reads. Raises SpaceMismatch, naming both, if not."""
        reader = f"CTR model {self.model_id or '(not saved yet)'}"
        if snapshot is not None:
            snapshot.require_space(self.space_id, reader)
        elif self.space_id is not None:
            raise SpaceMismatch(
                f"{reader} reads space {self.space_id}, but was given no snapshot; open one of that space"
            )

    def save(self, folder: Path) -> CtrModel:
        """The model as it lies in the folder from now on: weights, vocabularies, configuration, lineage, metrics."""
        with publishing(folder) as staging:
            self.predictor.write(staging)
            self.features.save(staging)
            lineage = {**asdict(self.lineage), "window": [edge.isoformat() for edge in self.lineage.window]}
            (staging / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n")
            until = self.lineage.window[1]
            write_artifact(staging, KIND, self.config, tables={}, trained_until=until, metrics=self.metrics)
        return CtrModel.open(folder)

    @classmethod
    def open(cls, folder: Path) -> CtrModel:
        """The model in an artifact folder. Raises NotFound or InputError, naming the file, if it is not whole."""
        artifact = read_artifact(folder, KIND)
        config = ctr_config(_with_model_name(artifact.config), where=str(folder))
        document = json.loads((folder / LINEAGE).read_text())
        start, end = (datetime.fromisoformat(edge) for edge in document["window"])
        lineage = Lineage(**{**document, "window": (start, end), "labels": tuple(document["labels"])})
        features = FeatureEncoder.open(folder)
        predictor: CtrNetwork | Trees
        if config.model == "trees":
            predictor = Trees.open(folder, tree_columns(features, config, lineage.space_id is not None), config.trees)
        else:
            predictor = CtrNetwork.open(folder, config, features.sizes, features.dense_width, lineage.dimension)
        exact = json.dumps([artifact.files_hash("*"), artifact.config], sort_keys=True)
        return cls(config, features, predictor, lineage, artifact.metrics, stable_hash(exact))


def ctr_config(values: Mapping[str, Any], *, where: str) -> CtrConfig:
    """The configuration from plain values. Raises InputError for an unknown key, named with `where`."""
    return config_from(CtrConfig, _with_tuples(values), where=where)


def tree_columns(features: FeatureEncoder, config: CtrConfig, content: bool) -> TreeColumns:
    """What the trees of a configuration see of rows that `features` encodes, with or without similarities."""
    return TreeColumns.of(features, config.trees, config.behavior_length, content=content)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else _with_tuples(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def _with_model_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration; one from before models had names says `content`, which told "cube" from "din"."""
    named = dict(values)
    if "content" in named:
        named["model"] = "cube" if named.pop("content") else "din"
    return named
