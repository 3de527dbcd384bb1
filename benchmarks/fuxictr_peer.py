"""FuxiCTR's DIN trained on the rows that `benchmarks.bench_ctr` laid down; runs in FuxiCTR's own environment.

The model and its loop are those of the package (`model_zoo.LongCTR.DIN`, the only DIN in its wheel), and so is the
loader: the one that holds all rows in memory, of which batches are put in the form that this DIN reads. Activation and
units of the attention are ours, which are quicker than its usual ones (Dice, 64).
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIN import DIN  # type: ignore[import-not-found]

from benchmarks.processes import measure

BEHAVIORS, TARGET, LABEL = "behaviors", "product_id", "clicked"


def main() -> None:
    """Train on FOLDER/train.npz, and write the rate of each epoch and the scores of FOLDER/test.npz."""
    parser = argparse.ArgumentParser(description="FuxiCTR's DIN on exported rows.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="of the files that are written")
    parser.add_argument("--workers", type=int, required=True, help="processes that load; 0 loads in this one")
    stated = parser.parse_args()
    logging.disable(logging.INFO)
    measure(training(stated.folder, stated.name, stated.workers), lambda rows: ("", rows))


class Batches:
    """The library's batches as its DIN for long sequences reads them, and when each one was handed out.

    Attributes: epochs: for each time they were gone through, the rows and the moment of each batch.
    """

    def __init__(self, loader: NpzDataLoader) -> None:
        self.loader = loader
        self.epochs: list[list[tuple[int, float]]] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], torch.Tensor]]:
        handed_out: list[tuple[int, float]] = []
        self.epochs.append(handed_out)
        for columns in self.loader:
            behaviors, target = columns.pop(BEHAVIORS), columns.pop(TARGET)  # [B, L], [B]
            handed_out.append((len(target), time.perf_counter()))
            yield columns, {TARGET: torch.cat([behaviors, target[:, None]], 1)}, (behaviors != 0).float()

    def rates(self) -> list[float]:
        """Rows a second of each epoch, from its first batch to its last."""
        return [sum(rows for rows, _ in epoch[:-1]) / (epoch[-1][1] - epoch[0][1]) for epoch in self.epochs]


def training(folder: Path, name: str, workers: int) -> Callable[[], int]:
    """A function that trains and writes FOLDER/NAME.json and FOLDER/NAME.npy; it gives the number of training rows."""
    asked = json.loads((folder / "peer.json").read_text())
    config, sizes = asked["config"], asked["sizes"]
    torch.manual_seed(config["seed"])
    stored = features(folder, sizes, config["id_dimension"], config["behavior_length"])
    train, valid, test = (
        Batches(
            NpzDataLoader(
                stored,
                str(folder / f"{part}.npz"),
                batch_size=config["batch_size"],
                shuffle=part == "train",
                num_workers=workers,
            )
        )
        for part in ("train", "valid", "test")
    )
    model = network(features(folder, sizes, config["id_dimension"]), config, asked["attention"], folder)

    def fit() -> int:
        model.fit(train, epochs=config["max_epochs"], validation_data=valid)
        (folder / f"{name}.json").write_text(json.dumps({"rates": train.rates()}))
        np.save(folder / f"{name}.npy", model.predict(test))
        return int(train.loader.num_samples)

    return fit


def features(folder: Path, sizes: dict[str, int], width: int, length: int = 0) -> FeatureMap:
    """The columns as they are stored, with behaviours of a length; without one as the DIN counts them."""
    found = FeatureMap("bench", str(folder))
    found.labels, found.default_emb_dim = [LABEL], width
    for name, size in sizes.items():
        source = "item" if name == TARGET else ""
        found.features[name] = {"type": "categorical", "source": source, "padding_idx": 0, "vocab_size": size}
    if length:
        found.features[BEHAVIORS] = {"type": "sequence", "max_len": length}
    found.set_column_index()
    return found


def network(seen: FeatureMap, config: dict[str, Any], attention: int, folder: Path) -> DIN:
    """The package's DIN with our sizes, rates and rule for the best epoch, and softmax over the behaviours, as ours."""
    model = DIN(
        seen,
        dnn_hidden_units=list(config["hidden"]),
        attention_hidden_units=[attention],
        attention_hidden_activations="ReLU",
        din_use_softmax=True,
        learning_rate=config["learning_rate"],
        embedding_dim=config["id_dimension"],
        net_dropout=config["dropout"],
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["logloss"],
        monitor="logloss",
        monitor_mode="min",
        early_stop_patience=config["max_epochs"],
        reduce_lr_on_plateau=False,
        model_root=str(folder / "checkpoints"),
        verbose=0,
    )
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    return model


if __name__ == "__main__":
    main()
