"""Snapshots: exact vectors, look-up, atomic writing, and refusal of what does not belong together."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from moonlake.embeddings.snapshots import Control, Snapshot, write_snapshot, write_vectors
from moonlake.errors import ContractError, InputError, NotFound, SpaceMismatch
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDINGS, PRODUCTS, TIMELESS

DIMENSION = 8
SPACE, OTHER = stable_hash("space"), stable_hash("another space")
DAY = datetime(2026, 1, 1, tzinfo=UTC)
IDS = [stable_hash(str(number)) for number in range(200)]


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def register(lake: Lake, space_id: str, name: str = "first") -> None:
    row = {
        "space_id": space_id, "name": name, "status": "building", "dimension": DIMENSION, "storage_type": "float16",
        "artifact": "nowhere", "definition": "{}", "trained_until": DAY, "coverage": 1.0, "metrics": "{}",
        "event_timestamp": DAY,
    }  # fmt: skip
    lake.append("embedding_spaces", pa.Table.from_pylist([row]).cast(_without_created_at(lake)), written_at=DAY)


def _without_created_at(lake: Lake) -> pa.Schema:
    from moonlake.schema.tables import EMBEDDING_SPACES

    return arrow_schema(EMBEDDING_SPACES, EMBEDDING_SPACES.facts)


def embed(lake: Lake, ids: list[str], vectors: np.ndarray, space_id: str = SPACE) -> None:
    """Write vectors as the embedding job would, two files a call."""
    for half in (slice(None, None, 2), slice(1, None, 2)):
        rows = pa.table(
            {
                "content_id": ids[half],
                "space_id": [space_id] * len(ids[half]),
                "vector": [row.astype(np.float32) for row in vectors[half]],
                "event_timestamp": [TIMELESS] * len(ids[half]),
                "created_at": [DAY] * len(ids[half]),
            },
            schema=arrow_schema(EMBEDDINGS),
        )
        write_deltalake(lake.path("embeddings"), rows, mode="append")


def list_products(lake: Lake, states: list[tuple[str, str, int, bool]]) -> None:
    """Write product states: product, content, day of the change, deleted."""
    rows = [
        {
            "product_id": product, "content_id": content, "deleted": deleted, "title": "a", "image_ids": [],
            "attributes": [], "listed_at": DAY, "source": "test", "event_timestamp": DAY.replace(day=day),
            "created_at": DAY,
        }
        for product, content, day, deleted in states
    ]  # fmt: skip
    write_deltalake(lake.path("products"), pa.Table.from_pylist(rows, schema=arrow_schema(PRODUCTS)), mode="append")


@pytest.fixture
def embedded(lake: Lake) -> Lake:
    """A lake with 200 vectors of one space, ten of another, and three products of which one is gone."""
    register(lake, SPACE)
    embed(lake, IDS, unit_rows(200))
    embed(lake, IDS[:10], unit_rows(10, seed=1), OTHER)
    states = [("b", IDS[1], 3, False), ("b", IDS[0], 1, False), ("a", IDS[2], 1, False), ("gone", IDS[3], 2, True)]
    list_products(lake, states)
    return lake


def test_vectors_come_back_bit_for_bit_in_any_order_asked(embedded: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    asked = np.random.default_rng(2).permutation(200)
    rows = snapshot.rows_of(pa.array([IDS[number] for number in asked]))
    assert len(snapshot) == 200
    assert snapshot.vectors.dtype == np.float16
    np.testing.assert_array_equal(snapshot.vectors[rows], unit_rows(200)[asked])


def test_ids_without_a_vector_have_row_minus_one(embedded: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    asked = [IDS[7], None, stable_hash("never seen"), "short", "", "Z" * 32, "f" * 32, IDS[7].upper(), IDS[7]]
    rows = snapshot.rows_of(pa.array(asked))
    assert (rows >= 0).tolist() == [True] + [False] * 7 + [True]
    assert rows[0] == rows[-1]
    chunked = pa.chunked_array([pa.array(asked[:2]), pa.array(asked[2:])])
    np.testing.assert_array_equal(snapshot.rows_of(chunked), rows)
    np.testing.assert_array_equal(snapshot.rows_of(pa.array(asked).slice(1)), rows[1:])
    assert len(snapshot.rows_of(pa.array([], pa.string()))) == 0
    assert len(snapshot.rows_of(pa.chunked_array([], pa.string()))) == 0


def test_ids_that_share_their_first_half_are_told_apart(lake: Lake, tmp_path: Path) -> None:
    ids = ["0" * 16 + f"{number:016x}" for number in (5, 3, 9)] + ["f" * 32]
    register(lake, SPACE)
    embed(lake, ids, unit_rows(4))
    snapshot = write_snapshot(lake, SPACE, tmp_path / "snapshot")
    rows = snapshot.rows_of(pa.array([*ids, "0" * 15 + "1" + "0" * 15 + "5", "0" * 31 + "4"]))
    np.testing.assert_array_equal(snapshot.vectors[rows[:4]], unit_rows(4))
    assert rows[4:].tolist() == [-1, -1]


def test_opening_maps_the_file_and_copies_nothing(embedded: Lake, tmp_path: Path) -> None:
    write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    before = pa.total_allocated_bytes()
    snapshot = Snapshot.open(tmp_path / "snapshot")
    assert pa.total_allocated_bytes() == before
    assert not snapshot.vectors.flags.owndata
    assert not snapshot.vectors.flags.writeable
    assert snapshot.vectors.flags.c_contiguous


def test_products_on_sale_have_the_content_of_their_last_change(embedded: Lake, tmp_path: Path) -> None:
    assert write_snapshot(embedded, SPACE, tmp_path / "snapshot").products == {"a": IDS[2], "b": IDS[1]}


def test_manifest_names_space_versions_and_checksums(embedded: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    manifest = json.loads((tmp_path / "snapshot" / "manifest.json").read_text())
    assert (manifest["space_id"], manifest["dimension"], manifest["contents"]) == (SPACE, DIMENSION, 200)
    assert manifest["versions"] == {"embeddings": embedded.version("embeddings"), "products": 0} == snapshot.versions
    assert snapshot.trained_until == DAY
    snapshot.verify()
    assert {file.name for file in tmp_path.iterdir() if "snapshot" in file.name} == {"snapshot"}


def test_writing_an_unchanged_snapshot_again_touches_nothing(embedded: Lake, tmp_path: Path) -> None:
    write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    before = {file.name: file.stat().st_ino for file in (tmp_path / "snapshot").iterdir()}
    write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    assert {file.name: file.stat().st_ino for file in (tmp_path / "snapshot").iterdir()} == before


def test_a_grown_lake_replaces_the_snapshot_and_open_readers_keep_theirs(embedded: Lake, tmp_path: Path) -> None:
    old = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    kept = old.vectors.copy()
    embed(embedded, [stable_hash("new")], unit_rows(1, seed=5))
    new = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    assert (len(old), len(new)) == (200, 201)
    np.testing.assert_array_equal(old.vectors, kept)


def test_products_belong_to_the_vectors_that_were_opened_with_them(embedded: Lake, tmp_path: Path) -> None:
    before = write_snapshot(embedded, SPACE, tmp_path / "s")
    list_products(embedded, [("new", IDS[7], 9, False)])
    after = write_snapshot(embedded, SPACE, tmp_path / "s")
    assert before.products.keys() == after.products.keys() - {"new"} == {"a", "b"}


def test_a_snapshot_that_is_replaced_all_the_time_is_opened_whole_every_time(embedded: Lake, tmp_path: Path) -> None:
    embed(embedded, [stable_hash(f"new {number}") for number in range(50)], unit_rows(50, seed=2))
    sizes = {version: len(write_snapshot(embedded, SPACE, tmp_path / "s", version=version)) for version in (3, 5)}
    assert set(sizes.values()) == {200, 250}

    def replace() -> None:
        for number in range(60):
            write_snapshot(embedded, SPACE, tmp_path / "s", version=(3, 5)[number % 2])

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(replace) for _ in range(2)]
        seen = []
        while not all(writer.done() for writer in writers):
            found = Snapshot.open(tmp_path / "s")
            seen.append((found.versions["embeddings"], len(found), found.rows_of(pa.array(IDS)).min()))
        for writer in writers:
            writer.result()
    assert set(seen) == {(3, 200, 0), (5, 250, 0)}
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["s"]


def test_an_older_version_can_be_asked_for(embedded: Lake, tmp_path: Path) -> None:
    assert len(write_snapshot(embedded, SPACE, tmp_path / "snapshot", version=0)) == 100


def test_two_spaces_never_meet(embedded: Lake, tmp_path: Path) -> None:
    register(embedded, OTHER, "second")
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    assert len(write_snapshot(embedded, OTHER, tmp_path / "other")) == 10
    with pytest.raises(SpaceMismatch, match=f"(?s){SPACE}.*{OTHER}"):
        write_snapshot(embedded, OTHER, tmp_path / "snapshot")
    with pytest.raises(SpaceMismatch, match=f"(?s){OTHER}.*{SPACE}"):
        snapshot.require_space(OTHER, "a model")
    snapshot.require_space(SPACE, "a model")


def test_a_space_without_vectors_or_not_registered_is_named(embedded: Lake, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=OTHER):
        write_snapshot(embedded, OTHER, tmp_path / "snapshot")
    register(embedded, stable_hash("empty"), "empty")
    with pytest.raises(NotFound, match="no vector"):
        write_snapshot(embedded, stable_hash("empty"), tmp_path / "snapshot")
    with pytest.raises(NotFound, match="no snapshot"):
        Snapshot.open(tmp_path / "snapshot")
    assert not list(tmp_path.glob(".snapshot*"))


@pytest.mark.parametrize(
    ("vector", "message"),
    [([0.1] * DIMENSION, "not rounded to float16"), ([0.5] * 3, "length 3"), ([float("nan")] * DIMENSION, "rounded")],
)
def test_a_vector_that_does_not_fit_its_space_is_refused(
    embedded: Lake, tmp_path: Path, vector: list[float], message: str
) -> None:
    bad = stable_hash("bad")
    embed(embedded, [bad], np.array([vector], np.float64))
    with pytest.raises(ContractError, match=f"{bad}.*{message}"):
        write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()


def test_a_content_with_two_vectors_is_refused(embedded: Lake, tmp_path: Path) -> None:
    embed(embedded, [IDS[0]], unit_rows(1))
    with pytest.raises(ContractError, match=IDS[0]):
        write_snapshot(embedded, SPACE, tmp_path / "snapshot")


def test_damaged_files_are_found(embedded: Lake, tmp_path: Path) -> None:
    file = tmp_path / "snapshot" / "vectors.arrow"
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    whole = file.read_bytes()
    file.write_bytes(whole[:2000] + b"x" + whole[2001:])
    with pytest.raises(InputError, match=r"vectors\.arrow"):
        snapshot.verify()
    file.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=f"{len(whole)} bytes, found {len(whole) - 10}"):
        Snapshot.open(tmp_path / "snapshot")


def test_shuffling_deals_the_same_vectors_to_other_contents(embedded: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    asked = pa.array([*IDS, None])
    dealt, true = snapshot.shuffled(1).rows_of(asked), snapshot.rows_of(asked)
    assert sorted(dealt) == sorted(true)
    assert (dealt[:-1] != true[:-1]).all()
    np.testing.assert_array_equal(dealt, snapshot.shuffled(1).rows_of(asked))
    assert np.mean(dealt[:-1] == snapshot.shuffled(2).rows_of(asked)[:-1]) < 0.1


def test_random_vectors_are_of_unit_norm_and_of_every_direction(embedded: Lake, tmp_path: Path) -> None:
    control = write_snapshot(embedded, SPACE, tmp_path / "snapshot").random(1)
    vectors = control.vectors.astype(np.float64)
    assert control.vectors.shape == (200, DIMENSION)
    assert control.vectors.dtype == np.float16
    assert not control.vectors.flags.writeable
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(vectors.T @ vectors / 200, np.eye(DIMENSION) / DIMENSION, atol=5 / DIMENSION / 200**0.5)
    assert np.abs(vectors.mean(0)).max() < 5 / (200 * DIMENSION) ** 0.5


def test_controls_hold_still_as_the_lake_grows(embedded: Lake, tmp_path: Path) -> None:
    asked = pa.array(IDS)

    def vectors(snapshot: Snapshot) -> np.ndarray:
        found: np.ndarray = snapshot.vectors[snapshot.rows_of(asked)]
        return found

    old = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    before = [vectors(old.random(1)), vectors(old.shuffled(1))]
    embed(embedded, [stable_hash(f"new {number}") for number in range(10)], unit_rows(10, seed=5))
    new = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    np.testing.assert_array_equal(vectors(new.random(1)), before[0])
    moved = (vectors(new.shuffled(1)) != before[1]).any(axis=1).sum()
    assert 0 < moved <= 10


def test_a_control_has_a_space_and_a_label_of_its_own(embedded: Lake, tmp_path: Path) -> None:
    snapshot = write_snapshot(embedded, SPACE, tmp_path / "snapshot")
    controls = [Control("shuffled", 1), Control("shuffled", 2), Control("random", 1)]
    found = [snapshot.under(one) for one in controls]
    assert len({SPACE, *(one.space_id for one in found)}) == 4
    assert {one.true_space_id for one in found} == {SPACE}
    assert found[2].labels == ("control: random with seed 1",)
    assert snapshot.under(None) is snapshot
    assert snapshot.labels == ()
    with pytest.raises(SpaceMismatch, match="control: random with seed 1"):
        found[2].require_space(SPACE, "a model")
    with pytest.raises(InputError, match="control already"):
        found[2].shuffled(1)


def test_vectors_that_are_no_encoders_are_written_with_their_label(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(200)
    shuffled = [IDS[number] for number in order]
    written = write_vectors(
        tmp_path / "truth", shuffled, unit_rows(200)[order].astype(np.float32), space_id=SPACE, labels=["ceiling"]
    )
    np.testing.assert_array_equal(written.vectors[written.rows_of(pa.array(IDS))], unit_rows(200))
    assert (written.labels, written.space_id, written.trained_until) == (("ceiling",), SPACE, None)
    assert (written.versions, written.products) == ({}, {})
    assert written.shuffled(1).labels == ("ceiling", "control: shuffled with seed 1")
    written.verify()
    fewer = write_vectors(tmp_path / "truth", IDS[:3], unit_rows(3), space_id=SPACE, labels=["ceiling"])
    assert (len(fewer), len(written)) == (3, 200)


@pytest.mark.parametrize(
    ("ids", "labels", "error", "message"),
    [
        (IDS[:3], [], InputError, "0 labels"),
        (IDS[:2], ["x"], InputError, "2 ids"),
        ([*IDS[:2], IDS[0]], ["x"], ContractError, "two vectors"),
        ([*IDS[:2], "short"], ["x"], ContractError, "32 hexadecimal"),
    ],
)
def test_vectors_without_a_label_or_an_id_each_are_refused(
    tmp_path: Path, ids: list[str], labels: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_vectors(tmp_path / "truth", ids, unit_rows(3), space_id=SPACE, labels=labels)
    assert not (tmp_path / "truth").exists()
