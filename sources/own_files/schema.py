"""The own-files form: the kinds of rows that any source lays down before ingestion, and their columns.

Types and meanings come from the table contracts; only what differs from them is said here. docs/own_files.md is the
same contract for people, and a test keeps the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from moonlake.schema.arrow import ARROW_TYPES
from moonlake.schema.contract import ColumnType, Table
from moonlake.schema.tables import TABLES


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a kind.

    Attributes:
        default: what an absent column or empty cell means, in words; empty when the column must be there.
    """

    name: str
    type: ColumnType
    meaning: str
    default: str = ""

    @property
    def required(self) -> bool:
        """True when a file without this column is refused."""
        return not self.default


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file that a source has; `table` is where ingestion writes it."""

    name: str
    table: str
    fields: tuple[Field, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The column names, in order."""
        return tuple(entry.name for entry in self.fields)

    def schema(self) -> pa.Schema:
        """The Arrow schema of its staged rows; every column may be null: what null breaks is a row rule."""
        return pa.schema([pa.field(entry.name, ARROW_TYPES[entry.type]) for entry in self.fields])


def _like(table: Table, **defaults: str) -> tuple[Field, ...]:
    """Fields as the contract has them, in the order named; an empty default makes a field required."""
    return tuple(Field(name, table[name].type, table[name].meaning, default) for name, default in defaults.items())


def _image_names(of: str) -> Field:
    meaning = f"names in `images` of the {of}, in order; in a text cell separated by vertical bars, or a JSON list"
    return Field("image_names", "list<string>", meaning, "no images")


ALWAYS = "1970-01-01T00:00:00Z: from the beginning"

PRODUCTS = Kind(
    "products",
    "products",
    (
        *_like(TABLES["products"], product_id="", title="null"),
        _image_names("product"),
        *_like(
            TABLES["products"],
            listed_at=f"event_timestamp; without that {ALWAYS}",
            event_timestamp=f"listed_at; without that {ALWAYS}",
            spu_id="null",
            merchant_id="null",
            category="null",
            brand="null",
            price_cents="null",
            attributes="no attributes",
            deleted="false",
        ),
    ),
)
IMAGES = Kind(
    "images",
    "product_images",
    (
        Field("name", "string", "name of the file, as `image_names` has it; local to the source"),
        *_like(TABLES["product_images"], image_bytes=""),
    ),
)
MERCHANTS = Kind("merchants", "merchants", _like(TABLES["merchants"], merchant_id="", tier="", event_timestamp=ALWAYS))
USERS = Kind("users", "users", _like(TABLES["users"], user_id="", segment="null", event_timestamp=ALWAYS))
QUERIES = Kind(
    "queries",
    "queries",
    (
        *_like(
            TABLES["queries"],
            query_id="",
            modality="text, image or product (both), by what the row has",
            text="null",
        ),
        _image_names("query"),
        *_like(TABLES["queries"], event_timestamp=ALWAYS),
    ),
)
IMPRESSIONS = Kind(
    "impressions",
    "impressions",
    _like(
        TABLES["impressions"],
        impression_id="hash of the row's other cells",
        request_id="hash of user_id, query_id and event_timestamp",
        user_id="",
        query_id="null",
        product_id="",
        position="1",
        propensity="null",
        clicked="",
        event_timestamp="",
        label_time="event_timestamp",
    ),
)
BEHAVIORS = Kind(
    "behaviors",
    "behaviors",
    _like(
        TABLES["behaviors"],
        behavior_id="hash of the row's other cells",
        user_id="",
        action="",
        product_id="null",
        query_id="null",
        event_timestamp="",
    ),
)
JUDGMENTS = Kind(
    "judgments",
    "judgments",
    _like(TABLES["judgments"], query_id="", product_id="", grade="", label="null", event_timestamp=ALWAYS),
)

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (PRODUCTS, IMAGES, MERCHANTS, USERS, QUERIES, IMPRESSIONS, BEHAVIORS, JUDGMENTS)
}

REFUSED_SCHEMA = pa.schema([("kind", pa.string()), ("rule", pa.string()), ("value", pa.string())])
"""Rows of `refused/`: the kind that the record was meant for, the rule that it broke, the record as JSON."""
