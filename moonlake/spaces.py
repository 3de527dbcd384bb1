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
import pyarrow.compute as pc

from moonlake.contents import stable_hash
from moonlake.errors import ContractError, InputError, NotFound, SpaceMismatch
from moonlake.lake import Lake, arrow_schema
from moonlake.tables import EMBEDDING_SPACES, RELEASES

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
    """One embedding space as it stands now."""

    space_id: str
    name: str
    status: str
    definition: SpaceDefinition
    artifact: str
    trained_until: datetime | None
    coverage: float
    metrics: Mapping[str, float]
    event_timestamp: datetime

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.definition.dimension

    def __str__(self) -> str:
        return f"{self.name} ({self.space_id[:12]}, {self.status})"


@dataclass(frozen=True, slots=True)
class Release:
    """What a use runs on from `event_timestamp`."""

    use: str
    space_id: str
    model_id: str | None
    feature_service: str | None
    snapshot: str | None
    event_timestamp: datetime


def require_same(expected: str, found: str, *, what: str) -> None:
    """Nothing, if both sides are of one space. Raises SpaceMismatch, naming both and what was to meet."""
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
    """The space, entered in the lake's books; one that stands there already is returned as it is.

    Raises:
        InputError: the name belongs to another space.
    """
    known = spaces(lake)
    for space in known:
        if space.space_id == definition.space_id:
            return space
        if space.name == name:
            raise InputError(f"the name {name} belongs to the embedding space {space}: choose another")
    if status not in NEXT_STATUSES:
        raise InputError(f"unknown status {status}; an embedding space is {', '.join(NEXT_STATUSES)}")
    space = Space(
        definition.space_id, name, status, definition, artifact, trained_until, coverage, dict(metrics), written_at
    )
    return _enter(lake, space, written_at)


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
    return _enter(lake, replace(changed, event_timestamp=_after(space.event_timestamp, written_at)), written_at)


def find(lake: Lake, name_or_id: str) -> Space:
    """The space of that name, id or beginning of an id; "live" is the one that CTR ranking runs on.

    Raises: NotFound: none, or more than one; the message names those that there are.
    """
    if name_or_id == LIVE:
        return live(lake)
    known = spaces(lake)
    exact = [space for space in known if name_or_id in (space.name, space.space_id)]
    matches = exact or [space for space in known if name_or_id and space.space_id.startswith(name_or_id)]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} embedding spaces begin with" if matches else "no embedding space"
    raise NotFound(f"{problem} {name_or_id!r}; there are {', '.join(map(str, known)) or 'none: train an encoder'}")


def _with_id(lake: Lake, space_id: str) -> Space:
    known = spaces(lake)
    for space in known:
        if space.space_id == space_id:
            return space
    raise NotFound(f"no embedding space has the id {space_id!r}; there are {', '.join(map(str, known)) or 'none'}")


def spaces(lake: Lake) -> list[Space]:
    """Every space as it stands now, in the order in which they were registered."""
    rows = lake.read("embedding_spaces").sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")])
    return list({row["space_id"]: _space(row) for row in rows.to_pylist()}.values())


def live(lake: Lake, use: str = "ctr_ranking") -> Space:
    """The space that a use runs on. Raises NotFound if nothing was released for it."""
    return find(lake, current_release(lake, use).space_id)


def current_release(lake: Lake, use: str) -> Release:
    """What a use runs on now. Raises NotFound if nothing was released for it."""
    past = history(lake, use)
    if not past:
        known = ", ".join(map(str, spaces(lake))) or "none"
        raise NotFound(f"nothing is released for {use}; embedding spaces: {known}; release one of them")
    return past[-1]


def history(lake: Lake, use: str) -> list[Release]:
    """Every release of a use, oldest first. Raises NotFound for a use that the contract does not have."""
    uses = RELEASES["use"].values
    if use not in uses:
        raise NotFound(f"no use {use}; there are {', '.join(uses)}")
    rows = lake.read("releases", where=pc.field("use") == use)
    rows = rows.sort_by([("event_timestamp", "ascending"), ("created_at", "ascending")]).drop_columns("created_at")
    return [Release(**row) for row in rows.to_pylist()]


def release(
    lake: Lake,
    use: str,
    space_id: str,
    *,
    model_id: str | None = None,
    feature_service: str | None = None,
    snapshot: str | None = None,
    written_at: datetime,
) -> Release:
    """What the use runs on from now: one commit to `releases` is the switch, and a roll-back is another.

    The statuses of the spaces follow: the named one is live, one that no release names any more is retired.

    Raises:
        NotFound: no such space, model or use; or CTR ranking without a model.
        SpaceMismatch: the model reads another space.
        ContractError: the space is not complete.
    """
    space = find(lake, space_id)
    past = history(lake, use)
    if space.status == "building" or space.coverage < 1.0:
        raise ContractError(f"embedding space {space} covers {space.coverage:.2%} of the contents: run embed_contents")
    if model_id is not None:
        _require_model_of_space(lake, model_id, space)
    elif use == "ctr_ranking":
        raise NotFound(f"embedding space {space}: it cannot be released for {use} without a CTR model that reads it")
    new = Release(use, space.space_id, model_id, feature_service, snapshot, written_at)
    if past and _is_of(past[-1], new):
        new = past[-1]
    else:
        new = replace(new, event_timestamp=_after(past[-1].event_timestamp, written_at)) if past else new
        rows = pa.Table.from_pylist([asdict(new)], arrow_schema(RELEASES, RELEASES.facts))
        lake.append("releases", rows, written_at=written_at)
    _follow_releases(lake, written_at)
    return new


def before_current(lake: Lake, use: str) -> Release:
    """What a roll-back leads back to: what the use ran on before what it runs on now.

    A switch back to what was there before takes a switch away: after releases of A, B and C and a roll-back to B, the
    next one leads to A.

    Raises: NotFound: nothing was released for the use before.
    """
    standing: list[Release] = []
    for one in history(lake, use):
        if len(standing) > 1 and _is_of(standing[-2], one):
            standing.pop()
        else:
            standing.append(one)
    if len(standing) < 2:
        raise NotFound(f"nothing was released for {use} before {standing[-1].space_id if standing else 'now'}")
    return standing[-2]


def retire(lake: Lake, space_id: str, *, written_at: datetime) -> Space:
    """The space, retired: no longer offered for a release; its vectors stay in the lake.

    Raises:
        NotFound: no such space.
        ContractError: a use runs on it.
    """
    space = find(lake, space_id)
    if uses := [use for use, one in running(lake).items() if one.space_id == space.space_id]:
        raise ContractError(f"embedding space {space}: {', '.join(uses)} runs on it; release another space there first")
    return set_status(lake, space.space_id, "retired", written_at=written_at)


def running(lake: Lake) -> dict[str, Release]:
    """What every use runs on now, but for those that nothing was released for."""
    pasts = {use: history(lake, use) for use in RELEASES["use"].values}
    return {use: past[-1] for use, past in pasts.items() if past}


def _is_of(one: Release, other: Release) -> bool:
    """Whether two releases are the same but for their time."""
    return replace(one, event_timestamp=other.event_timestamp) == other


def _require_model_of_space(lake: Lake, model_id: str, space: Space) -> None:
    rows = lake.read("model_versions", ["space_id"], where=pc.field("model_id") == model_id).to_pylist()
    if not rows:
        raise NotFound(f"no CTR model {model_id} in model_versions: train one on the space {space}")
    require_same(space.space_id, str(rows[-1]["space_id"]), what=f"release of CTR model {model_id}")


def _follow_releases(lake: Lake, written_at: datetime) -> None:
    """Bring the statuses in line with the releases; also after a process died between the two commits."""
    named = {one.space_id for one in running(lake).values()}
    for space in spaces(lake):
        if space.space_id in named:
            set_status(lake, space.space_id, "live", written_at=written_at)
        elif space.status == "live":
            set_status(lake, space.space_id, "retired", written_at=written_at)


def _after(earlier: datetime, written_at: datetime) -> datetime:
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


def _space(row: Mapping[str, Any]) -> Space:
    return Space(
        row["space_id"],
        row["name"],
        row["status"],
        SpaceDefinition.from_json(row["definition"]),
        row["artifact"],
        row["trained_until"],
        row["coverage"],
        json.loads(row["metrics"]),
        row["event_timestamp"],
    )
