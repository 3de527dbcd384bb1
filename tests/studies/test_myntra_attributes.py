from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.captioning import FIELDS, TITLE
from models.training.loop import RunConfig
from models.training.negatives import repel_mask
from models.training.pair_views import views_of
from models.training.progress import StepReport
from moonlake.errors import InputError
from moonlake.progress import Step
from sources.datasets.myntra_files import COLUMNS
from studies.myntra_attributes import Settings, main, measure, run_study, spend
from studies.myntra_catalogue import Catalogue, Split, descriptions, fresh, pairs, read_catalogue, split

KINDS = {"Shirts": (220, 40, 40), "Jeans": (40, 40, 220)}
QUICK = replace(Settings(), batch_size=16, stage0_batch_size=16, image_height=40, image_width=32, steps=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 products of two kinds and colours; 1 has the picture of 0, 2 has its title; 79 has no picture."""
    folder = tmp_path_factory.mktemp("myntra")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "styles.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number in range(80):
            kind = sorted(KINDS)[number // 3 % 2]
            title = f"Brand {0 if number == 2 else number} {kind}"
            values = dict.fromkeys(COLUMNS, "x") | {"id": number, "articleType": kind, "productDisplayName": title}
            writer.writerow(values)
            pixels = np.clip(KINDS[kind] + rng.normal(0, 40, (80, 60, 3)), 0, 255).astype(np.uint8)
            if number != 79:
                Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg", quality=95)
    (folder / "images" / "1.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def catalogue(data: Path) -> Catalogue:
    return read_catalogue(data)


def test_products_without_a_picture_are_left_out(catalogue: Catalogue) -> None:
    assert catalogue.ids == [str(number) for number in range(79)]


def test_products_of_one_picture_or_one_title_are_twins(catalogue: Catalogue) -> None:
    first = catalogue.twins == catalogue.twins[0]
    assert np.flatnonzero(first).tolist() == [0, 1, 2]
    assert np.flatnonzero(catalogue.looks == catalogue.looks[0]).tolist() == [0, 1]


def test_no_query_is_trained_on_and_none_of_validation_is_a_query(catalogue: Catalogue) -> None:
    last, chosen = split(catalogue), split(catalogue, validate=True)
    assert sorted([*last.pool, *last.queries]) == list(range(79))
    assert sorted([*chosen.pool, *chosen.queries]) == last.pool.tolist()
    assert not set(chosen.pool) & set(chosen.queries)


def test_queries_with_their_picture_in_the_pool_are_known(catalogue: Catalogue) -> None:
    parts = Split(pool=np.arange(1, 70), queries=np.array([0, 70, 71]))
    assert fresh(catalogue, parts).tolist() == [False, True, True]


def test_the_picture_that_asks_and_the_one_that_is_found_are_two_views(catalogue: Catalogue) -> None:
    pixels = catalogue.pixels((80, 60))
    made = pairs(catalogue, np.arange(10), pixels, {"image": 1})
    views = views_of(made, np.arange(10), 0, np.random.default_rng(0))
    assert len(views) == 20
    choice = made.choose(views.contents, views.shown, 1, 1, 0.0, np.zeros((20, made.draws)))
    assert choice.rows[views.queries].tolist() == choice.rows[views.items].tolist() == list(range(10))
    assert not choice.with_text.any()


def test_each_kind_of_pair_shows_what_it_says(catalogue: Catalogue) -> None:
    made = pairs(catalogue, np.arange(5), catalogue.pixels((80, 60)), {"text": 1, "product": 1, "title": 2})
    assert len(made) == 20
    queries, items = (
        made.queries(np.array([0, 5, 10]), 1),
        made.items(np.array([0, 5, 10]), 1, 0.0, np.random.default_rng(0)),
    )
    title = catalogue.titles[0]
    assert (queries.texts, [len(one) for one in queries.images]) == ([None, None, title], [1, 1, 0])
    assert (items.texts, [len(one) for one in items.images]) == ([title, title, None], [0, 1, 1])


def test_twins_never_repel_each_other(catalogue: Catalogue) -> None:
    made = pairs(catalogue, np.arange(5), catalogue.pixels((80, 60)), {"text": 1, "image": 1})
    groups = torch.from_numpy(made.groups)
    repels = repel_mask(groups, groups).numpy()
    twins = catalogue.twins[np.tile(np.arange(5), 2)]
    assert (repels == (twins[:, None] != twins)).all()


def test_the_article_type_is_told_in_the_supervised_variant_only(catalogue: Catalogue) -> None:
    pixels = catalogue.pixels((80, 60))
    plain, told = (descriptions(catalogue, np.arange(3), pixels, fields) for fields in ((TITLE,), FIELDS))
    assert plain.texts == list(catalogue.titles[:3])
    assert all(f"articleType: {label}" in said for label, said in zip(catalogue.labels, told.texts, strict=False))


def test_precision_of_vectors_that_are_the_labels_is_one(catalogue: Catalogue) -> None:
    parts = split(catalogue)
    vectors = np.eye(2, dtype=np.float32)[(catalogue.labels == "Jeans").astype(int)]
    found = measure(catalogue, parts, vectors[parts.queries], vectors[parts.pool])
    assert [rate["value"] for rate in found["whole"]["precisions"]] == [1.0, 1.0]


@pytest.mark.parametrize("variant", ["attributes", "cnn"])
def test_a_training_of_seconds_finds_the_kind(catalogue: Catalogue, variant: str) -> None:
    found = run_study(catalogue, variant, QUICK, 0.0, 0)  # type: ignore[arg-type]
    figures = found["figures"]
    last = figures[f"after {list(found['trained'])[-1]}"]
    assert last["whole"]["precisions"][1]["value"] > last["whole"]["chance"] + 0.2
    assert set(figures) >= {"raw pixels", "untrained"}


def test_the_time_is_turned_into_steps() -> None:
    config, taken = RunConfig(steps=0), []

    def fit(config: RunConfig, progress: Step) -> None:
        taken.append(config.steps)
        for step in range(config.steps):
            time.sleep(0.005)
            progress.update(step + 1, config.steps, StepReport(step + 1, 1.0, 0.1, 1.0))

    spent = spend(0.2, 0, config, fit, fit)
    assert taken[1] == spent["steps"] <= 40
    assert spent["seconds"] >= 0.005 * spent["steps"] - 0.05


def test_the_report_says_what_the_files_say(tmp_path: Path, data: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.md"
    with pytest.raises(InputError, match="no result"):
        main(["--out", str(out), "--report", str(report)])
    small = ["--set", "batch_size=16", "--set", "steps=2"]
    main(["--data", str(data), "--variant", "cnn", "--seed", "3", "--out", str(out), *small])
    main(["--out", str(out), "--report", str(report)])
    found = json.loads((out / "cnn-3.json").read_text())
    rate = found["figures"]["after classifier"]["whole"]["precisions"][1]
    assert f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" in report.read_text()
