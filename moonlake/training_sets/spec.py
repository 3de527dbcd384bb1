"""The specification of a training set: everything that a person decides about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, Self

from moonlake.errors import InputError
from moonlake.names import require_name
from moonlake.point_in_time import KnownBy
from moonlake.schema.tables import CTR_RANKING, USES
from moonlake.timestamps import parse_moment
from moonlake.words import numbers_by_name

Format = Literal["parquet", "delta"]


Sequences = Literal["inline", "pointers"]


CHOICES = {"known_by": ("event", "written"), "format": ("parquet", "delta"), "sequences": ("inline", "pointers")}


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option for a field of TrainingSetSpec.

    Attributes:
        field: the name of the field.
        flags: all spellings; the first is the usual one.
        read: gives the field's value for what was typed.
        repeated: True when it may be given several times; `read` then takes a sequence of words.
        required: True when the field has no default.
    """

    field: str
    flags: tuple[str, ...]
    help: str
    read: Callable[[Any], Any]
    repeated: bool
    required: bool


def _option(help: str, *flags: str, read: Callable[[Any], Any] = str) -> dict[str, Any]:
    """Metadata of a field that a command line may state; without `flags` the option is named after the field."""
    return {"help": help, "flags": flags, "read": read}


@dataclass(frozen=True, slots=True)
class TrainingSetSpec:
    """The specification of a training set: everything that a person decides about it.

    The commands derive their options from the fields (see `options`).

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
    start: datetime = field(metadata=_option("First moment of the label window, with time zone.", read=parse_moment))
    end: datetime = field(metadata=_option("Moment behind the label window.", read=parse_moment))
    settled_by: datetime | None = field(
        default=None, metadata=_option("Leave labels out that settled later; default: --end.", read=parse_moment)
    )
    feature_service: str = field(
        default=USES[CTR_RANKING], metadata=_option("Feature service.", "--service", "--feature-service")
    )
    label_table: str = field(
        default="impressions", metadata=_option("Lake table with an event time, or path of a Delta table.")
    )
    sequence_length: int = field(
        default=50,
        metadata=_option("Actions of a behaviour sequence: NUMBER, or VIEW=NUMBER.", read=numbers_by_name),
    )
    space_id: str | None = field(default=None, metadata=_option("Embedding space to read content ids in."))
    label_key: tuple[str, ...] = field(
        default=(), metadata=_option("Key column of a label table at a path.", read=tuple)
    )
    label_event_time: str | None = field(default=None, metadata=_option("Event time column of a table at a path."))
    label_columns: tuple[str, ...] = field(
        default=(), metadata=_option("Column of the label table that enters.", "--label-column", read=tuple)
    )
    versions: Mapping[str, int] = field(
        default_factory=dict,
        metadata=_option("TABLE=NUMBER: read that Delta version.", "--version", read=numbers_by_name),
    )
    sequence_lengths: Mapping[str, int] = field(default_factory=dict)  # an option states it with `sequence_length`
    known_by: KnownBy = field(
        default="event", metadata=_option("event: what was true then; written: what we had written.")
    )
    format: Format = field(default="parquet", metadata=_option("parquet or delta."))
    sequences: Sequences = field(default="inline", metadata=_option("inline: lists; pointers: slices of a log."))

    def __post_init__(self) -> None:
        require_name("training set", self.name)
        moments = {"start": self.start, "end": self.end, "settled_by": self.settled_by}
        for what, moment in moments.items():
            if moment is not None and moment.tzinfo is None:
                raise InputError(f"training set {self.name}: {what} {moment} has no time zone")
        if self.start >= self.end:
            raise InputError(f"training set {self.name}: start {self.start} is not before end {self.end}")
        for what, allowed in CHOICES.items():
            if (found := getattr(self, what)) not in allowed:
                raise InputError(f"training set {self.name}: {what} is one of {', '.join(allowed)}, found {found!r}")
        if short := {name: length for name, length in self.lengths.items() if length < 1}:
            raise InputError(f"training set {self.name}: sequences of {short} actions; a length is 1 or more")

    @classmethod
    def from_options(cls, name: str, stated: Mapping[str, Any]) -> Self:
        """The specification that a command line states.

        Args: stated: what was typed, by the field of the option: a word, or a sequence of words where the option may be
            repeated. None and an empty sequence stand for an option that was not given.
        Raises: InputError: an option that cannot be read, or no window.
        """
        values = {
            option.field: option.read(stated[option.field])
            for option in options()
            if stated.get(option.field) not in (None, [], ())
        }
        if not values.keys() >= {"start", "end"}:
            raise InputError(f"training set {name}: state the window with --start and --end")
        lengths = values.pop("sequence_length", {})
        return cls(name=name, **values).with_lengths(lengths)

    @property
    def settled(self) -> datetime:
        """The moment by which labels have to be settled."""
        return self.settled_by or self.end

    @property
    def lengths(self) -> dict[str, int]:
        """Actions of a sequence by view, and by "" of every other view."""
        return {"": self.sequence_length, **self.sequence_lengths}

    def with_lengths(self, lengths: Mapping[str, int]) -> Self:
        """The same with other lengths, given as `lengths` gives them; what they do not name stays."""
        by_view = {view: length for view, length in lengths.items() if view}
        return replace(
            self,
            sequence_length=lengths.get("", self.sequence_length),
            sequence_lengths={**self.sequence_lengths, **by_view},
        )


def options() -> list[Option]:
    """An option for each field of TrainingSetSpec but its name, which is an argument of its own."""
    found = []
    for one in fields(TrainingSetSpec):
        if one.metadata:
            flags = one.metadata["flags"] or (f"--{one.name.replace('_', '-')}",)
            shown = f" Default: {one.default}." if isinstance(one.default, str | int) else ""
            read = one.metadata["read"]
            repeated = read in (tuple, numbers_by_name)
            required = one.default is MISSING and one.default_factory is MISSING
            found.append(Option(one.name, flags, f"{one.metadata['help']}{shown}", read, repeated, required))
    return found
