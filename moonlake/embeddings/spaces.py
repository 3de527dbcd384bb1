"""Embedding spaces and releases: what makes two vectors comparable, and which space a use runs on.

A space lives through `building` (backfill under way) -> `candidate` (every content has a vector) -> `live` (a release
names it) -> `retired` (no release names it any more; a roll-back makes it live again). A space that was retired before
it was complete is `building` again once a backfill goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from moonlake.errors import ContractError, InputError, NotFound, SpaceMismatch
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.names import require_name
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import EMBEDDING_SPACES

StorageType = Literal["float16", "float32"]

LIVE = "live"
NEXT_STATUSES: Mapping[str, tuple[str, ...]] = {
    "building": ("candidate", "retired"),
    "candidate": ("live", "retired"),
    "live": ("retired",),
    "retired": ("building", "live"),
}


@dataclass(frozen=True, slots=True)
class SpaceDefinition:
    """Everything that makes two vectors comparable.

    Attributes:
        weights: hash of the encoder's weights and architecture.
        tokenizer: hash of its tokenizer.
        preprocessing: what is done to an image before the tower.
        prompt: how text and images stand in the prompt, and what attends to what.
        content_fields: fields of a product that are read.
        storage_type: what vectors are rounded to, once.
    """

    weights: str
    tokenizer: str
    preprocessing: str
    prompt: str
    content_fields: tuple[str, ...]
    pooling: str
    normalisation: str
    storage_type: StorageType
    dimension: int

    @property
    def space_id(self) -> str:
        """Hash of the definition: the same definition has the same id in any process."""
        return stable_hash(self.to_json())

    def to_json(self) -> str:
        """The definition as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SpaceDefinition:
        """The definition that `to_json` wrote. Raises InputError for keys that are missing or unknown."""
        values = json.loads(text)
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            raise InputError(f"space definition: expected keys {sorted(expected)}, found {sorted(values)}")
        return cls(**{**values, "content_fields": tuple(values["content_fields"])})


@dataclass(frozen=True, slots=True)
class Space:
    """One embedding space as it stands now.

    Attributes:
        name: the name under which it was registered first.
        aliases: names that were asked for later, for the same weights; it is found by any of its names.
    """

    space_id: str
    name: str
    status: str
    definition: SpaceDefinition
    artifact: str
    trained_until: datetime | None
    coverage: float
    metrics: Mapping[str, float]
    event_timestamp: datetime
    aliases: tuple[str, ...] = ()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.definition.dimension

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it was ever given, the first one first."""
        return self.name, *self.aliases

    def __repr__(self) -> str:
        return f"<embedding space {self}: {self.dimension} numbers, {self.coverage:.0%} of the contents>"

    def __str__(self) -> str:
        also = f", also called {', '.join(self.aliases)}" if self.aliases else ""
        return f"{self.name} ({self.space_id[:12]}, {self.status}{also})"


def require_same(expected: str, found: str, *, what: str) -> None:
    """Raise SpaceMismatch, which names both and where they met, unless both sides are of one space."""
    if expected != found:
        raise SpaceMismatch(f"{what}: expected embedding space {expected}, found {found}; vectors of two never meet")


def register(
    lake: Lake,
    definition: SpaceDefinition,
    *,
    name: str,
    artifact: str,
    trained_until: datetime | None,
    metrics: Mapping[str, float],
    status: str = "building",
    coverage: float = 0.0,
    written_at: datetime,
) -> Space:
    """The space, entered in the lake; one that stands there already is returned, with the name as one of its names.

    Raises:
        InputError: the name belongs to another space, is no plain name, or is "live".
    """
    if require_name("space", name) == LIVE:
        raise InputError(f"the name {LIVE} stands for the space that CTR ranking runs on: choose another")
    known = {space.space_id: space for space in spaces(lake)}
    for space in known.values():
        if name in space.names and space.space_id != definition.space_id:
            raise InputError(f"the name {name} belongs to the embedding space {space}: choose another")
    if (found := known.get(definition.space_id)) is not None:
        return found if name in found.names else _also_called(lake, found, name, written_at)
    if status not in NEXT_STATUSES:
        raise InputError(f"unknown status {status}; an embedding space is {', '.join(NEXT_STATUSES)}")
    space = Space(
        definition.space_id, name, status, definition, artifact, trained_until, coverage, dict(metrics), written_at
    )
    return _enter(lake, space, written_at)


def _also_called(lake: Lake, space: Space, name: str, written_at: datetime) -> Space:
    """The space with one more name: a row of its own that repeats the space's state."""
    moment = moment_after(space.event_timestamp, written_at)
    _enter(lake, replace(space, name=name, event_timestamp=moment), written_at)
    return replace(space, aliases=(*space.aliases, name), event_timestamp=moment)


def set_status(
    lake: Lake,
    space_id: str,
    status: str,
    *,
    coverage: float | None = None,
    metrics: Mapping[str, float] | None = None,
    written_at: datetime,
) -> Space:
    """The space with its new status; no change writes nothing.

    Raises:
        ContractError: the life of a space does not lead from its status to that one, or its coverage is incomplete.
        NotFound: no such space.
    """
    space = _with_id(lake, space_id)
    if status not in (space.status, *NEXT_STATUSES[space.status]):
        allowed = ", ".join(NEXT_STATUSES[space.status])
        raise ContractError(f"embedding space {space}: expected to become {allowed}, not {status}")
    changed = replace(
        space,
        status=status,
        coverage=space.coverage if coverage is None else coverage,
        metrics=dict(space.metrics if metrics is None else metrics),
    )
    if status in ("candidate", "live") and changed.coverage < 1.0:
        raise ContractError(
            f"embedding space {space} covers {changed.coverage:.2%} of the contents, expected all: run embed_contents"
        )
    if changed == space:
        return space
    return _enter(lake, replace(changed, event_timestamp=moment_after(space.event_timestamp, written_at)), written_at)


def _with_id(lake: Lake, space_id: str) -> Space:
    known = spaces(lake)
    for space in known:
        if space.space_id == space_id:
            return space
    raise NotFound(f"no embedding space has the id {space_id!r}; there are {', '.join(map(str, known)) or 'none'}")


def spaces(lake: Lake) -> list[Space]:
    """Every space as it stands now, in the order in which they were registered."""
    rows = lake.read("embedding_spaces").sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    names: dict[str, dict[str, None]] = {}
    latest: dict[str, Mapping[str, Any]] = {}
    for row in rows.to_pylist():
        names.setdefault(row["space_id"], {})[row["name"]] = None
        latest[row["space_id"]] = row
    return [_space(row, *names[space_id]) for space_id, row in latest.items()]


def moment_after(earlier: datetime, written_at: datetime) -> datetime:
    """The moment of an entry that follows another: a process that says "now" once may make both."""
    return max(written_at, earlier + timedelta(microseconds=1))


def _enter(lake: Lake, space: Space, written_at: datetime) -> Space:
    row: dict[str, Any] = {
        "space_id": space.space_id,
        "name": space.name,
        "status": space.status,
        "dimension": space.dimension,
        "storage_type": space.definition.storage_type,
        "artifact": space.artifact,
        "definition": space.definition.to_json(),
        "trained_until": space.trained_until,
        "coverage": space.coverage,
        "metrics": json.dumps(space.metrics, sort_keys=True),
        "event_timestamp": space.event_timestamp,
    }
    rows = pa.Table.from_pylist([row], arrow_schema(EMBEDDING_SPACES, EMBEDDING_SPACES.facts))
    lake.append("embedding_spaces", rows, written_at=written_at)
    return space


def _space(row: Mapping[str, Any], name: str, *aliases: str) -> Space:
    return Space(
        row["space_id"],
        name,
        row["status"],
        SpaceDefinition.from_json(row["definition"]),
        row["artifact"],
        row["trained_until"],
        row["coverage"],
        json.loads(row["metrics"]),
        row["event_timestamp"],
        aliases,
    )
