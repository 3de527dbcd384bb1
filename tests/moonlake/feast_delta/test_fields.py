"""Feast fields come from the contracts: no type is missing, names follow the field mapping."""

from __future__ import annotations

from typing import get_args

import pyarrow as pa
import pytest
from feast import ValueType
from feast.types import Array, Int64, String

from moonlake.errors import SchemaMismatch
from moonlake.feast_delta.fields import FEAST_TYPES, column_type, feast_fields, value_type
from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.contract import ColumnType
from moonlake.schema.tables import PRODUCTS


def test_every_column_type_of_the_contracts_has_a_feast_type() -> None:
    assert set(FEAST_TYPES) == set(get_args(ColumnType))


@pytest.mark.parametrize("name", get_args(ColumnType))
def test_the_arrow_type_of_a_contract_leads_back_to_its_name(name: ColumnType) -> None:
    assert column_type(ARROW_TYPES[name]) == name
    assert value_type(name) == FEAST_TYPES[name].to_value_type()


@pytest.mark.parametrize(
    ("arrow", "name"),
    [
        (pa.large_string(), "string"),
        (pa.list_(pa.float32(), 8), "list<float32>"),
        (pa.large_list(pa.int64()), "list<int64>"),
        (pa.timestamp("ns"), "timestamp"),
        (pa.int16(), "int32"),
        (pa.date32(), "date32[day]"),
    ],
)
def test_arrow_types_that_no_contract_has_are_named_by_their_meaning(arrow: pa.DataType, name: str) -> None:
    assert column_type(arrow) == name


@pytest.mark.parametrize(
    ("arrow", "of_feast"),
    [
        (pa.struct({"name": pa.string(), "age": pa.int64()}), ValueType.STRUCT),
        (pa.list_(pa.float64()), ValueType.DOUBLE_LIST),
        (pa.list_(pa.bool_()), ValueType.BOOL_LIST),
        (pa.list_(pa.int32()), ValueType.INT32_LIST),
        (pa.list_(pa.binary()), ValueType.BYTES_LIST),
    ],
)
def test_feast_infers_the_types_of_tables_that_are_not_ours(arrow: pa.DataType, of_feast: ValueType) -> None:
    assert value_type(column_type(arrow)) is of_feast


def test_a_type_that_feast_has_no_field_for_is_refused_by_name() -> None:
    with pytest.raises(SchemaMismatch, match=r"date32\[day\]"):
        value_type("date32[day]")


def test_fields_keep_order_take_mapped_names_and_carry_the_contracts_meaning() -> None:
    fields = feast_fields(PRODUCTS, ["price_cents", "category", "image_ids"], {"category": "product_category"})
    assert [(field.name, field.dtype) for field in fields] == [
        ("price_cents", Int64),
        ("product_category", String),
        ("image_ids", Array(String)),
    ]
    assert fields[0].description == PRODUCTS["price_cents"].meaning
    assert fields[0].tags == {"unit": "cents"}


def test_lists_of_timestamps_have_no_silent_type() -> None:
    with pytest.raises(SchemaMismatch, match="list<timestamp>"):
        value_type(column_type(pa.list_(pa.timestamp("us", "UTC"))))
    assert value_type("list<int64>") is ValueType.INT64_LIST
