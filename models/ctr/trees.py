"""The click model of gradient boosted trees: tabular columns, and the similarities of `cube_features` in a space.

The similarities are computed from the snapshot, batch by batch, by the functions that the `cube_features` job calls, so
that training, the job and online scoring agree. Without a space the trees know the tabular columns alone.

Source:  XGBoost (arXiv 1603.02754); SimTier (arXiv 2407.19467) for the histogram.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.ctr import cube
from models.ctr.features import FIRST_ID, PADDING, SAME_PRODUCT, Batch, EncodedRows, FeatureEncoder, is_search
from moonlake.arrays import Bools, Float16s, Float32s, Float64s, Int64s
from moonlake.embeddings.snapshots import Snapshot
from moonlake.errors import InputError

if TYPE_CHECKING:
    from xgboost import Booster

TREES = "trees.ubj"
BEHAVIOR_COUNTS = ("behaviors_on_product", "behaviors_on_target", "searches")
"""Of the latest actions. With them trees without a space know what a similarity of 1 and the counts of vectors tell, so
that shuffled vectors gain nothing over them."""


@dataclass(frozen=True, kw_only=True)
class TreesConfig:
    """Configuration of the trees; names and meanings are XGBoost's where it has them.

    Attributes:
        left_out: id features that no tree splits by: each of their ids would be a category of its own.
        max_rounds: trees at most; fewer are kept where the validation loss stops falling.
        patience: rounds without a better validation loss before training stops.
        threads: CPU threads, 0 takes all; the sums of another number may differ in their last digits.
    """

    left_out: tuple[str, ...] = ("user_id", "product_id", "query_id")
    max_rounds: int = 1000
    patience: int = 30
    learning_rate: float = 0.1
    max_depth: int = 6
    min_child_weight: float = 5.0
    reg_lambda: float = 1.0
    subsample: float = 0.8
    colsample_bytree: float = 0.8
    max_bin: int = 256
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("max_rounds", "patience", "max_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"trees.{name} must be 1 or more, found {getattr(self, name)}")


@dataclass(frozen=True)
class TreeColumns:
    """The columns of encoded rows that the trees read.

    Attributes:
        categorical: place of each categorical feature among the encoded ids, by name.
        dense: dense features.
        length: how many of the latest actions are looked at.
        content: whether the similarities are there.
    """

    categorical: dict[str, int]
    dense: tuple[str, ...]
    length: int
    content: bool

    @classmethod
    def of(cls, features: FeatureEncoder, config: TreesConfig, length: int, *, content: bool) -> TreeColumns:
        """All columns that the encoder knows, but for the ids that are left out."""
        places = {name: at for at, name in enumerate(features.id_features) if name not in config.left_out}
        return cls(places, features.dense_features, length, content)

    @property
    def names(self) -> list[str]:
        """Name of each column; those of the similarities are the names in `cube_features`."""
        similarities: list[str] = []
        if self.content:
            for name in ("target_query_similarity", *cube.ITEM_COLUMNS, *cube.SEARCH_COLUMNS):
                bins = range(cube.HISTOGRAM_BINS if name.endswith("histogram") else 0)
                similarities += [f"{name}_{bin_}" for bin_ in bins] or [name]
        return [*self.categorical, *self.dense, *BEHAVIOR_COUNTS, *similarities]

    @property
    def types(self) -> list[str]:
        """XGBoost's type of each column: c for a category, q for a number."""
        return ["c"] * len(self.categorical) + ["q"] * (len(self.names) - len(self.categorical))

    def matrix(self, rows: EncodedRows, chosen: Int64s, vectors: Float16s | None) -> Float32s:
        """float32 [n, columns] of the rows `chosen` [n]; NaN for what is not known. Vectors are gathered by batches."""
        parts = [self.of_batch(batch) for batch in rows.batches(self.length, vectors, chosen)]
        return np.concatenate([np.empty((0, len(self.names)), np.float32), *parts])

    def of_batch(self, batch: Batch) -> Float32s:
        """float32 [B, columns]; NaN for what is not known."""
        ids = batch.ids[:, list(self.categorical.values())].numpy() - FIRST_ID  # [B, C], below 0 for an unknown id
        values, there = np.split(batch.dense.numpy(), 2, axis=1)  # [B, F], [B, F]
        on_product = (batch.behavior_ids != PADDING).numpy()  # [B, L]
        on_target = (batch.behavior_contexts >= SAME_PRODUCT).numpy()  # [B, L]
        searched = is_search(batch.behavior_contexts.numpy())  # [B, L]
        columns = [
            np.where(ids >= 0, ids, np.nan),  # [B, C]
            np.where(there > 0, values, np.nan),  # [B, F]
            np.stack([on_product.sum(1), on_target.sum(1), searched.sum(1)], 1),  # [B, 3]
        ]
        if self.content and batch.content is not None:
            found = cube.features(batch.content, on_product, searched)
            columns += [one.reshape(len(one), -1) for one in found.values()]  # [B, 1], [B, bins] for a histogram
        return np.concatenate(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Trees:
    """Grown trees, and the columns that they read."""

    booster: Booster
    columns: TreeColumns

    def probabilities(self, rows: EncodedRows, snapshot: Snapshot | None, chosen: Int64s | None = None) -> Float64s:
        """Click probabilities [n] of encoded rows, or of the `chosen` [n] among them, batch by batch."""
        vectors = None if snapshot is None else snapshot.vectors
        batches = rows.batches(self.columns.length, vectors, chosen)
        found = [self.booster.inplace_predict(self.columns.of_batch(batch)) for batch in batches]
        return np.concatenate([np.empty(0), *found])

    def write(self, folder: Path) -> None:
        """Write the trees into an artifact folder, in XGBoost's own format."""
        self.booster.save_model(folder / TREES)

    @classmethod
    def open(cls, folder: Path, columns: TreeColumns, config: TreesConfig) -> Trees:
        """The trees that `write` wrote."""
        from xgboost import Booster  # it takes seconds to import

        return cls(Booster({"nthread": config.threads}, model_file=folder / TREES), columns)


def grow_trees(
    columns: TreeColumns,
    rows: EncodedRows,
    clicked: Float32s,
    fitted: Bools,
    snapshot: Snapshot | None,
    config: TreesConfig,
    *,
    seed: int,
    after_round: Callable[[int, float], None],
) -> tuple[Trees, dict[str, float]]:
    """Trees of the rows where `fitted` [n] is true, which the other rows stop, and how it went.

    Args:
        clicked: float32 [n], both clicks and none among the fitted rows.
        after_round: called with the number of a round, from 1, and the validation loss after it.
    """
    import xgboost
    from xgboost.callback import EarlyStopping, TrainingCallback

    class Report(TrainingCallback):  # type: ignore[misc, unused-ignore]
        """Tells of every round."""

        def after_iteration(self, _model: Booster, epoch: int, evals_log: TrainingCallback.EvalsLog) -> bool:
            after_round(epoch + 1, float(evals_log["validation"]["logloss"][-1]))  # type: ignore[arg-type]
            return False

    rate = float(clicked[fitted].mean(dtype=np.float64))
    vectors = None if snapshot is None else snapshot.vectors
    described = {"feature_names": columns.names, "feature_types": columns.types, "enable_categorical": True}
    described |= {"max_bin": config.max_bin, "nthread": config.threads}
    parts: list[xgboost.QuantileDMatrix] = []
    for chosen in (np.flatnonzero(fitted), np.flatnonzero(~fitted)):
        matrix = columns.matrix(rows, chosen, vectors)
        parts.append(xgboost.QuantileDMatrix(matrix, clicked[chosen], ref=parts[0] if parts else None, **described))
    booster = xgboost.train(
        _parameters(config, rate, seed),
        parts[0],
        config.max_rounds,
        evals=[(parts[1], "validation")],
        callbacks=[Report(), EarlyStopping(rounds=config.patience, save_best=True)],
        verbose_eval=False,
    )
    return Trees(booster, columns), {
        "validation_log_loss": float(booster.best_score),
        "rounds": float(booster.num_boosted_rounds()),
        "training_rows": float(parts[0].num_row()),
        "validation_rows": float(parts[1].num_row()),
    }


def _parameters(config: TreesConfig, click_rate: float, seed: int) -> dict[str, object]:
    same = ("learning_rate", "max_depth", "min_child_weight", "reg_lambda", "subsample", "colsample_bytree", "max_bin")
    return {
        **{name: getattr(config, name) for name in same},
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "base_score": click_rate,
        "seed": seed,
        "nthread": config.threads,
    }
