"""No way to a release leads past a check that passed, or was waived with a reason that is kept."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from cli.app import app
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.checks import WAIVED, Check, PassedCheck, record
from moonlake.embeddings.contents import content_of
from moonlake.embeddings.gates import OF_SPACE, Gate
from moonlake.errors import ContractError, GateFailed, InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.progress import UNWATCHED
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.tables import RELEASES, TIMELESS
from moonlake.settings import Settings
from sources.own_files.staging import SourceInfo, new_stage, stage_path
from workflows.demo_clicks import _release
from workflows.demo_run import DemoRun
from workflows.releases import check_space, find_model, promote
from workflows.resumable_steps import Steps

ROOT = Path(__file__).parents[2]
DAY = datetime(2026, 3, 1, tzinfo=UTC)
SIMILAR, RANKING = "similar_products", "ctr_ranking"
GAIN = {"against": "ids", "model_id": stable_hash("ids"), "space_id": None, "impressions": 9, "auc": [0.3, 0.2, 0.4]}
"""Over a model of IDs alone, as `moonlake evaluate ctr` records it."""


class Shop:
    """A lake with a space that covers its one content, a complete space beside it, and click models on the first."""

    def __init__(self, settings: Settings, artifact: Path, write_rows: Callable[..., None]) -> None:
        from models.inference import Embedder

        self.settings, self.lake, self.write_rows = settings, Lake(settings), write_rows
        embedder = Embedder.open(artifact)
        self.vector = embedder.embed(["red shirt"], [[]])[0]
        content = content_of("red shirt", [])
        asked = {"query_id": "q", "modality": "text", "text": content.text, "content_id": content.content_id}
        write_rows(settings, "queries", [asked])
        books: dict[str, Any] = {"artifact": str(artifact), "trained_until": None, "metrics": {}, "written_at": DAY}
        books |= {"status": "candidate", "coverage": 1.0}
        self.space = spaces.register(self.lake, embedder.space, name="shop", **books)
        other = replace(embedder.space, weights=stable_hash("others"))
        self.other = spaces.register(self.lake, other, name="other", **books)
        self.embed(content.content_id)
        for name, gain in (("measured", {"gain": GAIN}), ("unmeasured", {})):
            model = {"model_id": stable_hash(name), "name": name, "space_id": self.space.space_id}
            write_rows(settings, "model_versions", [model | {"metrics": json.dumps(gain)}])

    def embed(self, content_id: str, vector: Any = None, space_id: str | None = None) -> None:
        """One more vector in the space, or in another."""
        space_id = space_id or self.space.space_id
        row = {"content_id": content_id, "space_id": space_id, "event_timestamp": TIMELESS}
        self.write_rows(self.settings, "embeddings", [row | {"vector": self.vector if vector is None else vector}])

    def release(self, check: PassedCheck, use: str = SIMILAR, **parts: Any) -> releases.Release:
        return releases.release(self.lake, use, "shop", check=check, written_at=datetime.now(UTC), **parts)


@pytest.fixture
def shop(settings: Settings, untrained_encoder: Callable[[int], Path], write_rows: Callable[..., None]) -> Shop:
    return Shop(settings, untrained_encoder(0), write_rows)


def made_by_hand(shop: Shop) -> None:
    shop.release(PassedCheck(stable_hash("made by hand"), shop.space.space_id, SIMILAR, None))


def looked_at_only(shop: Shop) -> None:
    shop.release(check_space(shop.settings, shop.space, compared_with=SIMILAR).require_passed())


def of_another_use(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=stable_hash("measured"))
    shop.release(check.require_passed())


def of_another_use_called_this_one(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=stable_hash("measured")).require_passed()
    shop.release(replace(check, use=SIMILAR, model_id=None))


def of_another_model(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=stable_hash("measured"))
    shop.release(check.require_passed(), RANKING, model_id=stable_hash("unmeasured"))


def of_another_space(shop: Shop) -> None:
    begun = Check.begin(shop.lake, shop.other, use=SIMILAR, at=DAY)
    shop.release(begun.waived(shop.lake, reason="for the other one", written_at=DAY))


def that_failed(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=stable_hash("unmeasured"))
    passed = PassedCheck(check.check_id, shop.space.space_id, RANKING, stable_hash("unmeasured"))
    shop.release(passed, RANKING, model_id=stable_hash("unmeasured"))


def with_one_gate(shop: Shop) -> None:
    check = replace(Check.begin(shop.lake, shop.space, use=SIMILAR, at=DAY), gates=(Gate("norm", 0.0, "", maximum=1),))
    record(shop.lake, check, written_at=DAY)
    shop.release(check.require_passed())


def never_recorded(shop: Shop) -> None:
    gates = tuple(Gate(name, 0.0, "", maximum=1) for name in OF_SPACE)
    check = replace(Check.begin(shop.lake, shop.space, use=SIMILAR, at=DAY), gates=gates)
    shop.release(check.require_passed())


def whose_embeddings_changed_since(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=SIMILAR).require_passed()
    shop.embed(stable_hash("later"))
    shop.release(check)


def that_was_waived_before_embeddings_changed(shop: Shop) -> None:
    begun = Check.begin(shop.lake, shop.space, use=SIMILAR, at=DAY)
    shop.embed(stable_hash("later"))
    shop.release(begun.waived(shop.lake, reason="as it is", written_at=DAY))


def by_the_workflow(shop: Shop) -> None:
    promote(shop.settings, "unmeasured")


def by_the_workflow_without_a_model(shop: Shop) -> None:
    shop.embed(stable_hash("broken"), shop.vector * np.nan)
    promote(shop.settings, "shop", use=SIMILAR)


def release_of_a_demo(shop: Shop, *, may_waive: bool) -> dict[str, Any]:
    """The release step of a demo on the click model that was never measured."""
    with new_stage(shop.settings, "small") as stage:
        stage.describe(SourceInfo("small", True, "test", (DAY, DAY), DAY, DAY, "", "small"))
    steps = Steps(shop.settings.demo / "steps.json", lambda _: None)
    folder = stage_path(shop.settings, "small")
    run = DemoRun(shop.settings, folder, steps, lambda _: None, UNWATCHED, may_waive=may_waive)
    return _release(run, shop.space.space_id, stable_hash("unmeasured"), "/s")


def by_the_demo_on_its_own_preset(shop: Shop) -> None:
    release_of_a_demo(shop, may_waive=False)


def row_of_a_release(shop: Shop) -> pa.Table:
    row = {"use": SIMILAR, "space_id": shop.space.space_id, "event_timestamp": DAY}
    return pa.Table.from_pylist([row], arrow_schema(RELEASES, RELEASES.facts))


def by_an_append(shop: Shop) -> None:
    shop.lake.append("releases", row_of_a_release(shop), written_at=DAY)


def by_an_append_of_another_writer(shop: Shop) -> None:
    shop.lake.append("releases", row_of_a_release(shop), written_at=DAY, writer=__name__)


REFUSED = {
    made_by_hand: "has no rows in gate_results",
    looked_at_only: "is of another use: expected similar_products, found None",
    of_another_use: "is of another use: expected similar_products, found ctr_ranking",
    of_another_use_called_this_one: "is of another use",
    of_another_model: "is of another model_id",
    of_another_space: "is of another space_id",
    that_failed: "did not pass ctr_gain, and its failure was not waived",
    with_one_gate: "left out coverage, contents_known",
    never_recorded: "has no rows in gate_results",
    whose_embeddings_changed_since: "looked at version 0 of the table embeddings, which is at version 1 now",
    that_was_waived_before_embeddings_changed: "looked at version 0 of the table embeddings",
    by_the_workflow: "\n  ctr_gain: not measured",
    by_the_workflow_without_a_model: "\n  finite: 1",
    by_the_demo_on_its_own_preset: "\n  ctr_gain: not measured",
    by_an_append: "table releases is written by moonlake.embeddings.releases alone",
    by_an_append_of_another_writer: "table releases is written by moonlake.embeddings.releases alone",
}


@pytest.mark.parametrize(("attempt", "said"), REFUSED.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_way_without_a_passed_check_of_now_is_refused(shop: Shop, attempt: Callable[[Shop], None], said: str) -> None:
    with pytest.raises(ContractError) as refused:
        attempt(shop)
    assert said in str(refused.value)
    assert isinstance(refused.value, GateFailed) == (attempt not in (by_an_append, by_an_append_of_another_writer))
    assert not shop.lake.exists("releases")
    assert releases.running(shop.lake) == {}


def test_a_release_cannot_be_asked_for_without_a_check(shop: Shop) -> None:
    with pytest.raises(TypeError, match="check"):
        releases.release(shop.lake, SIMILAR, "shop", written_at=DAY)  # type: ignore[call-arg]


@pytest.mark.parametrize("words", [["unmeasured"], ["shop", "--use", SIMILAR]])
def test_the_command_refuses_what_fails_a_gate(shop: Shop, words: list[str]) -> None:
    shop.embed(stable_hash("broken"), shop.vector * np.nan)
    answer = CliRunner().invoke(app, ["release", "promote", *words], env=shop.settings.environment())
    assert answer.exit_code == 1
    assert "did not pass" in answer.stderr
    assert not shop.lake.exists("releases")


def test_the_rows_of_a_check_are_not_written_by_others_either(shop: Shop) -> None:
    table = contract("gate_results")
    rows = arrow_schema(table, table.facts).empty_table()
    with pytest.raises(ContractError, match=r"gate_results is written by moonlake\.embeddings\.checks alone"):
        shop.lake.append("gate_results", rows, written_at=DAY)


def test_a_check_that_passed_releases_for_its_use_and_model_and_the_release_names_it(shop: Shop) -> None:
    model = find_model(shop.lake, "measured")
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=model.model_id)
    released = shop.release(check.require_passed(), RANKING, model_id=model.model_id)
    assert released.check_id == check.check_id
    assert releases.current_release(shop.lake, RANKING) == released
    shop.embed(stable_hash("later"))
    once_more = check_space(shop.settings, shop.space, use=RANKING, model_id=model.model_id)
    assert once_more.embeddings_version == check.embeddings_version + 1


def test_vectors_of_other_spaces_and_new_ones_of_a_space_that_runs_already_do_not_stop_a_release(shop: Shop) -> None:
    check = check_space(shop.settings, shop.space, use=SIMILAR).require_passed()
    shop.embed(stable_hash("later"), space_id=shop.other.space_id)
    first = shop.release(check)
    check = check_space(shop.settings, shop.space, use=SIMILAR).require_passed()
    shop.embed(stable_hash("later"))
    again = shop.release(check, snapshot="/elsewhere")
    assert again.event_timestamp > first.event_timestamp
    assert releases.current_release(shop.lake, SIMILAR) == again


def test_vectors_that_were_rewritten_stop_a_release_also_of_a_space_that_runs_already(shop: Shop) -> None:
    shop.release(check_space(shop.settings, shop.space, use=SIMILAR).require_passed())
    check = check_space(shop.settings, shop.space, use=SIMILAR).require_passed()
    write_deltalake(shop.lake.path("embeddings"), shop.lake.read("embeddings"), mode="overwrite")
    with pytest.raises(GateFailed, match="1 files with vectors of shop were rewritten or removed since"):
        shop.release(check, snapshot="/elsewhere")


def test_a_waived_check_releases_and_its_reason_is_kept_beside_what_failed(shop: Shop) -> None:
    model_id = stable_hash("unmeasured")
    check = check_space(shop.settings, shop.space, use=RANKING, model_id=model_id)
    assert [gate.name for gate in check.failed] == ["ctr_gain"]
    with pytest.raises(InputError, match="a waiver needs a reason"):
        check.waived(shop.lake, reason=" ", written_at=DAY)
    shop.release(check.waived(shop.lake, reason="a trial of ten steps", written_at=DAY), RANKING, model_id=model_id)
    rows = {row["gate"]: row for row in shop.lake.read("gate_results").to_pylist()}
    assert {row["check_id"] for row in rows.values()} == {releases.current_release(shop.lake, RANKING).check_id}
    assert (rows["ctr_gain"]["passed"], rows[WAIVED]["passed"]) == (False, None)
    assert rows[WAIVED]["detail"] == "a trial of ten steps"


def test_a_demo_elsewhere_waives_by_the_names_of_what_failed_and_gives_the_gates_out(shop: Shop) -> None:
    given = release_of_a_demo(shop, may_waive=True)
    assert given["check_id"] == releases.current_release(shop.lake, RANKING).check_id
    assert given["waived"] == "a demo on small, which need not pass: ctr_gain"
    assert [gate["name"] for gate in given["gates"] if gate["passed"] is False] == ["ctr_gain"]
    waived = [row["detail"] for row in shop.lake.read("gate_results").to_pylist() if row["gate"] == WAIVED]
    assert waived == [given["waived"]]


def test_a_roll_back_is_the_one_way_without_a_check_and_keeps_the_earlier_one(shop: Shop) -> None:
    first = shop.release(check_space(shop.settings, shop.space, use=SIMILAR).require_passed(), snapshot="/first")
    second = Check.begin(shop.lake, shop.other, use=SIMILAR, at=DAY).waived(shop.lake, reason="trial", written_at=DAY)
    releases.release(shop.lake, SIMILAR, "other", check=second, written_at=datetime.now(UTC))
    shop.embed(stable_hash("later"))
    version = shop.lake.version("gate_results")
    again = releases.roll_back(shop.lake, SIMILAR, written_at=datetime.now(UTC))
    assert replace(again, event_timestamp=first.event_timestamp) == first
    assert releases.current_release(shop.lake, SIMILAR) == again
    assert shop.lake.version("gate_results") == version


def test_a_release_made_before_there_were_checks_is_read_and_another_one_follows_it(
    shop: Shop, release_waived: Callable[..., releases.Release]
) -> None:
    old = row_of_a_release(shop).append_column("created_at", pa.array([DAY], pa.timestamp("us", tz="UTC")))
    write_deltalake(shop.lake.path("releases"), old.drop_columns("check_id"))
    results = arrow_schema(contract("gate_results")).empty_table().drop_columns("embeddings_version")
    write_deltalake(shop.lake.path("gate_results"), results)
    before = releases.current_release(shop.lake, SIMILAR)
    assert (before.space_id, before.check_id, before.event_timestamp) == (shop.space.space_id, None, DAY)
    again = release_waived(shop.lake, SIMILAR, "shop", written_at=DAY + timedelta(days=1))
    assert (again, shop.lake.version("releases")) == (before, 0)  # the same release writes nothing
    new = release_waived(shop.lake, SIMILAR, "other", written_at=DAY + timedelta(days=1))
    assert releases.history(shop.lake, SIMILAR) == [before, new]
    assert new.check_id is not None
    assert shop.lake.read("releases", ["check_id"], version=0)["check_id"].to_pylist() == [None]
    back = releases.roll_back(shop.lake, SIMILAR, written_at=DAY + timedelta(days=2))
    assert (back.space_id, back.check_id) == (shop.space.space_id, None)


def calls(room: str) -> list[tuple[str, ast.Call]]:
    """Every call in the files of a room, with its file."""
    return [
        (path.relative_to(ROOT).as_posix(), node)
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_a_dag_writes_releases_by_the_command_alone() -> None:
    of_dags = [
        tuple(word.value for word in ast.walk(call) if isinstance(word, ast.Constant))
        for _, call in calls("dags")
        if any(keyword.arg == "writes" and "'releases'" in ast.unparse(keyword.value) for keyword in call.keywords)
    ]
    assert of_dags
    assert all({"release", "promote"} <= set(words) for words in of_dags)


def test_a_writer_names_itself_and_no_other_module() -> None:
    rooms = ("moonlake", "models", "sources", "spark_jobs", "serving", "workflows", "cli", "studies", "benchmarks")
    named = [
        (file, ast.unparse(keyword.value))
        for room in rooms
        for file, call in calls(room)
        for keyword in call.keywords
        if keyword.arg == "writer" and ast.unparse(call.func) not in ("Table", "_table")
    ]
    assert sorted({file for file, _ in named}) == ["moonlake/embeddings/checks.py", "moonlake/embeddings/releases.py"]
    assert {value for _, value in named} == {"__name__"}
