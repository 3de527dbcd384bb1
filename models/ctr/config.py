"""Configuration of a click model: its kind, its inputs, and its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models.artifacts import config_from
from models.ctr.calibrators import Calibration
from models.ctr.trees import TreesConfig
from moonlake.errors import InputError, PointInTimeError
from moonlake.schema.tables import IMPRESSIONS

ModelName = Literal["id", "din", "cube", "trees"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
Attention = Literal["ids", "ids_and_similarities"]
STREAMS = (
    "id_interest",
    "fusion_interest",
    "similarities",
    "similarity_histogram",
    "content_interest",
    "target",
    "target_query",
    "query",
    "search_histogram",
    "search_interest",
)
"""What a network can do without, by `CtrConfig.left_out`, to learn what it is worth. Only cube has all of them."""
NEVER_FEATURES = {column.name: column.never_feature for column in IMPRESSIONS if column.never_feature}
"""Columns of an impression that no click model may read, and why."""
READ_BY_TREES = {
    "id_features",
    "dense_features",
    "behavior_length",
    "min_count",
    "hashed",
    "validation_share",
    "calibration",
    "seed",
}
MAX_HASH_ROWS = 2**31 - 3
"""Numbers of ids are 32 bit, and two of them are no ids."""
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
        nearest: of these, how many the attention and the sums of cube see: the ones most similar to the target, found
            by their vectors (SIM's search, for sequences of thousands); 0 sees all. Histograms are of all either way.
        attention: whether the attention over ids also sees how similar the contents are; cube only.
        left_out: STREAMS to do without.
        min_count: an id seen less often in training shares the row of unknown ids.
        hashed: rows of the table of each id feature that has no vocabulary: ids are hashed into them, for more ids than
            a vocabulary can hold. A step costs as much as its batch, and not as the table, which is not decayed. With
            as many rows as ids 63% of them share theirs with another one, with ten times as many 10%.
        id_dropout: share of ids that training replaces by the unknown id, so that it is learnt what a new id is worth.
        validation_share: the last part of the training window, by time, which tells when to stop.
        calibration: what puts the probabilities right by the clicks of that part: "platt" their mean and spread,
            "isotonic" all of their shape, for which it takes more clicks (`models.ctr.calibrators`).
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
    nearest: int = 0
    attention: Attention = "ids"
    left_out: tuple[str, ...] = ()
    min_count: int = 5
    hashed: Mapping[str, int] = field(default_factory=dict)
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
    calibration: Calibration = "none"
    seed: int = 0
    trees: TreesConfig = field(default_factory=TreesConfig)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model is one of {', '.join(MODELS)}, found {self.model!r}")
        if self.attention not in get_args(Attention):
            raise InputError(f"attention is one of {', '.join(get_args(Attention))}, found {self.attention!r}")
        if self.nearest < 0 or self.behavior_length < 0:
            raise InputError("nearest and behavior_length must be 0 or more")
        if unknown := sorted(set(self.left_out) - set(STREAMS)):
            raise InputError(f"left_out: no stream {', '.join(unknown)}; the streams are {', '.join(STREAMS)}")
        if self.model != "cube" and (self.nearest or self.attention != "ids" or set(self.left_out) - {"id_interest"}):
            raise InputError(f"model {self.model} reads no vectors: nearest, attention and left_out are for cube")
        for name in (*self.id_features, *self.dense_features):
            if name in NEVER_FEATURES:
                raise PointInTimeError(f"column {name} can never be a feature of a click model: {NEVER_FEATURES[name]}")
        if "product_id" not in self.id_features:
            raise InputError("id_features must hold product_id: the behaviours share its ids")
        self._require_hashed()
        if self.calibration not in get_args(Calibration):
            raise InputError(f"calibration is one of {', '.join(get_args(Calibration))}, found {self.calibration!r}")
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share must be between 0 and 1, found {self.validation_share}")

    def _require_hashed(self) -> None:
        if not isinstance(self.hashed, Mapping):
            raise InputError(f'hashed is rows by id feature, such as {{"user_id": 1000000}}, found {self.hashed!r}')
        for name, rows in self.hashed.items():
            whole = isinstance(rows, int) and not isinstance(rows, bool)
            if name not in self.id_features or not whole or not 1 <= rows <= MAX_HASH_ROWS:
                expected = f"expected one of id_features, 1 to {MAX_HASH_ROWS}"
                raise InputError(f"hashed: {name} with {rows!r} rows; {expected}")
            if self.model == "trees" and name not in self.trees.left_out:
                raise InputError(f"hashed: trees split by each id of {name}: name it in trees.left_out")

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
