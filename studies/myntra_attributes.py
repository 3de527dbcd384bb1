"""Same-articleType retrieval on real Myntra pictures: encoders from titles or attributes, and a classifier as control.

`python -m studies.myntra_attributes --data FOLDER --variant titles --minutes 10 --seed 0 --out FOLDER`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from models.encoder.config import EncoderConfig, TinyConfig
from models.encoder.encoder import Encoder
from models.encoder.factory import new_encoder
from models.evaluation.attributes import measure_attribute
from models.evaluation.ranking import pixel_vectors
from models.evaluation.representations import cut
from models.inference import Embedder
from models.training import captioning, contrastive
from models.training.captioning import FIELDS, TITLE, PretrainingConfig
from models.training.contrastive import TrainingConfig
from models.training.kernel_scale import shorten_kernels
from models.training.loop import RunConfig
from moonlake.arrays import Float32s, Int64s, UInt8s
from moonlake.progress import EachNote, Step
from moonlake.words import json_by_name
from studies.myntra_catalogue import (
    BASELINE_SIZE,
    DEFAULT_MIX,
    Catalogue,
    Mix,
    Split,
    descriptions,
    fresh,
    pairs,
    read_catalogue,
    split,
    trials,
)
from studies.myntra_classifier import Classifier, classifier_vectors, fit_classifier
from studies.myntra_report import write_report

Variant = Literal["titles", "titles-pretrained", "attributes", "cnn"]

TIMED_STEPS, FIRST_STEPS = 16, 4
"""Steps that are timed before a training, and how many of them do not count: the first are slower."""
PREFIX = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that a variant is trained with; nothing here was chosen on the 20% that ask.

    Attributes:
        stage0_share: of the training time.
        apart: parts of a description that a step of stage 0 tells, each from the picture alone; 0 tells all at once.
        contrastive_rate: learning rates of the contrastive stage over those of stage 0.
        frozen_tower: share of the tower's parameters that stay as they are.
        mix: kinds of contrastive pairs.
        steps: of each stage, in place of the minutes; 0 goes by these.
    """

    tower: str = "moonlake_small"
    tower_weights: Literal["imagenet", "random"] = "random"
    image_height: int = 80
    image_width: int = 60
    batch_size: int = 256
    stage0_batch_size: int = 128
    stage0_share: float = 0.5
    apart: int = 0
    contrastive_rate: float = 1.0
    learning_rate: float = 3e-3
    muon_rate: float = 0.05
    tower_rate: float = 1.0
    frozen_tower: float = 0.0
    temperature: float = 0.07
    optimizer: Literal["muon", "adamw"] = "muon"
    mix: Mix = field(default_factory=lambda: dict(DEFAULT_MIX))
    steps: int = 0

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder. Its prompts have room for a description with all attributes."""
        tiny = TinyConfig(tower=self.tower, tower_weights=self.tower_weights)
        return EncoderConfig(
            tiny=tiny,
            image_height=self.image_height,
            image_width=self.image_width,
            max_images=1,
            max_text_tokens=64,
        )

    def slowed(self, share: float) -> Settings:
        """The same with a share of the learning rates."""
        return replace(self, learning_rate=share * self.learning_rate, muon_rate=share * self.muon_rate)

    def run(self, kind: type[Any], seed: int, batch_size: int, **more: Any) -> Any:
        """The configuration of a stage."""
        shared = {
            name: getattr(self, name)
            for name in ("learning_rate", "muon_rate", "tower_rate", "frozen_tower", "optimizer")
        }
        pretrained = self.tower_weights == "imagenet"
        return kind(
            encoder=self.encoder,
            seed=seed,
            batch_size=batch_size,
            batch_norm="frozen" if pretrained else "batch",
            threads=1,
            **shared,
            **more,
        )


PRETRAINED = Settings(
    tower="tf_efficientnet_lite0",
    tower_weights="imagenet",
    image_height=96,
    image_width=72,
    tower_rate=0.1,
    frozen_tower=0.5,
    batch_size=128,
    stage0_batch_size=64,
    mix={"text": 1},
)
SETTINGS: dict[str, Settings] = {
    "titles": Settings(stage0_share=0.6),
    "titles-pretrained": PRETRAINED,
    "attributes": Settings(stage0_share=0.85, apart=1, contrastive_rate=0.3, mix={"text": 1}),
    "cnn": Settings(),
}
STAGE0_FIELDS = {"titles": (TITLE,), "titles-pretrained": (TITLE,), "attributes": FIELDS}


@dataclass(frozen=True)
class Task:
    """One training: the products, their pictures of the encoder's size, and what to spend on it.

    Attributes:
        seconds: of training, in all.
        seed: of the training.
    """

    catalogue: Catalogue
    parts: Split
    pixels: UInt8s
    settings: Settings
    seconds: float
    seed: int


Fit = Callable[[RunConfig, Step], object]


def run_study(
    catalogue: Catalogue, variant: Variant, settings: Settings, minutes: float, seed: int, *, validate: bool = False
) -> dict[str, Any]:
    """Train a variant for so many minutes, and its figures as plain values."""
    parts = split(catalogue, validate=validate)
    pixels = catalogue.pixels((settings.image_height, settings.image_width))
    task = Task(catalogue, parts, pixels, settings, 60 * minutes, seed)
    started = time.monotonic()
    vectors, spent = train_classifier(task) if variant == "cnn" else train_variant(task, variant)
    return {
        "study": "myntra_attributes",
        "variant": variant,
        "seed": seed,
        "validation": validate,
        "minutes": minutes,
        "trained": spent,
        "seconds_in_all": round(time.monotonic() - started, 1),
        "settings": asdict(settings),
        "machine": machine(),
        "products": len(catalogue),
        "queries": len(parts.queries),
        "pool": len(parts.pool),
        "queries_with_their_picture_in_the_pool": int((~fresh(catalogue, parts)).sum()),
        "figures": {name: measure(catalogue, parts, *both) for name, both in vectors.items()},
    }


def train_variant(task: Task, variant: str) -> tuple[dict[str, tuple[Float32s, Float32s]], dict[str, Any]]:
    """Vectors of queries and pool by name of the figure, and the seconds and steps of each stage."""
    described = descriptions(task.catalogue, task.parts.pool, task.pixels, STAGE0_FIELDS[variant])
    contrasted = pairs(task.catalogue, task.parts.pool, task.pixels, task.settings.mix)
    torch.manual_seed(task.seed)
    make = partial(new_encoder, task.settings.encoder, described.texts)
    encoder = make()
    vectors = {"raw pixels": pixel_baseline(task), "untrained": encoder_vectors(encoder, task)}
    encoder.train()
    stages: list[tuple[str, float, RunConfig, Callable[[Encoder], Fit]]] = [
        (
            "stage 0",
            task.settings.stage0_share,
            task.settings.run(PretrainingConfig, task.seed, task.settings.stage0_batch_size, apart=task.settings.apart),
            lambda one: lambda config, progress: captioning.fit(one, described, config, progress),  # type: ignore[arg-type]
        ),
        (
            "contrastive",
            1 - task.settings.stage0_share,
            task.settings.slowed(task.settings.contrastive_rate).run(
                TrainingConfig, task.seed, task.settings.batch_size, temperature=task.settings.temperature
            ),
            lambda one: lambda config, progress: contrastive.fit(one, contrasted, config, progress),  # type: ignore[arg-type]
        ),
    ]
    spent: dict[str, Any] = {}
    for name, share, config, teach in stages:
        if share > 0:
            if spent:
                shorten_kernels(encoder)
            spent[name] = spend(share * task.seconds, task.settings.steps, config, teach(make()), teach(encoder))
            vectors[f"after {name}"] = encoder_vectors(encoder, task)
            encoder.train()
    queries, _ = vectors[f"after {name}"]
    titled = [task.catalogue.titles[row] for row in task.parts.pool]
    vectors["after contrastive, pool with titles"] = queries, _embed(encoder, task, task.parts.pool, titled)
    return vectors, spent


def train_classifier(task: Task) -> tuple[dict[str, tuple[Float32s, Float32s]], dict[str, Any]]:
    """The same of a classifier by article type: its features are the vectors."""
    labels = task.catalogue.labels[task.parts.pool].tolist()
    make = partial(Classifier, task.settings.encoder.tiny, len(set(labels)))
    torch.manual_seed(task.seed)
    model = make()
    pixels = task.pixels[task.parts.pool]
    config = task.settings.run(RunConfig, task.seed, task.settings.batch_size)

    def teach(one: Classifier) -> Fit:
        return lambda config, progress: fit_classifier(one, pixels, labels, config, progress)

    def both() -> tuple[Float32s, Float32s]:
        first, second = (classifier_vectors(model, task.pixels[rows]) for rows in (task.parts.queries, task.parts.pool))
        return first, second

    vectors = {"raw pixels": pixel_baseline(task), "untrained": both()}
    spent = {"classifier": spend(task.seconds, task.settings.steps, config, teach(make()), teach(model))}
    return vectors | {"after classifier": both()}, spent


def spend(seconds: float, steps: int, config: RunConfig, trial: Fit, fit: Fit) -> dict[str, Any]:
    """Train for about so many seconds; how long it took. The steps are counted beforehand, since the rate follows them.

    Args:
        steps: take so many in place of the seconds; 0 counts them.
        trial: the same training of another model, of which a few steps are timed and thrown away.
    """
    if not steps:
        times: list[float] = []
        trial(replace(config, steps=TIMED_STEPS), EachNote(lambda _: times.append(time.monotonic())))
        a_step = (times[-1] - times[FIRST_STEPS - 1]) / (len(times) - FIRST_STEPS)
        steps = max(1, round(seconds / a_step))
    losses: list[float] = []
    started = time.monotonic()
    fit(replace(config, steps=steps), EachNote(lambda at: losses.append(at.loss)))
    taken = time.monotonic() - started
    return {"seconds": round(taken, 1), "steps": steps, "loss": float(np.mean(losses[-max(1, steps // 10) :]))}


def encoder_vectors(encoder: Encoder, task: Task) -> tuple[Float32s, Float32s]:
    """Vectors of the queries and of the pool, by picture alone."""
    queries, pool = (_embed(encoder, task, rows, [None] * len(rows)) for rows in (task.parts.queries, task.parts.pool))
    return queries, pool


def _embed(encoder: Encoder, task: Task, rows: Int64s, texts: list[Any]) -> Float32s:
    return Embedder.of(encoder, precision="auto").embed_pixels(texts, list(rows[:, None]), task.pixels)[0]


def pixel_baseline(task: Task) -> tuple[Float32s, Float32s]:
    """Vectors of the queries and of the pool that nothing was learnt for."""
    vectors = pixel_vectors(task.catalogue.pixels(BASELINE_SIZE))
    return vectors[task.parts.queries], vectors[task.parts.pool]


def measure(catalogue: Catalogue, parts: Split, queries: Float32s, pool: Float32s) -> dict[str, Any]:
    """Precision of whole vectors, of their prefix, and of the queries whose picture the pool has not."""
    task = trials(catalogue, parts)
    new = np.flatnonzero(fresh(catalogue, parts))
    unseen = trials(catalogue, replace(parts, queries=parts.queries[new]))
    found = {
        "dimension": queries.shape[1],
        "whole": measure_attribute(task, queries, pool).as_json(),
        "new pictures": measure_attribute(unseen, queries[new], pool).as_json(),
    }
    if queries.shape[1] > PREFIX:
        found["prefix"] = measure_attribute(task, cut(queries, PREFIX), cut(pool, PREFIX)).as_json()
    return found


def machine() -> str:
    """Processor, how many of them, and torch's version."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} processors, torch {torch.__version__}"


def main(argv: list[str] | None = None) -> None:
    """Run one variant with one seed, or write the report of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of styles.csv and images.zip")
    parser.add_argument("--variant", choices=get_args(Variant))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, a JSON file each")
    parser.add_argument("--report", type=Path, help="write this Markdown file from the results in --out; train nothing")
    parser.add_argument("--validate", action="store_true", help="ask with a part of the 80%%: to choose settings by")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="another setting than usual")
    given = parser.parse_args(argv)
    if given.report:
        write_report(given.out, given.report)
        return
    if given.data is None or given.variant is None:
        parser.error("--data and --variant are needed, or --report")
    torch.set_num_threads(1)
    changed = json_by_name(given.set, "--set", names={one.name for one in fields(Settings)})
    settings = replace(SETTINGS[given.variant], **changed)
    catalogue = read_catalogue(given.data)
    found = run_study(catalogue, given.variant, settings, given.minutes, given.seed, validate=given.validate)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.variant}-{given.seed}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
