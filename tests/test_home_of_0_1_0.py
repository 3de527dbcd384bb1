"""A home that moonlake 0.1.0 made opens with this code, and its training sets come out the same, byte for byte.

`tests/fixtures/make_home.py` made it, and wrote down what is in it. It is unpacked at the path that it was made at,
since tables and registry hold absolute paths: one process at a time has it there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner, Result

from cli.app import app
from models.ctr.model import CtrModel
from models.inference import Embedder
from moonlake.embeddings import releases
from moonlake.embeddings.contents import read_contents, read_images
from moonlake.embeddings.snapshots import Snapshot
from moonlake.feast_delta import materialize
from moonlake.feast_delta.store import apply, feature_store, online_features
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from moonlake.training_sets import build
from moonlake.training_sets.training_set import TrainingSet
from moonlake.training_sets.verify import verify
from moonlake.version import __version__
from serving.scorer import Scorer

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "home-0.1.0.json").read_text())
TRAINING_SETS: dict[str, dict[str, Any]] = FACTS["training_sets"]
FLOAT16_STEP = 2**-11
"""Two roundings of a number below 1 to float16 lie no further apart, if they were almost the same number."""
SCORE_TOLERANCE = 1e-5
"""Networks compute in float32, whose sums depend on the processor."""


@pytest.fixture(scope="module")
def settings(home_of_0_1_0: Settings) -> Settings:
    """Settings with the home."""
    return home_of_0_1_0


@pytest.fixture(scope="module")
def lake(settings: Settings) -> Lake:
    """The lake of the home."""
    return Lake(settings)


@pytest.fixture
def moonlake(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs a command on the home."""
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def as_json(values: Any) -> Any:
    """The values as they come back from a JSON file."""
    return json.loads(json.dumps(values, default=str))


@pytest.mark.parametrize("table", FACTS["tables"])
def test_every_version_of_a_table_opens_with_its_rows(lake: Lake, table: str) -> None:
    counts = FACTS["tables"][table]
    assert lake.version(table) == len(counts) - 1
    assert [len(lake.read(table, version=version)) for version in range(len(counts))] == counts


def test_refused_rows_stand_under_their_rules(lake: Lake) -> None:
    assert sorted([row["table"], row["rule"]] for row in lake.read("rejects").to_pylist()) == FACTS["rejects"]


def test_the_space_and_its_life_are_read(lake: Lake) -> None:
    space = releases.find(lake, FACTS["space"]["space_id"])
    assert as_json({name: getattr(space, name) for name in FACTS["space"]}) == FACTS["space"]
    life = lake.read("embedding_spaces", list(FACTS["life"][0])).sort_by("event_timestamp")
    assert as_json(life.to_pylist()) == FACTS["life"]


@pytest.mark.parametrize("use", FACTS["releases"])
def test_what_was_released_runs(lake: Lake, use: str) -> None:
    assert as_json([asdict(one) for one in releases.history(lake, use)]) == [
        released | {"check_id": None} for released in FACTS["releases"][use]
    ]
    assert releases.live(lake, use).space_id == FACTS["space"]["space_id"]


def test_the_encoder_embeds_a_content_to_the_vector_that_the_lake_holds(lake: Lake) -> None:
    expected = FACTS["embedding"]
    embedder = Embedder.open(FACTS["space"]["artifact"])
    assert embedder.space.space_id == FACTS["space"]["space_id"]
    [content] = read_contents(lake, [expected["content_id"]]).values()
    files = read_images(lake, content.image_ids)
    [vector] = embedder.embed([content.text], [[files[name] for name in content.image_ids]])
    np.testing.assert_allclose(vector, expected["vector"], rtol=0, atol=FLOAT16_STEP)
    stored = lake.read("embeddings", ["vector"], where=pc.field("content_id") == expected["content_id"])
    assert stored["vector"].to_pylist() == [expected["vector"]]


@pytest.mark.usefixtures("home_of_0_1_0")
def test_the_snapshot_opens_with_the_vector_of_the_content() -> None:
    expected = FACTS["snapshot"]
    snapshot = Snapshot.open(Path(expected["folder"]))
    snapshot.verify()
    assert snapshot.space_id == FACTS["space"]["space_id"]
    assert (len(snapshot), len(snapshot.products)) == (expected["contents"], expected["products"])
    assert snapshot.versions == expected["versions"]
    [row] = snapshot.rows_of(pa.array([FACTS["embedding"]["content_id"]]))
    assert snapshot.vectors[row].tolist() == FACTS["embedding"]["vector"]


@pytest.mark.parametrize("name", FACTS["models"])
def test_a_click_model_scores_as_it_did(settings: Settings, lake: Lake, name: str) -> None:
    expected = FACTS["models"][name]
    model = CtrModel.open(Path(expected["artifact"]))
    assert (model.model_id, model.space_id) == (expected["model_id"], expected["space_id"])
    assert model.lineage.training_set_id == expected["training_set_id"]
    recorded = lake.read("model_versions", ["name", "artifact"], where=pc.field("model_id") == model.model_id)
    assert recorded.to_pylist() == [{"name": name, "artifact": expected["artifact"]}]
    rows = TrainingSet.open(settings.training_sets / "ctr-test").read().slice(0, len(expected["scores"]))
    assert rows["impression_id"].to_pylist() == expected["impression_ids"]
    snapshot = Snapshot.open(Path(FACTS["snapshot"]["folder"])) if model.space_id else None
    np.testing.assert_allclose(model.predict(rows, snapshot), expected["scores"], atol=SCORE_TOLERANCE)


def test_what_is_released_ranks_a_request_as_it_did(settings: Settings) -> None:
    asked = FACTS["ranking"]
    now = datetime.fromisoformat(asked["now"])
    ranked = Scorer.live(settings).rank(asked["user_id"], asked["query_id"], asked["product_ids"], now)
    scores = {one.product_id: one.score for one in ranked}
    assert scores == pytest.approx(dict(asked["ranked"]), abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_a_training_set_is_what_its_manifest_says(settings: Settings, lake: Lake, name: str) -> None:
    expected = TRAINING_SETS[name]
    assert verify(settings, settings.training_sets / name).problems == ()
    found = TrainingSet.open(settings.training_sets / name)
    assert found.manifest.training_set_id == expected["training_set_id"]
    assert found.schema.names == expected["columns"]
    assert len(found.read()) == len(found) == expected["rows"]
    assert file_hashes(found.folder / "rows") == expected["files"]
    registered = lake.read("training_sets", where=pc.field("training_set_id") == expected["training_set_id"])
    assert registered["folder"].to_pylist() == [str(found.folder)]


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_a_training_set_is_built_again_to_the_same_bytes(settings: Settings, name: str, tmp_path: Path) -> None:
    manifest = TrainingSet.open(settings.training_sets / name).manifest
    again = build.replay(settings, manifest, tmp_path / name, written_at=None).training_set
    assert file_hashes(again.folder / "rows") == TRAINING_SETS[name]["files"]
    assert again.manifest == manifest


def test_a_training_set_was_made_of_a_version_that_is_not_the_latest(lake: Lake) -> None:
    for expected in TRAINING_SETS.values():
        assert expected["table_versions"]["products"] < lake.version("products")


def test_a_training_set_in_delta_form_opens_as_a_table(settings: Settings) -> None:
    table = DeltaTable(settings.training_sets / "ctr-pointers" / "rows")
    assert table.to_pyarrow_dataset().count_rows() == TRAINING_SETS["ctr-pointers"]["rows"]


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("asked", FACTS["online"], ids=lambda asked: asked["service"])
def test_online_features_are_as_they_were_served(settings: Settings, asked: dict[str, Any]) -> None:
    found = online_features(feature_store(settings), asked["service"], asked["keys"])
    assert as_json(found.to_pylist()) == asked["rows"]


def test_the_registry_takes_the_definitions_of_now_and_goes_on_serving(settings: Settings) -> None:
    names = [view.name for view in feature_store(settings).list_feature_views()]
    assert [view.name for view in apply(settings).list_feature_views()] == names
    end = datetime.fromisoformat(FACTS["ranking"]["now"])
    assert {served.view for served in materialize.run(settings, end)} == set(names)
    for asked in FACTS["online"]:
        found = online_features(feature_store(settings), asked["service"], asked["keys"])
        assert as_json(found.to_pylist()) == asked["rows"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("spaces list", FACTS["space"]["space_id"][:12]),
        ("spaces show live", FACTS["space"]["artifact"]),
        ("release show", FACTS["space"]["space_id"][:12]),
        ("release show --use similar_products", FACTS["space"]["space_id"][:12]),
        ("training-set list", "ctr-pointers"),
        ("training-set show ctr-train", TRAINING_SETS["ctr-train"]["training_set_id"]),
        ("training-set verify ctr-train", "as its manifest says"),
        (
            "training-set verify ctr-pointers --rebuild",
            f"every byte is the same, built by moonlake 0.1.0, now {__version__}",
        ),
    ],
)
def test_a_command_reads_the_home(moonlake: Callable[..., Result], command: str, said: str) -> None:
    result = moonlake(*command.split())
    assert result.exit_code == 0, result.output
    assert said in result.stdout
