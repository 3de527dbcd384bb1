"""Sources survive Feast's registry, differ when they read differently, and say what is wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast.data_source import DataSource
from feast.saved_dataset import SavedDatasetStorage

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource, SavedDatasetDeltaStorage
from moonlake.schema.tables import PRODUCTS

SOURCES: list[DeltaSource] = [
    DeltaSource(name="a", table="products"),
    DeltaSource(
        name="b",
        path="/data/t",
        version=3,
        lag=timedelta(seconds=1, microseconds=5),
        timestamp_field="at",
        created_timestamp_column="",
        field_mapping={"x": "y"},
        description="d",
        tags={"k": "v"},
        owner="o",
    ),
    BehaviorSequenceSource(name="c", length=7, month_column=None, field_mapping={"actions": "behavior_actions"}),
    BehaviorSequenceSource(name="d", path="/data/packed", time_column="at_us"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_comes_back_from_the_registry_as_it_was(source: DeltaSource) -> None:
    restored = DataSource.from_proto(source.to_proto())
    assert type(restored) is type(source)
    assert restored == source
    assert restored.configuration() == source.configuration()


CHANGES: list[dict[str, Any]] = [
    {"table": "users"},
    {"version": 1},
    {"lag": timedelta(seconds=1)},
    {"field_mapping": {"title": "t"}},
    {"created_timestamp_column": ""},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_sources_that_read_differently_are_not_equal(change: dict[str, Any]) -> None:
    assert DeltaSource(**{"name": "a", "table": "products"} | change) != DeltaSource(name="a", table="products")


def test_a_sequence_source_is_not_equal_to_a_plain_one_nor_to_another_length() -> None:
    sequences = BehaviorSequenceSource(name="a")
    assert sequences != DeltaSource(name="a", table="behavior_sequences", created_timestamp_column="")
    assert sequences != BehaviorSequenceSource(name="a", length=51)


def test_a_source_names_a_table_or_a_path_and_a_table_that_exists() -> None:
    both: list[dict[str, Any]] = [{}, {"table": "products", "path": "/data/t"}]
    for places in both:
        with pytest.raises(InputError, match="source s: state either a table of the lake or a path"):
            DeltaSource(name="s", **places)
    with pytest.raises(NotFound, match="no table prodcuts"):
        DeltaSource(name="s", table="prodcuts")


def test_a_sequence_of_no_actions_is_refused() -> None:
    with pytest.raises(InputError, match="must be 1 or more, found 0"):
        BehaviorSequenceSource(name="s", length=0)


def test_column_types_come_from_the_contract_or_from_the_table(tmp_path: Path) -> None:
    lake_columns = DeltaSource(name="a", table="products").get_table_column_names_and_types(None)  # type: ignore[arg-type]
    assert dict(lake_columns) == {column.name: column.type for column in PRODUCTS}
    path = str(tmp_path / "t")
    write_deltalake(path, pa.table({"k": ["a"], "v": pa.array([[1.0]], pa.list_(pa.float32()))}))
    assert dict(DeltaSource(name="b", path=path).get_table_column_names_and_types(None)) == {  # type: ignore[arg-type]
        "k": "string",
        "v": "list<float32>",
    }


def test_validation_names_the_columns_that_are_not_there() -> None:
    source = DeltaSource(name="a", table="products", timestamp_field="at", field_mapping={"colour": "c"})
    with pytest.raises(NotFound, match=r"source a: products has no columns \['at', 'colour'\]; it has product_id"):
        source.validate(None)  # type: ignore[arg-type]


def test_a_saved_dataset_is_restored_as_a_delta_table() -> None:
    restored = SavedDatasetStorage.from_proto(SavedDatasetDeltaStorage("/data/saved").to_proto())
    assert isinstance(restored, SavedDatasetDeltaStorage)
    source = restored.to_data_source()
    assert isinstance(source, DeltaSource)
    assert source.path == "/data/saved"


def test_a_saved_dataset_takes_the_place_of_a_source_with_a_path() -> None:
    stored = SavedDatasetStorage.from_data_source(DeltaSource(name="a", path="/data/saved"))
    assert isinstance(stored, SavedDatasetDeltaStorage)
    assert stored.path == "/data/saved"
    with pytest.raises(InputError, match="source b: a saved dataset needs a Delta source with a path"):
        SavedDatasetStorage.from_data_source(DeltaSource(name="b", table="products"))
