"""The rules of our online stores (docs/online_stores.md), which SQLite and Redis carry out each in its own words.

Beside the features of a key stands a stamp: the epoch and the Delta version that the value was read at, its event time
and its created time. A view's `Served` says how far it has been served, and is kept in the same database.

A write lands where there is nothing, or where all of this holds:
1. It is not older: (event, created) >= that of the value online, in microseconds; at equal times the later write wins.
   Or the value online was withdrawn: the write says up to which (event, created) rows of this key left the table.
2. It was not read at an older Delta version than the value online.
3. Of a new epoch, whatever it replaces; of an older epoch, never. An epoch begins when a view is served from the whole
   snapshot: values of epochs before it are of another definition, or may stand for rows that are no longer there.
A value that was pushed (written through Feast, by no materialisation) is of every epoch and version: rule 1 alone.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self, TypeAlias

from feast import FeatureView, RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from pydantic import AwareDatetime

from moonlake.feast_delta.joins.plan import microseconds_of
from moonlake.feast_delta.sources import BehaviorSequenceSource

NEVER_US = -(2**63)
"""Before every time: the created time of a row that states none, the event time of a key without a row."""
PUSHED = 2**62
"""Epoch of a value that no materialisation wrote."""

Times: TypeAlias = tuple[int, int]
"""(event, created) in microseconds since 1970 UTC: what decides which of two values is the newer one."""
FeastRow: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
FoundRow: TypeAlias = tuple[datetime | None, dict[str, Value] | None]
Now: TypeAlias = Literal["clock", "served"] | AwareDatetime
"""What the age of a value is measured against when it is read: the clock; the moment up to which its view was last
served (for a lake whose time is not ours, such as a simulation); or a fixed moment."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """The value that a key is to have online.

    Attributes:
        values: features by name; None when no row of the key is left.
        withdrawn: the greatest (event, created) of the key's rows that left the table since it was last served.
    """

    key: EntityKey
    values: dict[str, Value] | None
    times: Times
    withdrawn: Times | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """The state of a view's online copy: how far it has been served.

    Attributes:
        epoch: counts how often the view was served from the whole snapshot.
        visible_from: the first epoch whose values are served; behind `epoch` while an epoch is being written.
        version: Delta version of the table; None until the epoch has been written to its end.
        end_us: event time up to which rows are served.
        reaching_us: event time up to which rows may be online already: what a run that was cut off was about to serve.
        reaching_version: the version that a run that was cut off was about to serve; -1 for none.
    """

    epoch: int = 0
    visible_from: int = 0
    definition: str = ""
    table_id: str = ""
    version: int | None = None
    end_us: int = NEVER_US
    reaching_us: int = NEVER_US
    reaching_version: int = -1

    def may_follow(self, stored: Self) -> bool:
        """True when this state may take the place of the stored one: it only ever moves forward.

        Of two materialisations at one time the state of either is true, since rows only move forward too; a mixture
        of both would not be. An epoch is opened once.
        """
        if self.epoch != stored.epoch:
            return self.epoch > stored.epoch
        if self.version is None:
            return False
        return self.version >= (-1 if stored.version is None else stored.version) and self.end_us >= stored.end_us

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls(**json.loads(text))


class Overtaken(Exception):
    """Another materialisation of the view moved on since this one looked how far it was served: start over."""


WriteRows: TypeAlias = Callable[[Sequence[OnlineRow]], int]
"""Writes rows and returns how many of them landed."""


class ServedOnlineStore(ABC):
    """An online store that keeps, beside the data, how far each view has been served."""

    @abstractmethod
    def served(self, config: RepoConfig, view: FeatureView) -> Served:
        """The state of the view's online copy: how far it has been served."""

    @abstractmethod
    def serving(
        self, config: RepoConfig, view: FeatureView, opened: Served, done: Served
    ) -> AbstractContextManager[WriteRows]:
        """A context that writes rows of the epoch and version of `done`, which is kept when all rows are written.

        Args: opened: kept before the first row where rows are not written in one transaction.
        Raises: Overtaken: `opened` may not follow what is stored by now; nothing was written.
        """

    @abstractmethod
    def forget(self, config: RepoConfig, views: Sequence[FeatureView], named: NamedKey) -> int:
        """The number of keys that were removed from the views with everything stored for them, stamps too."""

    @abstractmethod
    def search(self, config: RepoConfig, holds: Callable[[bytes], bool]) -> tuple[int, int]:
        """The number of values the project has online, and of those whose key or value meets `holds`."""


NamedKey: TypeAlias = Callable[[EntityKey], bool]
"""Whether an entity key is meant."""


def moment_of(microseconds: int) -> datetime:
    """The moment in UTC."""
    return _EPOCH + microseconds * _MICROSECOND


def times_of(event: datetime, created: datetime | None) -> Times:
    """The times of a row as Feast hands them over."""
    return microseconds_of(event), NEVER_US if created is None else microseconds_of(created)


def oldest_valid(view: FeatureView, now: Now, served_end_us: Callable[[], int]) -> int:
    """The event time in microseconds before which a value of the view is past its ttl; exactly ttl old is valid.

    A sequence has no age, as in historical features: it is what a user did last, however long ago.

    Args: served_end_us: called when ages are measured against what was served.
    """
    ttl = getattr(view, "ttl", None)
    if not ttl or isinstance(getattr(view, "batch_source", None), BehaviorSequenceSource):
        return NEVER_US
    if now == "served":
        now_us = served_end_us()
    else:
        now_us = microseconds_of(datetime.now(UTC) if now == "clock" else now)
    return max(NEVER_US, now_us - ttl // _MICROSECOND)
