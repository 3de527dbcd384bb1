from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from moonlake.embeddings import releases, spaces
from moonlake.embeddings.spaces import SpaceDefinition
from moonlake.errors import ContractError, InputError, NotFound, SpaceMismatch
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import MODEL_VERSIONS

DEFINITION = SpaceDefinition(
    weights="w", tokenizer="t", preprocessing="p", prompt="i", content_fields=("title", "image_ids"), pooling="mean",
    normalisation="l2", storage_type="float16", dimension=8,
)  # fmt: skip
OTHER = replace(DEFINITION, weights="w2")
MODEL = "0" * 32
Release = Callable[..., releases.Release]


def enter(lake: Lake, at: datetime, definition: SpaceDefinition = DEFINITION, name: str = "first") -> spaces.Space:
    return spaces.register(
        lake, definition, name=name, artifact="/a", trained_until=None, metrics={"hit": 0.5}, written_at=at
    )


def complete(lake: Lake, at: datetime, definition: SpaceDefinition = DEFINITION, name: str = "first") -> str:
    space = enter(lake, at, definition, name)
    spaces.set_status(lake, space.space_id, "candidate", coverage=1.0, written_at=at + timedelta(seconds=1))
    return space.space_id


def enter_model(lake: Lake, space_id: str, at: datetime, model_id: str = MODEL) -> str:
    row = {
        "model_id": model_id, "name": "m", "space_id": space_id, "training_set_id": "0" * 32, "artifact": "/m",
        "metrics": "{}", "event_timestamp": at,
    }  # fmt: skip
    rows = pa.Table.from_pylist([row], arrow_schema(MODEL_VERSIONS, MODEL_VERSIONS.facts))
    lake.append("model_versions", rows, written_at=at)
    return model_id


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "x"}, {"tokenizer": "x"}, {"preprocessing": "x"}, {"prompt": "x"}, {"content_fields": ("title",)},
        {"pooling": "last"}, {"normalisation": "none"}, {"storage_type": "float32"}, {"dimension": 4},
    ],
)  # fmt: skip
def test_whatever_makes_vectors_incomparable_makes_another_space(change: dict[str, object]) -> None:
    assert replace(DEFINITION, **change).space_id != DEFINITION.space_id  # type: ignore[arg-type]


def test_a_definition_survives_json_with_its_id() -> None:
    assert SpaceDefinition.from_json(DEFINITION.to_json()) == DEFINITION
    with pytest.raises(InputError, match="found \\['weights'\\]"):
        SpaceDefinition.from_json('{"weights": "w"}')


def test_a_space_is_found_by_name_id_and_prefix(lake: Lake, written_at: datetime) -> None:
    space = enter(lake, written_at)
    enter(lake, written_at, OTHER, "second")
    for asked in ("first", space.space_id, space.space_id[:8]):
        assert releases.find(lake, asked) == space


def test_an_unknown_or_ambiguous_name_says_what_there_is(lake: Lake, written_at: datetime) -> None:
    with pytest.raises(NotFound, match="none: train an encoder"):
        releases.find(lake, "first")
    enter(lake, written_at)
    for asked in ("nothing", ""):
        with pytest.raises(NotFound, match=r"there are first \("):
            releases.find(lake, asked)
    ids: dict[str, SpaceDefinition] = {}
    for number in range(40):  # more spaces than hexadecimal digits: two begin alike
        definition = replace(DEFINITION, weights=str(number))
        enter(lake, written_at, definition, f"n{number}")
        first = definition.space_id[0]
        if first in ids:
            with pytest.raises(NotFound, match="2 embedding spaces begin with"):
                releases.find(lake, first)
            return
        ids[first] = definition
    pytest.fail("no two ids began alike")


def test_registering_twice_commits_once_and_a_taken_name_is_refused(lake: Lake, written_at: datetime) -> None:
    first = enter(lake, written_at)
    version = lake.version("embedding_spaces")
    assert enter(lake, written_at + timedelta(days=1)) == first
    assert lake.version("embedding_spaces") == version
    with pytest.raises(InputError, match="the name first belongs to"):
        enter(lake, written_at, OTHER, "first")


def test_no_space_is_called_live(lake: Lake, written_at: datetime) -> None:
    with pytest.raises(InputError, match="the name live stands for the space that CTR ranking runs on"):
        enter(lake, written_at, name="live")
    assert not lake.exists("embedding_spaces")


def test_the_same_weights_under_another_name_are_one_space_with_both_names(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    space_id = complete(lake, written_at)
    again = enter(lake, written_at, name="next")
    assert (again.space_id, again.name, again.aliases, again.status) == (space_id, "first", ("next",), "candidate")
    version = lake.version("embedding_spaces")
    assert enter(lake, written_at, name="next") == enter(lake, written_at) == again
    assert lake.version("embedding_spaces") == version, "a name that it has is not given again"
    release_waived(lake, "similar_products", "next", written_at=written_at)
    for asked in ("first", "next", space_id):
        found = releases.find(lake, asked)
        assert (found.names, found.status, found.coverage) == (("first", "next"), "live", 1.0)
    assert str(found) == f"first ({space_id[:12]}, live, also called next)"
    with pytest.raises(InputError, match="the name next belongs to the embedding space first"):
        enter(lake, written_at, OTHER, "next")


def test_status_goes_forward_only_and_a_candidate_is_complete(lake: Lake, written_at: datetime) -> None:
    space = enter(lake, written_at)
    with pytest.raises(ContractError, match="expected to become candidate, retired, not live"):
        spaces.set_status(lake, space.space_id, "live", coverage=1.0, written_at=written_at)
    with pytest.raises(ContractError, match=r"covers 99\.00%"):
        spaces.set_status(lake, space.space_id, "candidate", coverage=0.99, written_at=written_at)
    later = written_at + timedelta(minutes=1)
    spaces.set_status(lake, space.space_id, "candidate", coverage=1.0, written_at=later)
    version = lake.version("embedding_spaces")
    again = spaces.set_status(lake, space.space_id, "candidate", coverage=1.0, written_at=later + timedelta(minutes=1))
    assert (again.status, again.coverage, again.event_timestamp) == ("candidate", 1.0, later)
    assert lake.version("embedding_spaces") == version
    with pytest.raises(ContractError, match="not building"):
        spaces.set_status(lake, space.space_id, "building", written_at=later)


def test_entries_of_one_moment_keep_their_order(lake: Lake, written_at: datetime, release_waived: Release) -> None:
    first, second = (complete(lake, written_at, one, name) for one, name in ((DEFINITION, "first"), (OTHER, "second")))
    moment = written_at + timedelta(seconds=1)
    for space_id in (first, second, first):
        release_waived(lake, "similar_products", space_id, written_at=moment)
    assert [one.space_id for one in releases.history(lake, "similar_products")] == [first, second, first]
    assert [releases.find(lake, name).status for name in ("first", "second")] == ["live", "retired"]


def test_a_release_needs_a_complete_space_and_a_model_that_reads_it(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    building = enter(lake, written_at).space_id
    with pytest.raises(ContractError, match="run embed_contents"):
        release_waived(lake, "similar_products", building, written_at=written_at)
    spaces.set_status(lake, building, "candidate", coverage=1.0, written_at=written_at + timedelta(seconds=1))
    with pytest.raises(NotFound, match="without a CTR model"):
        release_waived(lake, "ctr_ranking", building, written_at=written_at)
    with pytest.raises(NotFound, match="no CTR model"):
        release_waived(lake, "ctr_ranking", building, model_id=MODEL, written_at=written_at)
    enter_model(lake, OTHER.space_id, written_at)
    with pytest.raises(SpaceMismatch) as error:
        release_waived(lake, "ctr_ranking", building, model_id=MODEL, written_at=written_at)
    assert building in str(error.value)
    assert OTHER.space_id in str(error.value)
    with pytest.raises(NotFound, match="nothing is released for ctr_ranking; embedding spaces: first"):
        releases.find(lake, "live")


def test_a_release_switches_statuses_follow_and_a_roll_back_is_a_release(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    def at(minutes: int) -> datetime:
        return written_at + timedelta(minutes=minutes)

    first, second = complete(lake, at(0)), complete(lake, at(1), OTHER, "second")
    models = {space: enter_model(lake, space, at(2), str(n) * 32) for n, space in enumerate((first, second))}
    seen = []
    for minute, space in ((3, first), (4, second), (5, first)):
        release_waived(lake, "ctr_ranking", space, model_id=models[space], written_at=at(minute))
        assert releases.live(lake).space_id == releases.find(lake, "live").space_id == space
        seen.append([found.status for found in spaces.spaces(lake)])
    assert seen == [["live", "candidate"], ["retired", "live"], ["live", "retired"]]
    assert [past.space_id for past in releases.history(lake, "ctr_ranking")] == [first, second, first]


def test_roll_backs_go_back_one_release_each_and_not_to_and_fro(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    def switch(minute: int, space_id: str) -> None:
        release_waived(lake, "similar_products", space_id, written_at=written_at + timedelta(minutes=minute))

    with pytest.raises(NotFound, match="nothing was released for similar_products before now"):
        releases.before_current(lake, "similar_products")
    definitions = [replace(DEFINITION, weights=str(number)) for number in range(3)]
    first, second, third = (complete(lake, written_at, one, one.weights) for one in definitions)
    for minute, space_id in enumerate((first, second, third)):
        switch(minute, space_id)
    for minute, wanted in ((3, second), (4, first)):
        assert releases.before_current(lake, "similar_products").space_id == wanted
        switch(minute, wanted)
    with pytest.raises(NotFound, match=f"before {first}"):
        releases.before_current(lake, "similar_products")
    switch(5, third)
    assert releases.before_current(lake, "similar_products").space_id == first


def test_a_space_is_retired_once_nothing_runs_on_it(lake: Lake, written_at: datetime, release_waived: Release) -> None:
    first, second = complete(lake, written_at), complete(lake, written_at, OTHER, "second")
    release_waived(lake, "similar_products", first, written_at=written_at + timedelta(minutes=1))
    with pytest.raises(ContractError, match="similar_products runs on it; release another space there first"):
        releases.retire(lake, "first", written_at=written_at + timedelta(minutes=2))
    assert releases.retire(lake, second, written_at=written_at + timedelta(minutes=2)).status == "retired"
    assert {use: one.space_id for use, one in releases.running(lake).items()} == {"similar_products": first}


def test_a_retired_space_that_was_never_complete_is_not_released_and_can_be_filled_again(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    space = enter(lake, written_at)
    releases.retire(lake, "first", written_at=written_at + timedelta(minutes=1))
    with pytest.raises(ContractError, match="run embed_contents"):
        release_waived(lake, "similar_products", space.space_id, written_at=written_at + timedelta(minutes=2))
    assert not lake.exists("releases")
    for minute, (status, coverage) in enumerate([("building", 0.5), ("candidate", 1.0), ("live", 1.0)], 3):
        later = written_at + timedelta(minutes=minute)
        assert spaces.set_status(lake, space.space_id, status, coverage=coverage, written_at=later).status == status


def test_a_space_that_another_use_still_runs_on_stays_live(
    lake: Lake, written_at: datetime, release_waived: Release
) -> None:
    first, second = complete(lake, written_at), complete(lake, written_at, OTHER, "second")
    later = [written_at + timedelta(minutes=minute) for minute in range(1, 4)]
    release_waived(lake, "similar_products", first, written_at=later[0])
    model = enter_model(lake, first, written_at)
    release_waived(lake, "ctr_ranking", first, model_id=model, written_at=later[1])
    release_waived(lake, "similar_products", second, written_at=later[2])
    assert [space.status for space in spaces.spaces(lake)] == ["live", "live"]


def test_releasing_what_is_released_commits_nothing(lake: Lake, written_at: datetime, release_waived: Release) -> None:
    space = complete(lake, written_at)
    first = release_waived(lake, "similar_products", space, snapshot="/s", written_at=written_at + timedelta(hours=1))
    versions = lake.version("releases"), lake.version("embedding_spaces")
    again = release_waived(lake, "similar_products", space, snapshot="/s", written_at=written_at + timedelta(hours=2))
    assert again == first
    assert (lake.version("releases"), lake.version("embedding_spaces")) == versions


def test_an_unknown_use_is_an_error(lake: Lake) -> None:
    with pytest.raises(NotFound, match="ctr_ranking, similar_products"):
        releases.history(lake, "ranking")


def test_vectors_of_two_spaces_never_meet() -> None:
    spaces.require_same("a", "a", what="scoring")
    with pytest.raises(SpaceMismatch, match="scoring: expected embedding space a, found b"):
        spaces.require_same("a", "b", what="scoring")


def test_a_status_is_set_by_the_whole_id_only(lake: Lake, written_at: datetime) -> None:
    space = enter(lake, written_at)
    for other in (space.name, space.space_id[:12], "live"):
        with pytest.raises(NotFound, match=f"no embedding space has the id '{other}'"):
            spaces.set_status(lake, other, "candidate", coverage=1.0, written_at=written_at)
