"""Releases: which embedding space and model a use runs on, now and before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.embeddings.checks import PassedCheck, require_allowed
from moonlake.embeddings.spaces import LIVE, Space, moment_after, require_same, set_status, spaces
from moonlake.errors import ContractError, NotFound
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import CTR_RANKING, RELEASES


@dataclass(frozen=True, slots=True)
class Release:
    """A release: the space, model, feature service and snapshot of a use from `event_timestamp` on.

    Attributes:
        check_id: the check in `gate_results` that allowed it, and still stands for it after a roll-back; None in a
            release made before 0.2.0.
    """

    use: str
    space_id: str
    model_id: str | None
    feature_service: str | None
    snapshot: str | None
    event_timestamp: datetime
    check_id: str | None = None


def find(lake: Lake, name_or_id: str) -> Space:
    """The space of that name, id or beginning of an id; "live" is the one that CTR ranking runs on.

    Raises: NotFound: none, or more than one; the message names those that there are.
    """
    if name_or_id == LIVE:
        return live(lake)
    known = spaces(lake)
    exact = [space for space in known if name_or_id in (*space.names, space.space_id)]
    matches = exact or [space for space in known if name_or_id and space.space_id.startswith(name_or_id)]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} embedding spaces begin with" if matches else "no embedding space"
    raise NotFound(f"{problem} {name_or_id!r}; there are {', '.join(map(str, known)) or 'none: train an encoder'}")


def live(lake: Lake, use: str = CTR_RANKING) -> Space:
    """The space that a use runs on. Raises NotFound if nothing was released for it."""
    return find(lake, current_release(lake, use).space_id)


def current_release(lake: Lake, use: str) -> Release:
    """The current release of a use. Raises NotFound if nothing was released for it."""
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
    space: str,
    *,
    check: PassedCheck,
    model_id: str | None = None,
    feature_service: str | None = None,
    snapshot: str | None = None,
    written_at: datetime,
) -> Release:
    """The new release of a use: one commit to `releases` is the switch.

    The statuses of the spaces follow: the named one is live, one that no release names any more is retired.

    Args:
        space: name or id.
        check: from `Check.require_passed` or `Check.waived`, for this use, space and model.

    Raises:
        GateFailed: `gate_results` does not say that this check passed, or that it was waived; or
            vectors of the space changed since. New ones count too, unless the use runs on the space already.
        NotFound: no such space, model or use; or CTR ranking without a model.
        SpaceMismatch: the model reads another space.
        ContractError: the space is not complete.
    """
    found = find(lake, space)
    past = history(lake, use)
    if found.status == "building" or found.coverage < 1.0:
        raise ContractError(f"embedding space {found} covers {found.coverage:.2%} of the contents: run embed_contents")
    if model_id is not None:
        _require_model_of_space(lake, model_id, found)
    elif use == CTR_RANKING:
        raise NotFound(f"embedding space {found}: it cannot be released for {use} without a CTR model that reads it")
    served = bool(past) and past[-1].space_id == found.space_id
    require_allowed(lake, check, use=use, space=found, model_id=model_id, served=served)
    new = Release(use, found.space_id, model_id, feature_service, snapshot, written_at, check.check_id)
    return _switch(lake, new, written_at)


def roll_back(lake: Lake, use: str, *, snapshot: str | None = None, written_at: datetime) -> Release:
    """The release that the use runs on again: the one before the current one, in one commit.

    The one way without a check: it ran before, and a way back that can be refused is none.

    Args: snapshot: where the space's snapshot lies; default: where the earlier release says.
    Raises: NotFound: nothing was released for the use before.
    """
    earlier = before_current(lake, use)
    again = replace(earlier, event_timestamp=written_at)
    return _switch(lake, again if snapshot is None else replace(again, snapshot=snapshot), written_at)


def _switch(lake: Lake, new: Release, written_at: datetime) -> Release:
    past = history(lake, new.use)
    if past and _is_of(past[-1], new):
        new = past[-1]
    else:
        if past:
            new = replace(new, event_timestamp=moment_after(past[-1].event_timestamp, written_at))
        rows = pa.Table.from_pylist([asdict(new)], arrow_schema(RELEASES, RELEASES.facts))
        lake.append("releases", rows, written_at=written_at, writer=__name__)
    _follow_releases(lake, written_at)
    return new


def before_current(lake: Lake, use: str) -> Release:
    """The release that a roll-back returns to: the one before the current release.

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
    """The current release of every use that has one."""
    pasts = {use: history(lake, use) for use in RELEASES["use"].values}
    return {use: past[-1] for use, past in pasts.items() if past}


def _is_of(one: Release, other: Release) -> bool:
    """Whether two releases are the same but for their time and check."""
    return replace(one, event_timestamp=other.event_timestamp, check_id=other.check_id) == other


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
