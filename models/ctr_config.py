"""What a click model is told: which of the models, what enters it, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models.artifacts import config_from
from models.ctr_trees import TreesConfig
from moonlake.errors import InputError, PointInTimeError

ModelName = Literal["id", "din", "cube", "trees"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
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

    @property
    def numbered_ids(self) -> tuple[str, ...]:
        """The ids that need numbers: what trees leave out needs none, but for product_id, which behaviours share."""
        left_out = set(self.trees.left_out) - {"product_id"} if self.model == "trees" else set()
        return tuple(name for name in self.id_features if name not in left_out)


def ctr_config(values: Mapping[str, Any], *, where: str) -> CtrConfig:
    """The configuration from plain values. Raises InputError for an unknown key, named with `where`."""
    return config_from(CtrConfig, _with_tuples(values), where=where)


def saved_ctr_config(values: Mapping[str, Any], *, where: str) -> CtrConfig:
    """The same of an artifact; one from before models had names says `content`, which told "cube" from "din"."""
    named = dict(values)
    if "content" in named:
        named["model"] = "cube" if named.pop("content") else "din"
    return ctr_config(named, where=where)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else _with_tuples(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }
