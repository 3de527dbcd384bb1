"""The plan of a join without Feast's classes: the seam between the offline store and its engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar

from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.on_demand_feature_view import OnDemandFeatureView

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource
from moonlake.lake.versions import TableSnapshot
from moonlake.point_in_time import KnownBy

Rows = TypeVar("Rows")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Sequences = Literal["inline", "pointers"]
"""How a sequence comes back: as lists, or as (start, stop) into a log that is written beside; see `SequenceLog`."""


@dataclass(frozen=True, slots=True)
class ViewJoin:
    """One feature view, to be joined to label rows.

    Attributes:
        keys: (column of the label rows, column of the source) pairs; empty for a view without entities.
        features: (column of the source, name in the result) pairs.
        length: actions of a sequence, for a sequence view.
    """

    view: str
    source: DeltaSource
    snapshot: TableSnapshot
    keys: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str], ...]
    event_column: str
    created_column: str | None
    ttl_us: int = 0
    length: int = 0

    @property
    def lag_us(self) -> int:
        """Serving delay of the source in microseconds."""
        return self.source.lag // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Labels(Generic[Rows]):
    """Label rows as an engine holds them: `rows` is an Arrow table, or a frame of Spark."""

    rows: Rows
    columns: tuple[str, ...]
    time_column: str
    earliest: datetime | None
    latest: datetime | None


@dataclass(frozen=True, slots=True)
class Pull:
    """Options of a feature pull, and the values that Feast asks its job for.

    Attributes:
        known_by: rule 7 of DESIGN.md section 4.
        sequences: for sequence views.
        logs: folder for the log `<view>.arrow` of each sequence view that is pulled as pointers.
    """

    feature_refs: Sequence[str] = ()
    full_feature_names: bool = False
    on_demand_feature_views: Sequence[OnDemandFeatureView] = ()
    known_by: KnownBy = "event"
    sequences: Sequences = "inline"
    logs: str = ""


class Engine(Protocol[Rows]):
    """An engine that joins labels and features; all follow the same rules and pass the same tests."""

    def labels(self, rows: object, tables: Mapping[str, TableSnapshot]) -> Labels[Rows]:
        """Label rows of any kind that the engine reads.

        Args: tables: what SQL may name, beside paths as delta.`path`.
        """

    def labels_between(self, joins: Sequence[ViewJoin], start: datetime, end: datetime) -> Labels[Rows]:
        """A label row at `end` for each combination of keys that some view has with an event time in [start, end].

        A key column that a view does not have is null in its combinations.
        """

    def historical(self, labels: Labels[Rows], joins: Sequence[ViewJoin], pull: Pull) -> RetrievalJob:
        """The label rows, in order, with the features of all views."""

    def latest(self, join: ViewJoin, start: datetime, end: datetime) -> RetrievalJob:
        """The latest row of each key with an event time in [start, end]: keys, features and times by source column.

        A view without keys has Feast's dummy key. Of a sequence view: the sequence as it is known at `end` (actions
        strictly before it) of each key that acted in [start, end), with the time of its last action.
        """

    def between(self, join: ViewJoin, start: datetime | None, end: datetime | None) -> RetrievalJob:
        """All rows with an event time in [start, end], by source column, as they lie in the table.

        Without keys they have Feast's dummy key, as in `latest`: Feast's own batch engine materialises from either.
        """


def plan_view(
    view: FeatureView,
    features: Sequence[str],
    snapshot: TableSnapshot,
    *,
    full_feature_names: bool,
    sequence_length: int | None = None,
) -> ViewJoin:
    """The join of one view as Feast hands it over: projections, join key maps and field mappings resolved.

    Args: sequence_length: takes the place of the length that a sequence source states.
    Raises: NotFound: a feature or column that the view's table does not have.
    """
    source = delta_source(view)
    columns = {feature: column for column, feature in source.field_mapping.items()}
    aliases = view.projection.join_key_map
    joins = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    keys = tuple((aliases.get(name, name), columns.get(name, name)) for name in joins)
    prefix = f"{alias_of(view)}__" if full_feature_names else ""
    join = ViewJoin(
        view=view.name,
        source=source,
        snapshot=snapshot,
        keys=keys,
        features=tuple((columns.get(name, name), prefix + name) for name in features),
        event_column=columns.get(source.timestamp_field, source.timestamp_field),
        created_column=columns.get(source.created_timestamp_column, source.created_timestamp_column) or None,
        ttl_us=(view.ttl or timedelta(0)) // timedelta(microseconds=1),
        length=_length(source, sequence_length),
    )
    check_columns(join)
    return join


def plan_pull(
    source: DeltaSource,
    snapshot: TableSnapshot,
    keys: Sequence[str],
    features: Sequence[str],
    event_column: str,
    created_column: str | None,
    *,
    sequence_length: int | None = None,
) -> ViewJoin:
    """The pull of a source's own rows, all names being columns of the source. Raises NotFound for an unknown one."""
    join = ViewJoin(
        view=source.name,
        source=source,
        snapshot=snapshot,
        keys=tuple((name, name) for name in keys),
        features=tuple((name, name) for name in features),
        event_column=event_column,
        created_column=created_column or None,
        length=_length(source, sequence_length),
    )
    check_columns(join)
    return join


def delta_source(view: FeatureView) -> DeltaSource:
    """The source of a view. Raises InputError for one that this plug-in does not read."""
    if not isinstance(view.batch_source, DeltaSource):
        raise InputError(f"feature view {view.name}: expected a Delta source, found {view.batch_source}")
    return view.batch_source


def check_labels(labels: Labels[Any], joins: Sequence[ViewJoin]) -> None:
    """Raises InputError when label rows lack a join key, or have a column with the name of a feature."""
    for join in joins:
        if missing := [label for label, _ in join.keys if label not in labels.columns]:
            raise InputError(
                f"feature view {join.view}: label rows lack its join keys {missing}; they have "
                + ", ".join(labels.columns)
            )
    names = {name for join in joins for _, name in join.features}
    if clash := sorted(names & set(labels.columns)):
        raise InputError(f"label rows have columns named as features: {clash}; drop them, or ask for full names")


def time_column_of(columns: Sequence[str], timestamps: Sequence[str]) -> str:
    """`event_timestamp`, or the only timestamp column that there is. Raises InputError for none or several."""
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in columns:
        return DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
    if len(timestamps) != 1:
        raise InputError(f"label rows: name the event time event_timestamp; timestamp columns found: {timestamps}")
    return timestamps[0]


def in_utc(moment: datetime) -> datetime:
    """The moment in UTC; Feast hands naive moments over that are meant so."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def microseconds_of(moment: datetime) -> int:
    """The moment in microseconds since 1970 UTC, exactly; a naive one is meant in UTC."""
    return (in_utc(moment) - _EPOCH) // timedelta(microseconds=1)


def check_written(join: ViewJoin, source: BehaviorSequenceSource) -> None:
    """Raises InputError when a sequence source does not say when each action was written."""
    if not (source.written_column if source.packed else join.created_column):
        raise InputError(
            f"feature view {join.view}: known_by='written' needs to know when each action was written, and source "
            f"{source.name} states no {'written_column' if source.packed else 'created_timestamp_column'}"
        )


def alias_of(view: FeatureView) -> str:
    """The name that a view goes by in this pull: its alias, or its own."""
    return str(view.projection.name_to_use())  # type: ignore[no-untyped-call]


def check_columns(join: ViewJoin) -> None:
    """Raises NotFound, with the columns that there are, when the join names one that the table does not have."""
    present = join.snapshot.dataset.schema.names
    named = {*(column for _, column in join.keys), *(column for column, _ in join.features), join.event_column}
    if join.created_column:
        named.add(join.created_column)
    named.update(join.source.columns_used())
    if unknown := sorted(named - set(present)):
        raise NotFound(
            f"feature view {join.view}: table {join.source.subject} has no columns {unknown}; it has "
            + ", ".join(present)
        )


def _length(source: DeltaSource, asked: int | None) -> int:
    if not isinstance(source, BehaviorSequenceSource):
        return 0
    return source.length if asked is None else asked
