"""Columns are compared as a loop over Python values compares them."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlake.lake.column_diff import unequal

NAN = float("nan")
scalars = st.one_of(st.none(), st.sampled_from(["", "a", "b"]))
floats = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-9, NAN, math.inf, -math.inf]))
KINDS = {
    "strings": (pa.string(), scalars),
    "floats": (pa.float64(), floats),
    "lists": (pa.list_(pa.string()), st.one_of(st.none(), st.lists(scalars, max_size=3))),
    "lists of lists": (
        pa.list_(pa.list_(pa.float64())),
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.lists(floats, max_size=2)), max_size=2)),
    ),
    "structs": (pa.struct({"a": pa.string()}), st.one_of(st.none(), st.fixed_dictionaries({"a": scalars}))),
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_differ_where_a_loop_says_so(kind: str, data: st.DataObject) -> None:
    of, values = KINDS[kind]
    left = data.draw(st.lists(values, max_size=8))
    right = data.draw(st.lists(values, min_size=len(left), max_size=len(left)))
    expected = [not same(*pair) for pair in zip(left, right, strict=True)]
    columns = [pa.chunked_array([pa.array(side[:3], of), pa.array(side[3:], of)]) for side in (left, right)]
    assert unequal(*columns).tolist() == expected


def test_numbers_within_a_share_of_each_other_are_the_same_also_within_lists() -> None:
    left, right = pa.array([1e6, 1e6, -1.0, 0.0]), pa.array([1e6 + 0.5, 1e6 + 2, -1.0000001, 1e-300])
    assert unequal(left, right, 1e-6).tolist() == [False, True, False, True]
    assert unequal(left, right).tolist() == [True] * 4
    lists = pa.array([[1.0, 2.0], [1.0]]), pa.array([[1.0, 2.0 + 1e-9], [1.1]])
    assert unequal(*lists, 1e-6).tolist() == [False, True]
