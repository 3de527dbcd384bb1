"""Conditions on rows as Arrow expressions: what a source states, and what label rows rule out beforehand."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from moonlake.errors import InputError
from moonlake.feast_delta.joins.plan import ViewJoin

PUSHED_DOWN_KEYS = 1_000
"""A key column helps to leave files unread when label rows hold at most this many distinct values of it."""


def row_filter(join: ViewJoin) -> ds.Expression:
    """The source's `where` as an Arrow expression."""
    where = ds.scalar(True)
    for column, operator, value in join.source.where:
        where = where & _condition(join, column, operator, value)
    return where


def key_filter(labels: pa.Table, join: ViewJoin) -> ds.Expression:
    """The keys that label rows have, where they are few; it may leave rows in that no label row asks for."""
    where = ds.scalar(True)
    for label, column in join.keys:
        distinct = pc.unique(labels[label]).drop_null()
        if len(distinct) <= PUSHED_DOWN_KEYS and distinct.type == join.snapshot.dataset.schema.field(column).type:
            where = where & ds.field(column).isin(distinct)
    return where


def instant(microseconds: int) -> pa.Scalar:
    """A moment, in microseconds since 1970 UTC, as conditions on times compare it."""
    return pa.scalar(microseconds, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _condition(join: ViewJoin, column: str, operator: str, value: Any) -> ds.Expression:
    wanted = join.snapshot.dataset.schema.field(column).type
    try:
        if operator in ("in", "not in"):
            among = ds.field(column).isin(pa.array([_literal(each, wanted) for each in value], wanted))
            return among if operator == "in" else ~among & ds.field(column).is_valid()
        literal = pa.scalar(_literal(value, wanted), wanted)
    except (TypeError, ValueError) as error:  # Arrow's own errors are among them
        raise InputError(
            f"source {join.source.name}: `where` compares {column} ({wanted}) with {value!r}: {error}"
        ) from None
    field = ds.field(column)
    compared: dict[str, ds.Expression] = {
        "==": field == literal,
        "!=": field != literal,
        "<": field < literal,
        "<=": field <= literal,
        ">": field > literal,
        ">=": field >= literal,
    }
    return compared[operator]


def _literal(value: Any, wanted: pa.DataType) -> Any:
    return datetime.fromisoformat(value) if pa.types.is_timestamp(wanted) and isinstance(value, str) else value
