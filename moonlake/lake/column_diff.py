"""A comparison of two columns, row by row: nulls, NaN and nested lists included."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Bools, Float64s


def unequal(left: pa.ChunkedArray | pa.Array, right: pa.ChunkedArray | pa.Array, relative: float = 0.0) -> Bools:
    """bool [n]: true where the two hold another value. Null equals null, NaN equals NaN.

    Args:
        left, right: of the same type and length.
        relative: numbers differ when they are further apart than this share of the greater one.

    >>> unequal(pa.array([1.0, None, 3.0]), pa.array([1.0, None, 4.0])).tolist()
    [False, False, True]
    >>> unequal(pa.array([["a"], ["a", None], []]), pa.array([["a"], ["a", "b"], []])).tolist()
    [False, True, False]
    """
    left, right = _whole(left), _whole(right)
    of = left.type
    there = _flags(left.is_valid())
    differ: Bools = there != _flags(right.is_valid())
    both = there & ~differ
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        differ[both] = _unequal_lists(_chosen(left, both), _chosen(right, both), relative)
    elif pa.types.is_floating(of):
        differ[both] = _unequal_floats(_numbers(left)[both], _numbers(right)[both], relative)
    elif pa.types.is_nested(of):
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        differ |= np.fromiter((one != other for one, other in pairs), bool, len(left))
    else:
        differ |= _flags(pc.fill_null(pc.not_equal(left, right), False))
    return differ


def _unequal_lists(left: pa.Array, right: pa.Array, relative: float) -> Bools:
    """Lists differ in length or in an element; elements are compared where lengths agree."""
    lengths = _numbers(pc.list_value_length(left)).astype(np.int64)
    differ: Bools = lengths != _numbers(pc.list_value_length(right))
    same = ~differ
    elements = unequal(pc.list_flatten(_chosen(left, same)), pc.list_flatten(_chosen(right, same)), relative)
    if not elements.any():
        return differ
    rows = np.repeat(np.flatnonzero(~differ), lengths[~differ])
    differ[rows[elements]] = True
    return differ


def _chosen(values: pa.Array, rows: Bools) -> pa.Array:
    """The chosen rows; lists are not copied where all are."""
    return values if rows.all() else values.filter(pa.array(rows))


def _unequal_floats(left: Float64s, right: Float64s, relative: float) -> Bools:
    with np.errstate(invalid="ignore"):  # infinities have no distance
        near = np.abs(left - right) <= relative * np.maximum(np.abs(left), np.abs(right))
    same: Bools = (left == right) | (np.isnan(left) & np.isnan(right)) | near
    return ~same


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flags(values: pa.Array) -> Bools:
    found: Bools = values.to_numpy(zero_copy_only=False).astype(bool)
    return found


def _numbers(values: pa.Array) -> Float64s:
    found: Float64s = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return found
