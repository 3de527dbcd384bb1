"""Rows as arrays and batches as tensors, against rows read one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.ctr.features import FIRST_ID, GAP_BUCKETS, PADDING, UNKNOWN, EncodedRows, FeatureEncoder, column_reader
from models.ctr.id_hashing import hashed_rows
from moonlake.errors import ContractError, SchemaMismatch
from moonlake.schema.tables import ACTIONS

ID_FEATURES, DENSE_FEATURES = ("user_id", "product_id"), ("price_cents", "product_ctr_7d")


@pytest.fixture(scope="module")
def rows(world: Any) -> pa.Table:
    """Three hundred rows of the world, one of them without any feature."""
    rows = world.training_set.read().slice(0, 300)
    empty = {name: None for name in rows.column_names if name.startswith(("behavior", "price", "product_ctr"))}
    bare = {**rows.slice(7, 1).to_pylist()[0], **empty, "content_id": None}
    return pa.concat_tables([rows, pa.Table.from_pylist([bare], schema=rows.schema)])


@pytest.fixture(scope="module")
def encoder(rows: pa.Table) -> FeatureEncoder:
    fitted = np.arange(len(rows)) < 200
    return FeatureEncoder.fit(column_reader(rows.select), fitted, ID_FEATURES, DENSE_FEATURES, min_count=2)


@pytest.fixture(scope="module")
def encoded(rows: pa.Table, encoder: FeatureEncoder, world: Any) -> EncodedRows:
    return encoder.encode(column_reader(rows.select), world.snapshot)


def test_vocabularies_hold_the_ids_seen_often_enough_in_fitted_rows(rows: pa.Table, encoder: FeatureEncoder) -> None:
    head = rows.slice(0, 200).to_pylist()
    users = [row["user_id"] for row in head]
    assert encoder.vocabularies["user_id"].to_pylist() == sorted({one for one in users if users.count(one) >= 2})
    products = [one for row in head for one in (row["product_id"], *row["behavior_product_ids"]) if one]
    known = sorted({one for one in products if products.count(one) >= 2})
    assert encoder.vocabularies["product_id"].to_pylist() == known
    assert encoder.sizes == (FIRST_ID + len(encoder.vocabularies["user_id"]), FIRST_ID + len(known))


def test_a_hashed_id_has_the_number_of_its_row_and_is_unknown_where_training_saw_too_few(
    rows: pa.Table, encoder: FeatureEncoder, world: Any
) -> None:
    """In so many rows no two ids of these share one, so that the same ids are known as with a vocabulary."""
    sizes = {"user_id": 2_000_003, "product_id": 9_999_991}
    fitted, read = np.arange(len(rows)) < 200, column_reader(rows.select)
    hashed = FeatureEncoder.fit(read, fitted, ID_FEATURES, DENSE_FEATURES, min_count=2, hashed=sizes)
    assert hashed.vocabularies == {}
    assert hashed.sizes == (FIRST_ID + 2_000_003, FIRST_ID + 9_999_991)
    found, expected = hashed.encode(read, world.snapshot), encoder.encode(read, world.snapshot)
    for place, name in enumerate(ID_FEATURES):
        known = expected.ids[:, place] != UNKNOWN
        assert 0 < known.mean() < 1
        numbers = np.where(known, FIRST_ID + hashed_rows(rows[name], sizes[name]), UNKNOWN)
        np.testing.assert_array_equal(found.ids[:, place], numbers)
    same = rows["behavior_product_ids"].combine_chunks().flatten()
    known = expected.behavior_ids[:-1] > UNKNOWN
    numbers = np.where(known, FIRST_ID + hashed_rows(same, sizes["product_id"]), expected.behavior_ids[:-1])
    np.testing.assert_array_equal(found.behavior_ids[:-1], numbers)


def test_a_new_id_in_a_row_that_training_saw_has_what_was_learnt_there(rows: pa.Table, world: Any) -> None:
    read = column_reader(rows.select)
    sizes = {"user_id": 3}  # three rows for hundreds of users: every one of them is taken
    crowded = FeatureEncoder.fit(read, np.arange(len(rows)) < 200, ID_FEATURES, (), min_count=2, hashed=sizes)
    users = pa.array([None if n == 0 else f"new {n}" for n in range(len(rows))])
    new = rows.set_column(rows.column_names.index("user_id"), "user_id", users)
    found = crowded.encode(column_reader(new.select), None).ids[:, 0]
    assert found[0] == UNKNOWN
    np.testing.assert_array_equal(found[1:], FIRST_ID + hashed_rows(users[1:], 3))


@pytest.mark.parametrize("length", [1, 3, 50])
def test_batches_hold_what_the_rows_say(
    rows: pa.Table, encoder: FeatureEncoder, encoded: EncodedRows, world: Any, length: int
) -> None:
    chosen = np.array([3, 300, 250, 11, 3])
    batch = encoded.batch(chosen, length, world.snapshot.vectors)
    assert batch.content is not None
    numbers = {name: {one: FIRST_ID + k for k, one in enumerate(encoder.vocabularies[name].to_pylist())}
               for name in ID_FEATURES}  # fmt: skip
    for b, row in enumerate(rows.take(pa.array(chosen)).to_pylist()):
        assert batch.ids[b].tolist() == [numbers[name].get(row[name], UNKNOWN) for name in ID_FEATURES]
        behaviors = list(
            zip(
                row["behavior_product_ids"] or [], row["behavior_actions"] or [], row["behavior_content_ids"] or [],
                row["behavior_query_content_ids"] or [], row["behavior_times_us"] or [], strict=True,
            )
        )[-length:]  # fmt: skip
        free = length - len(behaviors)
        assert batch.behavior_ids[b, :free].tolist() == [PADDING] * free
        assert not batch.content.behaviors_known[b, :free].any()
        for place, (product, action, item, asked, time) in enumerate(behaviors, free):
            wanted = PADDING if not product else numbers["product_id"].get(product, UNKNOWN)
            assert batch.behavior_ids[b, place] == wanted
            seconds = row["event_timestamp"].timestamp() - time / 1e6
            same = (product == row["product_id"]) * (1 + len(ACTIONS))
            context = (same + 1 + ACTIONS.index(action)) * GAP_BUCKETS + int(math.log2(1 + seconds))
            assert batch.behavior_contexts[b, place] == context
            assert batch.content.searched[b, place] == (action == "search")
            content = asked if action == "search" else item
            assert batch.content.behaviors_known[b, place] == bool(content)
            if content:
                vector = world.snapshot.vectors[world.snapshot.rows_of(pa.array([content]))[0]]
                np.testing.assert_array_equal(batch.content.behaviors[b, place], vector.astype(np.float32))
        assert batch.content.target_known[b] == (row["content_id"] is not None)


def test_a_search_for_the_nearest_keeps_the_same_behaviors_of_ids_and_of_vectors(
    encoded: EncodedRows, world: Any
) -> None:
    chosen, length, nearest = np.array([250, 11, 3, 300]), 8, 3
    whole = encoded.batch(chosen, length, world.snapshot.vectors)
    few = encoded.batch(chosen, length, world.snapshot.vectors, nearest)
    assert few.content is not None
    assert whole.content is not None
    assert few.content.kept is not None
    assert few.behavior_ids.shape == (4, nearest)
    for name in ("behavior_ids", "behavior_contexts"):
        np.testing.assert_array_equal(getattr(few, name), getattr(whole, name).gather(1, few.content.kept))
    np.testing.assert_allclose(few.content.cosines, whole.content.cosines.gather(1, few.content.kept), atol=1e-6)
    for shown, summed in zip(few.content.items, whole.content.items, strict=True):
        np.testing.assert_allclose(shown, summed, atol=1e-6)


def test_dense_features_are_standardised_and_say_when_they_are_null(rows: pa.Table, encoded: EncodedRows) -> None:
    prices = np.log1p(np.array(rows["price_cents"].to_pylist()[:200], np.float64))
    expected = (prices - prices.mean()) / prices.std()
    np.testing.assert_allclose(encoded.dense[:200, 0], expected, atol=1e-4)
    assert np.abs(encoded.dense[:300, 1]).max() < 1e-6  # the same for all: centred, and not blown up by rounding
    assert encoded.dense[300].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert encoded.dense[0, 2:].tolist() == [1.0, 1.0]


def test_no_vector_is_touched_without_a_snapshot(rows: pa.Table, encoder: FeatureEncoder) -> None:
    without = rows.drop_columns(
        ["content_id", "query_content_id", "behavior_content_ids", "behavior_query_content_ids"]
    )
    encoded = encoder.encode(column_reader(without.select), None)
    assert encoded.batch(np.arange(3), 4, None).content is None


@pytest.mark.parametrize("hashed", [{}, {"user_id": 101}, {"user_id": 1001, "product_id": 77}])
def test_saved_encoders_encode_alike(rows: pa.Table, world: Any, tmp_path: Path, hashed: dict[str, int]) -> None:
    read = column_reader(rows.select)
    fitted = np.arange(len(rows)) < 200
    encoder = FeatureEncoder.fit(read, fitted, ID_FEATURES, DENSE_FEATURES, min_count=3, hashed=hashed)
    encoder.save(tmp_path)
    opened = FeatureEncoder.open(tmp_path)
    assert opened.sizes == encoder.sizes
    again = opened.encode(read, world.snapshot)
    for name, array in vars(encoder.encode(read, world.snapshot)).items():
        np.testing.assert_array_equal(array, getattr(again, name))
    assert (tmp_path / "hashed.safetensors").exists() == bool(hashed)


def test_columns_that_are_missing_or_of_another_type_are_named(rows: pa.Table, encoder: FeatureEncoder) -> None:
    with pytest.raises(SchemaMismatch, match="price_cents"):
        encoder.encode(column_reader(rows.drop_columns(["price_cents"]).select), None)
    text = rows.set_column(rows.column_names.index("price_cents"), "price_cents", rows["user_id"])
    with pytest.raises(SchemaMismatch, match=r"price_cents.*string"):
        encoder.encode(column_reader(text.select), None)


def test_lists_that_are_not_parallel_are_refused(rows: pa.Table, encoder: FeatureEncoder) -> None:
    place = rows.column_names.index("behavior_actions")
    short = rows.set_column(place, "behavior_actions", pa.array([["click"]] * len(rows)))
    with pytest.raises(ContractError, match="behavior_actions"):
        encoder.encode(column_reader(short.select), None)


def test_a_null_in_a_list_is_the_empty_string_that_feast_makes_of_it(
    rows: pa.Table, encoder: FeatureEncoder, encoded: EncodedRows, world: Any
) -> None:
    nulls = rows
    for name in ("behavior_product_ids", "behavior_content_ids"):
        lists = [None if one is None else [text or None for text in one] for one in rows[name].to_pylist()]
        nulls = nulls.set_column(rows.column_names.index(name), name, pa.array(lists, pa.list_(pa.string())))
    for name, array in vars(encoder.encode(column_reader(nulls.select), world.snapshot)).items():
        np.testing.assert_array_equal(array, getattr(encoded, name))


def test_rows_without_any_behavior_make_batches(rows: pa.Table, encoder: FeatureEncoder, world: Any) -> None:
    bare = rows.slice(300)
    batch = encoder.encode(column_reader(bare.select), world.snapshot).batch(np.array([0]), 4, world.snapshot.vectors)
    assert batch.behavior_ids.tolist() == [[PADDING] * 4]
