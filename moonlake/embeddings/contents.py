"""Contents: exactly what an encoder reads of a product or a query, and the id of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.tables import PROMPT_ATTRIBUTES

CONTENT_UNREADABLE = "content_unreadable"
"""The rule that a content breaks which has no text, and no image that can be decoded."""


@dataclass(frozen=True, slots=True)
class Content:
    """One thing to embed.

    Attributes:
        content_id: hash of the other two.
        text: title and prompt attributes of a product, or the text of a query; None when there is none.
        image_ids: images in order; none to many.
    """

    content_id: str
    text: str | None
    image_ids: tuple[str, ...]


def prompt_text(title: str | None, attributes: Mapping[str, str]) -> str | None:
    """The text of a product as the encoder reads it: the title, then the prompt attributes that it has.

    >>> prompt_text("Oak chair", {"material": "oak", "height": "90"})
    'Oak chair, oak'
    """
    parts = [title, *(attributes.get(name) for name in PROMPT_ATTRIBUTES)]
    return ", ".join(part for part in parts if part) or None


def content_of(text: str | None, image_ids: Sequence[str]) -> Content:
    """The content of a text and images, with its id: the same inputs always have the same id, in any process.

    >>> content_of("red shoe", []).content_id == content_of("red shoe", ()).content_id
    True
    >>> content_of(None, ["a", "b"]).content_id == content_of(None, ["b", "a"]).content_id
    False
    """
    exact = json.dumps([text or None, list(image_ids)], ensure_ascii=True, separators=(",", ":"))
    return Content(stable_hash(exact), text or None, tuple(image_ids))


def read_contents(lake: Lake, content_ids: Iterable[str] | None = None) -> dict[str, Content]:
    """The contents of products and queries by id: all of the lake, or those asked for.

    Raises: NotFound: a content_id that no product and no query has.
    """
    wanted = None if content_ids is None else set(content_ids)
    found: dict[str, Content] = {}
    products = lake.read("products", ["content_id", "title", "attributes", "image_ids"], where=_among(wanted))
    for row in products.to_pylist():
        text = prompt_text(row["title"], dict(row["attributes"]))
        found.setdefault(row["content_id"], Content(row["content_id"], text, tuple(row["image_ids"])))
    for row in lake.read("queries", ["content_id", "text", "image_ids"], where=_among(wanted)).to_pylist():
        found.setdefault(row["content_id"], Content(row["content_id"], row["text"], tuple(row["image_ids"])))
    if wanted is not None and (missing := wanted - found.keys()):
        raise NotFound(f"{len(missing)} content ids stand in no product or query, such as {min(missing)}")
    return found


def read_images(lake: Lake, image_ids: Iterable[str]) -> dict[str, bytes]:
    """The files of images by id, those that the lake has."""
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    rows = lake.read("product_images", ["image_id", "image_bytes"], where=pc.field("image_id").isin(wanted))
    return dict(zip(rows["image_id"].to_pylist(), rows["image_bytes"].to_pylist(), strict=True))


def unreadable_contents(lake: Lake, space_id: str) -> list[str]:
    """The ids of the contents that were refused in a space as unreadable."""
    refused = (pc.field("table") == "embeddings") & (pc.field("rule") == CONTENT_UNREADABLE)
    values = [json.loads(value) for value in lake.read("rejects", ["value"], where=refused)["value"].to_pylist()]
    return [one["content_id"] for one in values if one.get("space_id") == space_id]


def live_states(lake: Lake, at: datetime, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The state just before `at` of each product that is on sale then, by product_id in order: that and `columns`."""
    names = dict.fromkeys(["product_id", *columns, "deleted", "event_timestamp", "created_at"])
    rows = lake.read("products", list(names), where=pc.field("event_timestamp") < at)
    rows = rows.sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    state = {row["product_id"]: row for row in rows.to_pylist()}
    return [row for _, row in sorted(state.items()) if not row["deleted"]]


def _among(content_ids: set[str] | None) -> pc.Expression | None:
    return None if content_ids is None else pc.field("content_id").isin(pa.array(sorted(content_ids), pa.string()))
