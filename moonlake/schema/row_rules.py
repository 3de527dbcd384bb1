"""Quality rules derived from the contracts: for Spark, for Arrow and for Great Expectations.

Every bound of a column is a named row rule (`price_cents_below_minimum`); a row that breaks one goes to `rejects`
under the first rule that it breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.schema.contract import Column, Table

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite

Kind = Literal["missing", "not_finite", "below_minimum", "above_maximum", "not_allowed", "wrong_form", "short", "long"]

CONFLICTING_KEY = "conflicting_key"
"""The rule that a row breaks when its batch holds another one with the same key and other facts."""


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """One bound of one column."""

    column: Column
    kind: Kind

    @property
    def name(self) -> str:
        """The rule as it stands in `rejects`."""
        return f"{self.column.name}_{self.kind}"

    @property
    def sql(self) -> str:
        """The bound as Spark SQL: true for a good value; null, which counts as good, for an absent one."""
        name, column = f"`{self.column.name}`", self.column
        match self.kind:
            case "missing":
                return f"{name} IS NOT NULL"
            case "not_finite":
                finite = "NOT isnan({0}) AND abs({0}) < double('Infinity')"
                if column.type.startswith("list"):
                    return f"forall({name}, x -> x IS NOT NULL AND {finite.format('x')})"
                return finite.format(name)
            case "below_minimum":
                return f"{name} >= {column.minimum}"
            case "above_maximum":
                return f"{name} <= {column.maximum}"
            case "not_allowed":
                return f"{name} IN ({', '.join(repr(value) for value in column.values)})"
            case "wrong_form":
                return f"{name} RLIKE '^(?:{column.pattern})$'"
            case "short":
                return f"{_length_sql(column)} >= {column.min_length}"
            case "long":
                return f"{_length_sql(column)} <= {column.max_length}"

    def good(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """bool [N]: which values keep the rule; null for an absent value."""
        column = self.column
        match self.kind:
            case "missing":
                return pc.is_valid(values)
            case "not_finite":
                return _finite(values)
            case "below_minimum":
                return pc.greater_equal(values, column.minimum)
            case "above_maximum":
                return pc.less_equal(values, column.maximum)
            case "not_allowed":
                allowed = pc.is_in(values, value_set=pa.array(column.values))
                return pc.if_else(pc.is_valid(values), allowed, None)
            case "wrong_form":
                return pc.match_substring_regex(values, f"^(?:{column.pattern})$")
            case "short":
                return pc.greater_equal(_lengths(values), column.min_length)
            case "long":
                return pc.less_equal(_lengths(values), column.max_length)


def column_rules(table: Table) -> Iterator[ColumnRule]:
    """The row rules that follow from the columns of a contract, in contract order."""
    for column in table:
        bounds: dict[Kind, bool] = {
            "missing": not column.nullable,
            "not_finite": "float" in column.type,
            "below_minimum": column.minimum is not None,
            "above_maximum": column.maximum is not None,
            "not_allowed": bool(column.values),
            "wrong_form": column.pattern is not None,
            "short": column.min_length is not None,
            "long": column.max_length is not None,
        }
        yield from (ColumnRule(column, kind) for kind, stated in bounds.items() if stated)


def first_broken_rule_sql(table: Table) -> str:
    """One Spark SQL expression: the name of the first rule that a row breaks, null for a good row.

    It reads the facts of the row alone, so that it can be asked before the write stamps `created_at`.
    """
    columns = [(rule.name, rule.sql) for rule in column_rules(table) if rule.column.name in table.facts]
    rules = [*columns, *((rule.name, rule.sql) for rule in table.rules)]
    branches = " ".join(f"WHEN NOT coalesce({sql}, true) THEN '{name}'" for name, sql in rules)
    return f"CASE {branches} END"


def broken_rules(table: Table, rows: pa.Table) -> list[str | None]:
    """For each row the first column rule that it breaks, None for a good row. Rules over several columns need Spark.

    Rows need not be stamped with `created_at` yet.
    """
    found = np.full(len(rows), None, dtype=object)
    for rule in column_rules(table):
        if rule.column.name == "created_at" and "created_at" not in rows.column_names:
            continue
        good = pc.fill_null(rule.good(rows[rule.column.name]), True).to_numpy(zero_copy_only=False).astype(bool)
        found[~good & pc.is_null(pa.array(found, pa.string())).to_numpy(zero_copy_only=False)] = rule.name
    return list(found)


def expectation_suite(table: Table) -> ExpectationSuite:
    """The Great Expectations suite of a contract: one expectation for each column rule, and one for its key."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    expectations = [gxe.ExpectTableColumnsToMatchSet(column_set=list(table.names), exact_match=True)]
    for rule in column_rules(table):
        column, meta = rule.column, {"rule": rule.name, "meaning": rule.column.meaning}
        match rule.kind:
            case "missing":
                found = gxe.ExpectColumnValuesToNotBeNull(column=column.name, meta=meta)
            case "below_minimum":
                found = gxe.ExpectColumnValuesToBeBetween(column=column.name, min_value=column.minimum, meta=meta)
            case "above_maximum":
                found = gxe.ExpectColumnValuesToBeBetween(column=column.name, max_value=column.maximum, meta=meta)
            case "not_allowed":
                found = gxe.ExpectColumnValuesToBeInSet(column=column.name, value_set=list(column.values), meta=meta)
            case "wrong_form":
                regex = f"^(?:{column.pattern})$"
                found = gxe.ExpectColumnValuesToMatchRegex(column=column.name, regex=regex, meta=meta)
            case "short" if column.type == "string":
                length = column.min_length
                found = gxe.ExpectColumnValueLengthsToBeBetween(column=column.name, min_value=length, meta=meta)
            case "long" if column.type == "string":
                length = column.max_length
                found = gxe.ExpectColumnValueLengthsToBeBetween(column=column.name, max_value=length, meta=meta)
            case _:
                continue  # finiteness and lengths of lists are row rules; no expectation of the library reads them
        expectations.append(found)
    identity = [*table.identity, *(["created_at"] if table.writing == "append" else [])]
    if len(identity) == 1:
        expectations.append(gxe.ExpectColumnValuesToBeUnique(column=identity[0]))
    else:
        expectations.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=identity))
    return gx.ExpectationSuite(name=table.name, expectations=expectations)


def _length_sql(column: Column) -> str:
    measure = {"string": "char_length", "binary": "octet_length"}.get(column.type, "cardinality")
    return f"{measure}(`{column.name}`)"


def _lengths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(values.type):
        return pc.utf8_length(values)
    if pa.types.is_binary(values.type):
        return pc.binary_length(values)
    if pa.types.is_map(values.type):
        entry = pa.struct([values.type.key_field, values.type.item_field])
        values = values.cast(pa.list_(entry))
    return pc.list_value_length(values)


def _finite(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_list(values.type):
        return pc.is_finite(values)
    good = np.ones(len(values), dtype=bool)
    bad = pc.invert(pc.fill_null(pc.is_finite(pc.list_flatten(values)), False))
    good[pc.list_parent_indices(values).to_numpy()[bad.to_numpy(zero_copy_only=False)]] = False
    return pa.chunked_array([pa.array(good)])
