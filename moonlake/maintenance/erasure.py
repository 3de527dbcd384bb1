"""The rows of the lake that name a product or a user, and all that goes with them, by the table contracts.

A column says by its name what its ids are of (`kind_of`). A row goes when a single id in it goes; of a list of ids the
entry goes, with the entries beside it where lists of the row are parallel (shape "[L]").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.contract import Column, Table
from moonlake.schema.tables import PAIR_TYPES, TABLES

Subject = Literal["product", "user"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)

Names = Mapping[str, frozenset[str]]
"""Ids that go, by kind of id."""

KINDS = {
    "content_id": "content",
    "product_id": "product",
    "user_id": "user",
    "impression_id": "impression",
    "behavior_id": "behavior",
    "query_id": "query",
    "image_id": "image",
    "event_id": "event",
    "pair_id": "pair",
    "positive_spu_id": "unit",
}
"""Kind of id by the end of a column's name."""

OTHER_IDS = (
    "spu_id",
    "merchant_id",
    "request_id",
    "reject_id",
    "space_id",
    "model_id",
    "training_set_id",
    "run_id",
    "check_id",
)
"""Ends of the names of columns whose ids are of no product, no user and nothing that goes with one."""

RECORDS = {"rejects": "value"}
"""Columns that hold whole records of other tables as JSON: a row goes when its record names what goes."""

UNIT_OF_PRODUCT = "product:"
"""How `contrastive_pairs` names the unit of a product without an SPU: by its first product."""


def kind_of(column: str) -> str | None:
    """The kind of the ids in a column, by its name; None where such ids are never erased.

    >>> kind_of("behavior_query_content_ids"), kind_of("merchant_id")
    ('content', None)
    """
    one = column.removesuffix("s")
    return next((kind for end, kind in KINDS.items() if one == end or one.endswith(f"_{end}")), None)


def is_id(column: str) -> bool:
    """True for a column of ids of any kind, also of one that never goes."""
    return kind_of(column) is not None or column.removesuffix("s").endswith(OTHER_IDS)


def single_ids(table: Table, names: Names) -> list[Column]:
    """The columns of a table that hold one id of a kind that goes."""
    return [column for column in table if column.type == "string" and names.get(kind_of(column.name) or "")]


def listed_ids(table: Table, names: Names) -> list[Column]:
    """The columns of a table that hold lists of ids of a kind that goes."""
    return [column for column in table if column.type == "list<string>" and names.get(kind_of(column.name) or "")]


def parallel_lists(table: Table) -> list[str]:
    """The columns of a table whose lists have an element for each of the same things."""
    return [column.name for column in table if column.shape == "[L]"]


def subject_hash(subject: Subject, subject_id: str) -> str:
    """The hash that stands for an erased product or user in `erasures`, in place of its id."""
    return stable_hash(f"{subject}\0{subject_id}")


def names_of(subject: Subject, ids: Iterable[str]) -> dict[str, frozenset[str]]:
    """The names of the products or users alone."""
    ids = frozenset(ids)
    if subject == "user":
        return {"user": ids}
    return {"product": ids, "unit": frozenset(UNIT_OF_PRODUCT + each for each in ids)}


def names_that_go(
    lake: Lake, subject: Subject, ids: Iterable[str], earlier: Names = MappingProxyType({})
) -> dict[str, frozenset[str]]:
    """The ids of everything that goes with products or users, by kind, as the lake holds them now.

    With a product: its impressions and events, and the contents and images that no other product and no query has. With
    a user: their impressions, behaviours and training pairs, and the queries that nobody else's rows name, with the
    contents and images that nothing else has.

    Args: earlier: what a run had found that was killed; what others have got since stays.
    """
    names = names_of(subject, ids)
    key, mine = f"{subject}_id", names[subject]

    def found(kind: str, table: str) -> frozenset[str]:
        return earlier.get(kind, frozenset()) | _ids(lake, table, f"{kind}_id", _among(key, mine))

    names["impression"] = found("impression", "impressions")
    if subject == "product":
        names["event"] = found("event", "product_events")
        return names | _only_of(lake, "products", key, mine, earlier)
    behaviors = found("behavior", "behaviors")
    queries = earlier.get("query", frozenset())
    for table in ("impressions", "behaviors"):
        queries |= _ids(lake, table, "query_id", _among(key, mine))
    names["query"] = queries - _queries_of_others(lake, queries, mine)
    names["behavior"] = behaviors
    names["pair"] = frozenset(
        _pair_id(each, stage, kind) for each in behaviors for stage in (1, 2) for kind in PAIR_TYPES
    )
    return names | _only_of(lake, "queries", "query_id", names["query"], earlier)


def rows_that_name(lake: Lake, table: Table, names: Names) -> int:
    """The number of rows in the table's latest version that name something to erase, in one id or in a list."""
    columns = [*single_ids(table, names), *listed_ids(table, names)]
    if not columns or not lake.exists(table.name):
        return 0
    rows = lake.read(table.name, [column.name for column in columns])
    told = [rows_naming(rows[column.name], names[kind_of(column.name) or ""]) for column in columns]
    found = told[0]
    for each in told[1:]:
        found = pc.or_(found, each)
    return int(pc.sum(found).as_py() or 0)


def rows_naming(column: pa.ChunkedArray | pa.Array, ids: Iterable[str]) -> pa.Array:
    """bool [rows]: which rows of strings, or of lists of strings, hold one of the ids."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    wanted = pa.array(sorted(ids), pa.string())
    if not pa.types.is_list(whole.type):
        return pc.is_in(whole, value_set=wanted)
    rows = pc.list_parent_indices(whole).filter(pc.is_in(pc.list_flatten(whole), value_set=wanted))
    return pc.is_in(pa.array(range(len(whole)), pa.int64()), value_set=rows.cast(pa.int64()))


def _ids(lake: Lake, table: str, column: str, where: pc.Expression) -> frozenset[str]:
    return frozenset(lake.read(table, [column], where=where)[column].drop_null().to_pylist())


def _among(column: str, ids: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(ids), pa.string()))


def _only_of(lake: Lake, table: str, key: str, ids: frozenset[str], earlier: Names) -> dict[str, frozenset[str]]:
    """The contents and images of the rows with these keys that no other product or query has."""
    columns = ("content_id", "image_ids")
    mine = lake.read(table, columns, where=_among(key, ids))
    contents = earlier.get("content", frozenset()) | frozenset(mine["content_id"].to_pylist())
    images = earlier.get("image", frozenset()) | frozenset(pc.list_flatten(mine["image_ids"]).to_pylist())
    for other in ("products", "queries"):
        where = ~_among(key, ids) if other == table else None
        rows = lake.read(other, columns, where=where)
        contents -= frozenset(rows["content_id"].filter(rows_naming(rows["content_id"], contents)).to_pylist())
        listed = pc.list_flatten(rows["image_ids"])
        images -= frozenset(listed.filter(rows_naming(listed, images)).to_pylist())
    return {"content": contents, "image": images}


def _queries_of_others(lake: Lake, queries: frozenset[str], users: frozenset[str]) -> frozenset[str]:
    """The queries that also stand in a row of another user, or in a row without a user."""
    found: frozenset[str] = frozenset()
    for table in TABLES.values():
        if table.name == "queries" or not lake.exists(table.name):
            continue
        for column in table:
            if kind_of(column.name) == "query" and column.type == "string":
                where = _among(column.name, queries)
                if "user_id" in table.names:
                    where = where & ~_among("user_id", users)
                found |= _ids(lake, table.name, column.name, where)
    return found


def _pair_id(behavior_id: str, stage: int, pair_type: str) -> str:
    """The id that `build_contrastive_pairs` gives a pair: MD5, which Spark has too, where no Python runs by the row."""
    return hashlib.md5(f"{behavior_id}\0{stage}\0{pair_type}".encode(), usedforsecurity=False).hexdigest()


def subject_of(text: str) -> Subject:
    """The subject of an erasure, by its name. Raises NotFound for anything but a product or a user."""
    for subject in SUBJECTS:
        if subject == text:
            return subject
    raise NotFound(f"{text!r} cannot be erased: a product or a user can")
