"""The specification of a training set: everything that a person decides about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from moonlake.errors import InputError
from moonlake.point_in_time import KnownBy

Format = Literal["parquet", "delta"]


Sequences = Literal["inline", "pointers"]


CHOICES = {"known_by": ("event", "written"), "format": ("parquet", "delta"), "sequences": ("inline", "pointers")}


@dataclass(frozen=True, slots=True)
class Declaration:
    """The specification of a training set: everything that a person decides about it.

    Attributes:
        name: its folder's name.
        start, end: label rows have an event time in [start, end).
        settled_by: only labels settled by then enter, that is with label_time <= settled_by; None means `end`. A
            window that closes less than one attribution delay ago would take clicks that are still to come for none.
            A label table without `label_time` has labels that are settled at once.
        label_table: a lake table with an event time, or the path of any Delta table.
        label_key, label_event_time: columns of a table at a path; a lake table has those of its contract.
        label_columns: what of a label row enters beside its key and event time. A lake table gives by default all
            that its contract states and that is no knowledge of the future; for a path it has to be stated.
        versions: Delta version to read, by table name or path; the others are read at their latest.
        sequence_length: actions of a behaviour sequence; `sequence_lengths` by view comes before it.
        sequences: "inline" stores a behaviour sequence as lists in each row, "pointers" as a slice of a log that holds
            each action once. Both are read alike.
        known_by: "event" gives what was true at the time of the label, "written" what had been written by then.
        space_id: the embedding space that its content ids are to be read in; None when that is left open. Features
            of a view that is keyed by `space_id` are those of this space.
        format: "delta" lays a transaction log beside the Parquet files.
    """

    name: str
    start: datetime
    end: datetime
    settled_by: datetime | None = None
    feature_service: str = "ctr_ranking_v1"
    label_table: str = "impressions"
    sequence_length: int = 50
    space_id: str | None = None
    label_key: tuple[str, ...] = ()
    label_event_time: str | None = None
    label_columns: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    sequence_lengths: Mapping[str, int] = field(default_factory=dict)
    known_by: KnownBy = "event"
    format: Format = "parquet"
    sequences: Sequences = "inline"

    def __post_init__(self) -> None:
        moments = {"start": self.start, "end": self.end, "settled_by": self.settled_by}
        for what, moment in moments.items():
            if moment is not None and moment.tzinfo is None:
                raise InputError(f"training set {self.name}: {what} {moment} has no time zone")
        if self.start >= self.end:
            raise InputError(f"training set {self.name}: start {self.start} is not before end {self.end}")
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise InputError(f"training set name {self.name!r}: expected a plain folder name")
        for what, allowed in CHOICES.items():
            if (found := getattr(self, what)) not in allowed:
                raise InputError(f"training set {self.name}: {what} is one of {', '.join(allowed)}, found {found!r}")
        if short := {name: length for name, length in self.lengths.items() if length < 1}:
            raise InputError(f"training set {self.name}: sequences of {short} actions; a length is 1 or more")

    @property
    def settled(self) -> datetime:
        """When the labels have to be settled."""
        return self.settled_by or self.end

    @property
    def lengths(self) -> dict[str, int]:
        """Actions of a sequence by view, and by "" of every other view."""
        return {"": self.sequence_length, **self.sequence_lengths}

    def with_lengths(self, lengths: Mapping[str, int]) -> Declaration:
        """The same with other lengths, given as `lengths` gives them; what they do not name stays."""
        by_view = {view: length for view, length in lengths.items() if view}
        return replace(
            self,
            sequence_length=lengths.get("", self.sequence_length),
            sequence_lengths={**self.sequence_lengths, **by_view},
        )


def numbers_by_name(pairs: Sequence[str]) -> dict[str, int]:
    """Versions or lengths from a command line: NAME=NUMBER, and a bare number under "".

    >>> numbers_by_name(["50", "user_behavior_sequence_v1=1000"])
    {'': 50, 'user_behavior_sequence_v1': 1000}
    """
    numbers: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        if not number.isdecimal():
            raise InputError(f"{pair!r}: expected NAME=NUMBER, such as products=3")
        numbers[name] = int(number)
    return numbers
