"""Gates of embedding spaces and contracts of tables by command: a good space passes, each spoiled one is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake
from PIL import Image
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.contents import content_of, read_contents
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.maintenance.data_docs import pages
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, MODEL_VERSIONS, TABLES, TIMELESS
from moonlake.settings import Settings

DAY = datetime(2026, 3, 1, tzinfo=UTC)
PRODUCTS = 60
TEXTS = 460
LIVE, NEXT = "live-one", "next-one"
GATES = {
    "coverage", "contents_known", "shape", "finite", "zero", "norm", "duplicates", "contract", "neighbour_overlap",
    "agreement", "recall",
}  # fmt: skip
"""Those that apply to a space that was filled in one go, beside a live one."""

Vectors = dict[str, Any]


def write(lake: Lake, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into any table, with a plain Delta write."""
    usual = {column.name: None for column in TABLES[name]} | {"created_at": DAY, "source": "t", "event_timestamp": DAY}
    whole = [{column.name: (usual | dict(row))[column.name] for column in TABLES[name]} for row in rows]
    write_deltalake(lake.path(name), pa.Table.from_pylist(whole, arrow_schema(TABLES[name])), mode="append")


def picture(number: int, noise: int) -> bytes:
    """A pattern of coarse blocks that is the product's own, a little different for each noise."""
    blocks = np.random.default_rng(number).integers(40, 216, (4, 4, 3))
    pixels = np.kron(blocks, np.ones((8, 8, 1))) + np.random.default_rng([number, noise]).normal(0, 8, (32, 32, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def stock(lake: Lake) -> None:
    """Products with a picture, a fresh picture asked and bought for each, and text queries."""
    shown, asked = ([picture(number, noise) for number in range(PRODUCTS)] for noise in (1, 2))
    files = [*shown, *asked]
    facts = {"format": "PNG", "width": 32, "height": 32, "perceptual_hash": "0" * 16}
    write(lake, "product_images", [facts | {"image_id": stable_hash(file), "image_bytes": file} for file in files])
    of_shown, of_asked = ([content_of(None, [stable_hash(file)]) for file in side] for side in (shown, asked))
    product = {"attributes": [], "listed_at": DAY, "deleted": False}
    write(
        lake,
        "products",
        [
            product | {"product_id": f"p{at}", "image_ids": one.image_ids, "content_id": one.content_id}
            for at, one in enumerate(of_shown)
        ],
    )
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz "), (TEXTS, 10))
    texts = [content_of("".join(word), []) for word in letters]
    queries = [("image", one) for one in of_asked] + [("text", one) for one in texts]
    write(
        lake,
        "queries",
        [
            {
                "query_id": f"q{at}", "modality": modality, "text": one.text, "image_ids": one.image_ids,
                "content_id": one.content_id,
            }
            for at, (modality, one) in enumerate(queries)
        ],
    )  # fmt: skip
    bought = {"user_id": "u", "action": "purchase", "event_timestamp": DAY + timedelta(days=1)}
    write(
        lake,
        "behaviors",
        [bought | {"behavior_id": f"b{at}", "product_id": f"p{at}", "query_id": f"q{at}"} for at in range(PRODUCTS)],
    )


def embed(lake: Lake, space_id: str, vectors: Vectors) -> None:
    facts = {"space_id": space_id, "event_timestamp": TIMELESS, "created_at": DAY}
    rows = [facts | {"content_id": one, "vector": vector} for one, vector in vectors.items()]
    write_deltalake(lake.path("embeddings"), pa.Table.from_pylist(rows, arrow_schema(EMBEDDINGS)), mode="append")


def enter_model(
    lake: Lake, name: str, space_id: str | None, gain: dict[str, Any] | None = None, at: datetime = DAY
) -> str:
    """The id of a CTR model in the books, with what it gains over another one."""
    row = {
        "model_id": stable_hash(name), "name": name, "space_id": space_id, "training_set_id": stable_hash("set"),
        "artifact": f"artifacts/{name}", "metrics": json.dumps({"gain": gain} if gain else {}), "event_timestamp": DAY,
    }  # fmt: skip
    rows = pa.Table.from_pylist([row], arrow_schema(MODEL_VERSIONS, MODEL_VERSIONS.facts))
    lake.append("model_versions", rows, written_at=at)
    return stable_hash(name)


def gain(auc: list[float | None], against: str = "ids", space_id: str | None = None) -> dict[str, Any]:
    return {"against": against, "model_id": stable_hash(against), "space_id": space_id, "impressions": 99, "auc": auc}


class Shop:
    """A lake with a live space and the vectors of the next one, not yet written."""

    def __init__(self, home: Path, encoder: Callable[[int], Path], release_waived: Callable[..., Any]) -> None:
        from models.evaluation.representations import embedder_vectors
        from models.inference import Embedder

        self.home = home
        lake = Lake(Settings(home=home))
        stock(lake)
        contents = list(read_contents(lake).values())
        self.vectors: dict[str, Vectors] = {}
        for seed, name in enumerate((LIVE, NEXT)):
            embedder = Embedder.open(encoder(seed))
            made = embedder_vectors(lake, embedder)(contents)
            self.vectors[name] = dict(zip((one.content_id for one in contents), made, strict=True))
            status = "candidate"
            books: dict[str, Any] = {"trained_until": DAY, "metrics": {}, "coverage": 1.0, "written_at": DAY}
            spaces.register(lake, embedder.space, name=name, artifact=str(encoder(seed)), status=status, **books)
        live = releases.find(lake, LIVE)
        embed(lake, live.space_id, self.vectors[LIVE])
        model_id = enter_model(lake, "running", live.space_id)
        for use, model in (("ctr_ranking", model_id), ("similar_products", None)):
            release_waived(lake, use, live.space_id, model_id=model, snapshot="/s", written_at=DAY + timedelta(hours=1))


@pytest.fixture(scope="module")
def stocked(
    tmp_path_factory: pytest.TempPathFactory,
    untrained_encoder: Callable[[int], Path],
    release_waived: Callable[..., releases.Release],
) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), untrained_encoder, release_waived)


@pytest.fixture
def home(stocked: Shop, settings: Settings) -> Settings:
    shutil.copytree(stocked.home, settings.home)
    return settings


def ask(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env=settings.environment())


def results(lake: Lake) -> dict[str, bool | None]:
    """Rows of the last check, by gate."""
    rows = lake.read("gate_results").sort_by("created_at").to_pylist()
    return {row["gate"]: row["passed"] for row in rows if row["check_id"] == rows[-1]["check_id"]}


def failed(lake: Lake) -> set[str]:
    return {name for name, passed in results(lake).items() if passed is False}


def fill(settings: Settings, vectors: Vectors) -> Lake:
    lake = Lake(settings)
    embed(lake, releases.find(lake, NEXT).space_id, vectors)
    return lake


def test_a_good_space_passes_every_gate_and_people_can_read_why(home: Settings, stocked: Shop) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    answer = ask(home, "check", "space", NEXT)
    assert answer.exit_code == 0, answer.output
    assert {name for name, passed in results(lake).items() if passed} == GATES
    assert results(lake)["drift"] is None
    (page,) = pages(home).parent.glob(f"validations/space_{NEXT}/**/*.html")
    text = page.read_text()
    assert "neighbour_overlap" in text
    assert not re.search(r'(src|<link[^>]*href)="https?:', text)
    assert pages(home).is_file()


def test_a_check_is_given_out_as_json_also_where_a_gate_fails(home: Settings, stocked: Shop, tmp_path: Path) -> None:
    fill(home, dict(list(stocked.vectors[NEXT].items())[::2]))
    answer = ask(home, "check", "space", NEXT, "--json", "--output", str(tmp_path / "check.json"))
    assert answer.exit_code == 1
    report = json.loads(answer.stdout)
    assert report == json.loads((tmp_path / "check.json").read_text())
    assert [gate["name"] for gate in report["gates"] if gate["passed"] is False] == ["coverage"]
    assert report["passed"] is False
    report = json.loads(ask(home, "check", "tables", "users", "--json").stdout)
    assert report["tables"] == [{"table": "users", "rows": 0, "broken": {}}]


def shuffled(good: Vectors, _: Vectors) -> Vectors:
    return dict(zip(good, np.random.default_rng(0).permutation(list(good.values())), strict=True))


def first_changed(change: Callable[[np.ndarray], Any], share: float = 0.01) -> Callable[[Vectors, Vectors], Vectors]:
    """The same vectors, but for a share of them."""

    def spoil(good: Vectors, _: Vectors) -> Vectors:
        few = sorted(good)[: int(share * len(good))]
        return good | {name: change(good[name]) for name in few}

    return spoil


SPOILED: dict[str, tuple[set[str], Callable[[Vectors, Vectors], Vectors]]] = {
    "shuffled": ({"agreement", "neighbour_overlap", "recall"}, shuffled),
    "of another encoder": ({"agreement"}, lambda _, other: other),
    "NaN": ({"finite"}, first_changed(lambda vector: vector * np.nan)),
    "unnormalised": ({"norm"}, lambda good, _: {name: 2 * vector for name, vector in good.items()}),
    "half of them": ({"coverage"}, lambda good, _: dict(list(good.items())[::2])),
    "zeros": ({"zero"}, first_changed(np.zeros_like)),
    "short": ({"shape", "contract"}, first_changed(lambda vector: vector[:1])),
    "none at all": ({"shape"}, first_changed(lambda _: [])),
    "all the same": (
        {"agreement", "duplicates", "neighbour_overlap", "recall"},
        lambda good, _: dict.fromkeys(good, next(iter(good.values()))),
    ),
}


@pytest.mark.parametrize(("gates", "spoil"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_space_is_refused_by_the_gates_that_should(
    gates: set[str], spoil: Callable[[Vectors, Vectors], Vectors], home: Settings, stocked: Shop
) -> None:
    lake = fill(home, spoil(stocked.vectors[NEXT], stocked.vectors[LIVE]))
    answer = ask(home, "check", "space", NEXT, "--use", "similar_products")
    assert answer.exit_code == 1
    # A few bad rows break the contract too, and are or are not among those that are embedded again.
    assert gates <= failed(lake) <= gates | {"contract", "agreement"}
    assert all(f"\n  {name}: " in answer.stderr for name in gates)


def test_a_refused_space_keeps_the_old_release_and_what_failed_is_written(home: Settings, stocked: Shop) -> None:
    lake = fill(home, shuffled(stocked.vectors[NEXT], {}))
    before = releases.running(lake)
    answer = ask(home, "release", "promote", NEXT, "--use", "similar_products")
    assert answer.exit_code == 1
    assert re.search(r"error: embedding space next-one .* did not pass 3 gates:", answer.stderr)
    assert re.search(r"\n  recall: [0-9.]+ \(expected at least 0.95\): high end of hit@10 over", answer.stderr)
    assert releases.running(lake) == before
    assert releases.find(lake, NEXT).status == "candidate"
    rows = lake.read("gate_results", where=pc.field("gate") == "recall").to_pylist()
    assert [(row["use"], row["passed"], row["minimum"]) for row in rows] == [("similar_products", False, 0.95)]
    assert rows[0]["value"] < 0.95
    assert rows[0]["check_id"] in answer.stderr
    (page,) = pages(home).parent.glob(f"validations/space_{NEXT}/**/*.html")
    assert "Failed" in page.read_text()


def test_a_good_space_is_released_and_the_way_back_asks_no_gate(home: Settings, stocked: Shop) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    assert ask(home, "release", "promote", NEXT, "--use", "similar_products").exit_code == 0
    assert releases.running(lake)["similar_products"].space_id == releases.find(lake, NEXT).space_id
    version = lake.version("gate_results")
    assert ask(home, "release", "rollback", "--use", "similar_products").exit_code == 0
    assert releases.running(lake)["similar_products"].space_id == releases.find(lake, LIVE).space_id
    assert lake.version("gate_results") == version


def test_an_encoder_that_is_gone_or_was_changed_fails_the_gate_and_not_the_check(
    home: Settings, stocked: Shop, tmp_path: Path
) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    space = releases.find(lake, NEXT)
    for artifact, said in (
        (tmp_path / "gone", "no vector can be made again"),
        (releases.find(lake, LIVE).artifact, "never meet"),
    ):
        spaces._enter(lake, replace(space, artifact=str(artifact)), datetime.now(UTC))
        answer = ask(home, "check", "space", space.space_id)
        assert failed(lake) == {"agreement"}
        assert said in answer.stderr


def test_recall_without_a_live_space_must_beat_chance(home: Settings, stocked: Shop) -> None:
    shutil.rmtree(Lake(home).path("releases"))
    lake = fill(home, stocked.vectors[NEXT])
    ask(home, "check", "space", NEXT)
    rows = {row["gate"]: row for row in lake.read("gate_results").to_pylist()}
    assert rows["recall"]["minimum"] == pytest.approx(2 * 10 / PRODUCTS)
    assert rows["neighbour_overlap"]["detail"] == "no space is live"
    shutil.rmtree(lake.path("embeddings"))
    fill(home, shuffled(stocked.vectors[NEXT], {}))
    ask(home, "check", "space", NEXT)
    assert failed(lake) == {"agreement", "recall"}


def test_purchases_that_an_encoder_learnt_from_are_no_trials(home: Settings, stocked: Shop) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    later = replace(releases.find(lake, NEXT), trained_until=DAY + timedelta(days=1))
    spaces._enter(lake, later, datetime.now(UTC))
    assert ask(home, "check", "space", NEXT).exit_code == 0
    assert results(lake)["recall"] is None


OVER_IDS = gain([0.01, 0.004, 0.016])
RUNNING = {"against": "running", "space_id": "0" * 32}
CTR: dict[str, tuple[dict[str, bool | None], list[dict[str, Any]]]] = {
    "never measured": ({"ctr_gain": False, "ctr_gain_over_live": None, "exchange_rate": None}, []),
    "pays": ({"ctr_gain": True, "ctr_gain_over_live": None, "exchange_rate": None}, [OVER_IDS]),
    "may not pay": ({"ctr_gain": False, "ctr_gain_over_live": None}, [gain([0.01, -0.001, 0.02])]),
    "pays nothing": ({"ctr_gain": False}, [gain([0.0, 0.0, 0.0])]),
    "undefined": ({"ctr_gain": False}, [gain([None, None, None])]),
    "the latest counts": ({"ctr_gain": True}, [gain([-0.01, -0.02, 0.0]), OVER_IDS]),
    "pays, and more than what runs": (
        {"ctr_gain": True, "ctr_gain_over_live": True, "exchange_rate": True},
        [OVER_IDS, gain([0.002, 0.001, 0.003], **RUNNING)],
    ),
    "pays, but less than what runs": (
        {"ctr_gain": True, "ctr_gain_over_live": False},
        [OVER_IDS, gain([-0.01, -0.014, -0.006], **RUNNING)],
    ),
}


@pytest.mark.parametrize(("expected", "gains"), CTR.values(), ids=CTR)
def test_a_ctr_model_is_released_for_what_it_was_measured_to_gain(
    expected: dict[str, bool | None], gains: list[dict[str, Any]], home: Settings, stocked: Shop
) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    space_id = releases.find(lake, NEXT).space_id
    model_id = enter_model(lake, "new", space_id)
    for hours, one in enumerate(gains):
        enter_model(lake, "new", space_id, one, DAY + timedelta(hours=hours))
    answer = ask(home, "release", "promote", "new")
    assert expected.items() <= results(lake).items()
    released = releases.current_release(lake, "ctr_ranking").model_id == model_id
    assert released == (False not in expected.values()) == (answer.exit_code == 0)
    if not gains:
        assert "moonlake evaluate ctr new --on TRAINING_SET --against A_MODEL_OF_IDS_ALONE" in answer.stderr


def test_the_gain_that_is_asked_for_can_be_named(home: Settings, stocked: Shop) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    model_id = enter_model(lake, "new", releases.find(lake, NEXT).space_id, OVER_IDS)
    assert ask(home, "release", "promote", "new", "--minimum-gain", "0.005").exit_code == 1
    assert failed(lake) == {"ctr_gain"}
    assert ask(home, "release", "promote", "new", "--minimum-gain", "0.003").exit_code == 0
    assert releases.current_release(lake, "ctr_ranking").model_id == model_id


def test_the_exchange_rate_is_the_gain_over_what_runs_for_each_point_of_recall(home: Settings, stocked: Shop) -> None:
    lake = fill(home, stocked.vectors[NEXT])
    enter_model(lake, "new", releases.find(lake, NEXT).space_id, gain([0.002, 0.001, 0.003], **RUNNING))
    ask(home, "release", "promote", "new")
    rows = {row["gate"]: row for row in lake.read("gate_results").to_pylist()}
    moved = float(re.findall(r"changes by ([+-][0-9.]+)", rows["recall"]["detail"])[0])
    assert rows["exchange_rate"]["value"] == pytest.approx(0.002 * 0.01 / moved, rel=1e-3)
    assert (rows["exchange_rate"]["minimum"], rows["exchange_rate"]["maximum"]) == (None, None)


def test_tables_are_held_against_their_contracts(home: Settings) -> None:
    answer = ask(home, "check", "tables")
    assert answer.exit_code == 0, answer.output
    assert "products: 60 rows, all keep the contract" in answer.stdout
    lake = Lake(home)
    write(lake, "queries", [{"query_id": "q1", "modality": "smell", "image_ids": [], "content_id": "no hash"}])
    answer = ask(home, "check", "tables", "queries", "products", "--rows", "600")
    assert answer.exit_code == 1
    assert "products: 60 rows, all keep the contract" in answer.stdout
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("queries")]
    assert {"modality_not_allowed", "content_id_wrong_form", "expect_column_values_to_be_unique"} <= set(
        re.findall(r"(\w+) \(", line)
    )
    assert "1 of the tables hold rows that break their contract: queries" in answer.stderr
