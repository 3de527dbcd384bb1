from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import content_of
from moonlake.embeddings.snapshots import write_snapshot
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, MODEL_VERSIONS, TIMELESS
from moonlake.settings import Settings

DAY = datetime(2026, 3, 1, tzinfo=UTC)
GAIN = {"against": "ids", "model_id": stable_hash("ids"), "space_id": None, "impressions": 9, "auc": [0.3, 0.2, 0.4]}
"""Over a model of IDs alone, as `moonlake evaluate ctr` records it: the gates ask for it."""


@pytest.fixture
def space(settings: Settings, lake: Lake, write_rows: Any, untrained_encoder: Callable[[int], Path]) -> spaces.Space:
    """A space that covers its one content."""
    from models.inference import Embedder

    embedder = Embedder.open(untrained_encoder(0))
    content = content_of("red shirt", [])
    asked = {"query_id": "q", "modality": "text", "text": content.text, "content_id": content.content_id}
    write_rows(settings, "queries", [asked])
    vector: dict[str, Any] = {
        "content_id": content.content_id,
        "space_id": embedder.space.space_id,
        "vector": embedder.embed([content.text], [[]])[0],
        "event_timestamp": TIMELESS,
        "created_at": DAY,
    }
    write_deltalake(lake.path("embeddings"), pa.Table.from_pylist([vector], arrow_schema(EMBEDDINGS)))
    artifact = str(untrained_encoder(0))
    books: dict[str, Any] = {"artifact": artifact, "trained_until": None, "metrics": {}, "written_at": DAY}
    return spaces.register(lake, embedder.space, name="shop", status="candidate", coverage=1.0, **books)


def record(lake: Lake, name: str, space_id: str | None) -> str:
    """The id of a model that is entered in the books."""
    row = {
        "model_id": stable_hash(name),
        "name": name,
        "space_id": space_id,
        "training_set_id": stable_hash("set"),
        "artifact": f"artifacts/{name}",
        "metrics": json.dumps({"gain": GAIN}),
        "event_timestamp": DAY,
    }
    rows = pa.Table.from_pylist([row], arrow_schema(MODEL_VERSIONS, MODEL_VERSIONS.facts))
    lake.append("model_versions", rows, written_at=DAY)
    return stable_hash(name)


def release(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["release", *arguments], env=settings.environment())


def test_a_release_names_model_space_snapshot_and_features_at_once(
    settings: Settings, lake: Lake, space: spaces.Space
) -> None:
    model_id = record(lake, "monday", space.space_id)
    assert release(settings, "promote", "monday").exit_code == 0
    current = releases.current_release(lake, "ctr_ranking")
    assert (current.model_id, current.space_id) == (model_id, space.space_id)
    assert current.feature_service == "ctr_ranking_v1"
    assert current.snapshot == str(settings.snapshots / space.space_id)
    assert releases.live(lake).space_id == space.space_id


def test_a_roll_back_is_a_switch_to_the_earlier_model(settings: Settings, lake: Lake, space: spaces.Space) -> None:
    names = ("monday", "tuesday", "wednesday")
    for name in names:
        record(lake, name, space.space_id)
        assert release(settings, "promote", name).exit_code == 0
    for earlier in ("tuesday", "monday"):
        assert f"{earlier} on space shop" in release(settings, "rollback").stdout
    listed = release(settings, "show").stdout.splitlines()
    assert [line.split()[3] for line in listed] == [*names, "tuesday", "monday"]
    current = releases.current_release(lake, "ctr_ranking")
    assert (current.feature_service, current.snapshot) == ("ctr_ranking_v1", str(settings.snapshots / space.space_id))
    answer = release(settings, "rollback")
    assert answer.exit_code == 1
    assert "nothing was released for ctr_ranking before" in answer.stderr


def test_a_roll_back_says_how_many_products_have_no_vector_there_and_what_fills_them(
    settings: Settings,
    lake: Lake,
    space: spaces.Space,
    write_rows: Callable[..., None],
    release_waived: Callable[..., releases.Release],
) -> None:
    first = space.definition
    second = replace(first, weights=stable_hash("others"))
    books: dict[str, Any] = {"artifact": "encoder", "trained_until": None, "metrics": {}, "written_at": DAY}
    spaces.register(lake, second, name="next", status="candidate", coverage=1.0, **books)
    old = content_of("red shirt", []).content_id
    new, unreadable = stable_hash("new"), stable_hash("unreadable")
    vector = {"vector": [1.0, *[0.0] * 15], "space_id": second.space_id, "event_timestamp": TIMELESS}
    write_rows(settings, "embeddings", [vector | {"content_id": content_id} for content_id in (old, new)])
    contents = {"old": old, "new": new, "twin of new": new, "nothing to read": unreadable}
    products = [{"product_id": name, "content_id": content_id} for name, content_id in contents.items()]
    write_rows(settings, "products", products)
    refused = [{"content_id": unreadable, "space_id": one.space_id} for one in (first, second)]
    books = {"table": "embeddings", "rule": "content_unreadable", "source": "embed_contents"}
    rejects = [books | {"reject_id": stable_hash(str(one)), "value": json.dumps(one)} for one in refused]
    write_rows(settings, "rejects", rejects)
    for minute, one in enumerate((first, second)):
        folder = write_snapshot(lake, one.space_id, settings.snapshots / one.space_id).folder
        later = DAY + timedelta(minutes=minute + 1)
        release_waived(lake, "similar_products", one.space_id, snapshot=str(folder), written_at=later)

    answer = release(settings, "rollback", "--use", "similar_products")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.splitlines()[1:] == [
        "2 of 4 products on sale have no vector in the space shop: moonlake backfill run shop embeds them"
    ]
    assert releases.live(lake, "similar_products").name == "shop"
    release_waived(lake, "similar_products", second.space_id, written_at=datetime.now(UTC))
    write_rows(settings, "embeddings", [vector | {"content_id": new, "space_id": first.space_id}])
    assert len(release(settings, "rollback", "--use", "similar_products").stdout.splitlines()) == 1


def test_similar_products_run_on_a_space_without_a_model(settings: Settings, lake: Lake, space: spaces.Space) -> None:
    assert "nothing was released" in release(settings, "show", "--use", "similar_products").stdout
    answer = release(settings, "promote", "shop", "--use", "similar_products")
    assert "similar_products  no model on space shop" in answer.stdout
    assert releases.running(lake)["similar_products"].snapshot == str(settings.snapshots / space.space_id)
    assert "no use ranking" in release(settings, "promote", "shop", "--use", "ranking").stderr


def test_the_same_release_again_writes_nothing(settings: Settings, lake: Lake, space: spaces.Space) -> None:
    record(lake, "monday", space.space_id)
    release(settings, "promote", "monday")
    version = lake.version("releases")
    assert release(settings, "promote", "monday").exit_code == 0
    assert lake.version("releases") == version


def test_an_unknown_model_is_one_line_with_the_names_that_there_are(
    settings: Settings, lake: Lake, space: spaces.Space
) -> None:
    record(lake, "monday", space.space_id)
    answer = release(settings, "promote", "mnoday")
    assert answer.exit_code == 1
    assert answer.stderr == "error: no CTR model 'mnoday' in model_versions; there are monday\n"
    assert not lake.exists("releases")


def test_a_model_of_ids_alone_is_refused(settings: Settings, lake: Lake, space: spaces.Space) -> None:
    record(lake, "ids", None)
    answer = release(settings, "promote", "ids")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: CTR model ids reads IDs only")


def test_a_switch_and_the_way_back_are_reported_as_json(settings: Settings, lake: Lake, space: spaces.Space) -> None:
    for name in ("monday", "tuesday"):
        record(lake, name, space.space_id)
        promoted = json.loads(release(settings, "promote", name, "--json").stdout)
    assert (promoted["release"]["use"], promoted["model"]["name"]) == ("ctr_ranking", "tuesday")
    assert promoted["release"]["check_id"] == releases.current_release(lake, "ctr_ranking").check_id
    back = json.loads(release(settings, "rollback", "--json").stdout)
    assert (back["released"]["model"]["name"], back["missing"], back["on_sale"]) == ("monday", 0, 0)
    shown = json.loads(release(settings, "show", "--json").stdout)
    assert [one["model"]["name"] for one in shown] == ["monday", "tuesday", "monday"]
    assert json.loads(release(settings, "show", "--use", "similar_products", "--json").stdout) == []
