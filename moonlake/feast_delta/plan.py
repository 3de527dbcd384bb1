"""What is to be joined, freed of Feast's classes: the seam between the offline store and its engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.snapshots import TableSnapshot
from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource


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


def plan_view(
    view: FeatureView,
    features: Sequence[str],
    snapshot: TableSnapshot,
    label_columns: Sequence[str],
    *,
    full_feature_names: bool,
    sequence_length: int | None = None,
) -> ViewJoin:
    """The join of one view as Feast hands it over: projections, join key maps and field mappings resolved.

    Args: sequence_length: takes the place of the length that a sequence source states.
    Raises:
        InputError: the label rows lack a join key of the view.
        NotFound: a feature or column that the view's table does not have.
    """
    source = delta_source(view)
    columns = {feature: column for column, feature in source.field_mapping.items()}
    aliases = view.projection.join_key_map
    joins = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    keys = tuple((aliases.get(name, name), columns.get(name, name)) for name in joins)
    if missing := [label for label, _ in keys if label not in label_columns]:
        raise InputError(
            f"feature view {view.name}: label rows lack its join keys {missing}; they have {', '.join(label_columns)}"
        )
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


def alias_of(view: FeatureView) -> str:
    """The name that a view goes by in this pull: its alias, or its own."""
    return str(view.projection.name_to_use())  # type: ignore[no-untyped-call]


def check_columns(join: ViewJoin) -> None:
    """Raises NotFound, with the columns that there are, when the join names one that the table does not have."""
    present = join.snapshot.dataset.schema.names
    named = {*(column for _, column in join.keys), *(column for column, _ in join.features), join.event_column}
    if join.created_column:
        named.add(join.created_column)
    if unknown := sorted(named - set(present)):
        raise NotFound(
            f"feature view {join.view}: table {join.source.subject} has no columns {unknown}; it has "
            + ", ".join(present)
        )


def _length(source: DeltaSource, asked: int | None) -> int:
    if not isinstance(source, BehaviorSequenceSource):
        return 0
    return source.length if asked is None else asked
