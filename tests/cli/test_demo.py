from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from moonlake.embeddings import releases
from moonlake.embeddings.checks import WAIVED
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.training_sets.training_set import TrainingSet
from sources.simulator.presets import preset_named
from workflows.demo import run_demo

pytestmark = [pytest.mark.spark, pytest.mark.slow]

WINDOW = preset_named("tiny").window


def demo(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`moonlake demo` on the preset `tiny`, done, with a few steps of the encoder."""
    command = [sys.executable, "-m", "cli.app", "--debug", "demo", "--preset", "tiny", "--steps", "3", *words]
    here = {"MOONLAKE_HOME": str(home), "MOONLAKE_SPARK_DRIVER_MEMORY": "2g", "COLUMNS": "200"}
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the preset after one demo; what it printed is in demo.txt."""
    home = tmp_path_factory.mktemp("demo")
    printed = demo(home).stdout
    (home / "demo-tiny" / "demo.txt").write_text(printed)
    return home / "demo-tiny"


def test_the_figures_are_printed_and_the_page_shows_pictures(home: Path) -> None:
    printed = (home / "demo.txt").read_text()
    for wanted in (
        "trained encoder",
        "untrained encoder",
        "raw pixels",
        "IDs only",
        "with content",
        "shuffled content",
    ):
        assert wanted in printed
    assert "behaviour is simulated" in printed
    page = (home / "report.html").read_text()
    assert page.count("data:image/") > 50
    assert "http://" not in page
    assert "https://" not in page
    assert "behaviour is simulated" in page


def test_what_a_short_demo_fails_is_said_and_waived_on_the_page_and_in_the_lake(home: Path) -> None:
    rows = Lake(Settings(home=home)).read("gate_results").to_pylist()
    failed = {row["gate"] for row in rows if row["passed"] is False}
    reasons = [row["detail"] for row in rows if row["gate"] == WAIVED]
    printed, page = (home / "demo.txt").read_text(), (home / "report.html").read_text()
    assert {row["check_id"] for row in rows} == {
        releases.current_release(Lake(Settings(home=home)), "ctr_ranking").check_id
    }
    assert failed
    assert all(f"gate FAILED {name}: " in printed for name in failed)
    assert [f"Released all the same: {reason}" in printed and reason in page for reason in reasons] == [True]


def test_encoder_data_ends_before_the_first_ctr_training_row_and_that_before_the_test(home: Path) -> None:
    settings = Settings(home=home)
    lake = Lake(settings)
    train, test = (TrainingSet.open(settings.training_sets / name).read(["event_timestamp"]) for name in SETS)
    first_train, last_train = (find(train["event_timestamp"]).as_py() for find in (pc.min, pc.max))
    first_test = pc.min(test["event_timestamp"]).as_py()
    pairs = lake.read("contrastive_pairs", ["event_timestamp"])
    assert pc.max(pairs["event_timestamp"]).as_py() < WINDOW.t1 <= first_train
    space = releases.live(lake)
    assert space.trained_until is not None
    assert space.trained_until < first_train
    assert last_train < WINDOW.t2 <= first_test


SETS = ("ctr-train", "ctr-test")


def test_a_second_run_skips_every_step_and_writes_no_commit(home: Path) -> None:
    lake = Lake(Settings(home=home))
    versions = {name: lake.version(name) for name in TABLES}
    again = demo(home.parent, "--json")
    assert again.stderr.count(": unchanged (") == 8
    assert {name: lake.version(name) for name in TABLES} == versions
    figures = json.loads(again.stdout)
    assert (figures["home"], figures["simulated"]) == (str(home), True)
    printed = (home / "demo.txt").read_text()
    for name in ("IDs only", "with content", "shuffled content"):
        assert f"{figures['models'][name]['auc']:.4f}" in printed


def test_the_demo_runs_from_python_and_gives_its_figures(home: Path) -> None:
    lines: list[str] = []
    found = run_demo(Settings(home=home.parent), preset="tiny", encoder_steps=3, say=lines.append)
    assert [": unchanged (" in line for line in lines] == [True] * 8
    assert (found.home, found.report, found.simulated) == (home, home / "report.html", True)
    assert list(found.recall) == ["trained encoder", "untrained encoder", "raw pixels"]
    assert list(found.gains) == ["with content", "shuffled content"]
    assert found.space_id == releases.live(Lake(Settings(home=home))).space_id


def test_every_table_of_the_demo_is_full_and_a_release_is_live(home: Path) -> None:
    lake = Lake(Settings(home=home))
    written = {name for name in TABLES if lake.exists(name)}
    assert written >= {
        "products", "product_images", "users", "merchants", "queries", "impressions", "behaviors", "behavior_sequences",
        "product_stats", "user_stats", "contrastive_pairs", "embeddings", "embedding_spaces", "releases",
        "training_sets", "model_versions", "gate_results",
    }  # fmt: skip
    release = releases.current_release(lake, "ctr_ranking")
    assert release.space_id == releases.live(lake).space_id
    vectors = lake.read("embeddings", ["space_id"])["space_id"]
    assert set(vectors.to_pylist()) == {release.space_id}
