"""Feast data sources over Delta tables.

A source names a table of the lake (its root is resolved when it is read, so that one registry serves every home) or
an explicit path. Feast serialises a custom source as its class path and a JSON configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from feast import RepoConfig, ValueType
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDatasetStorage as SavedDatasetStorageProto
from feast.saved_dataset import _DATA_SOURCE_TO_SAVED_DATASET_STORAGE, SavedDatasetStorage

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.fields import column_type, value_type
from moonlake.lake.versions import open_path
from moonlake.schema.arrow import contract
from moonlake.schema.tables import BEHAVIOR_SEQUENCES

OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")

Condition = tuple[str, str, Any]
"""(column, one of OPERATORS, value): a value is a JSON value, a list of them for `in`; a time is text in ISO 8601."""


class DeltaSource(DataSource):
    """A Delta table as a feature source.

    Args:
        table: name of a lake table; or give `path`, the path or URI of any Delta table.
        version: the Delta version to read; None reads the latest, or what the offline store's `versions` say.
        timestamp: in place of a version, the moment whose latest version is read.
        where: conditions that a row must meet, all of them; a null meets none. Files and row groups that cannot hold
            such a row are not read.
        lag: serving delay: what became true less than `lag` before the label is not yet known to it.
        field_mapping: column -> feature name.
    """

    def __init__(
        self,
        *,
        name: str,
        table: str | None = None,
        path: str | None = None,
        version: int | None = None,
        timestamp: datetime | None = None,
        where: Sequence[Condition] = (),
        lag: timedelta = timedelta(0),
        timestamp_field: str = "event_timestamp",
        created_timestamp_column: str = "created_at",
        field_mapping: Mapping[str, str] | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        owner: str = "",
    ) -> None:
        if (table is None) == (path is None):
            raise InputError(f"source {name}: state either a table of the lake or a path, found {table!r} and {path!r}")
        if table is not None:
            contract(table)
        if version is not None and timestamp is not None:
            raise InputError(f"source {name}: pin a version or a timestamp, not both")
        if timestamp is not None and timestamp.tzinfo is None:
            raise InputError(f"source {name}: timestamp {timestamp} has no time zone")
        if unknown := sorted({operator for _, operator, _ in where} - set(OPERATORS)):
            raise InputError(f"source {name}: unknown operators {unknown} in `where`; known are {', '.join(OPERATORS)}")
        self.table = table
        self.path = path
        self.version = version
        self.timestamp = timestamp
        self.where = tuple((column, operator, value) for column, operator, value in where)
        self.lag = lag
        super().__init__(
            name=name,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=dict(field_mapping or {}),
            description=description,
            tags=dict(tags or {}),
            owner=owner,
        )

    @property
    def subject(self) -> str:
        """The table name or path: what versions are pinned and reported by."""
        return self.table or str(self.path)

    def configuration(self) -> dict[str, Any]:
        """Everything that Feast's own fields do not hold, as JSON values."""
        stated: dict[str, Any] = {"table": self.table, "path": self.path, "version": self.version}
        stated["lag_us"] = self.lag // timedelta(microseconds=1)
        if self.timestamp is not None:
            stated["timestamp"] = self.timestamp.astimezone(UTC).isoformat()
        if self.where:
            stated["where"] = [list(condition) for condition in self.where]
        return stated

    def columns_used(self) -> list[str]:
        """Columns that decide which rows count and in what order, beside keys and times."""
        return list(dict.fromkeys(column for column, _, _ in self.where))

    def validate(self, config: RepoConfig) -> None:
        """Raises NotFound when a column that this source names does not exist, or there is no table at its path."""
        present = [name for name, _ in self.get_table_column_names_and_types(config)]
        named = [self.timestamp_field, self.created_timestamp_column, *self.field_mapping, *self.columns_used()]
        if missing := [name for name in named if name and name not in present]:
            raise NotFound(f"source {self.name}: {self.subject} has no columns {missing}; it has {', '.join(present)}")

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Column names and types: from the contract of a lake table, from the Delta schema at a path."""
        if self.table is not None:
            return [(column.name, column.type) for column in contract(self.table)]
        schema = open_path(str(self.path), self.version or self.timestamp).dataset.schema
        return [(field.name, column_type(field.type)) for field in schema]

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return value_type

    def get_table_query_string(self) -> str:
        """The path as DataFusion and Spark read it. Feast shows it to people; our store does not run SQL."""
        return f"delta.`{self.subject}`"

    def source_type(self) -> DataSourceProto.SourceType.ValueType:
        return DataSourceProto.CUSTOM_SOURCE

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeltaSource) or type(self) is not type(other):
            return False
        same: bool = super().__eq__(other)  # type: ignore[no-untyped-call]
        return same and self.configuration() == other.configuration()

    def __hash__(self) -> int:
        return int(super().__hash__())  # type: ignore[no-untyped-call]

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__name__}",
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps(self.configuration(), sort_keys=True).encode()
            ),
            field_mapping=self.field_mapping,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    @classmethod
    def from_proto(cls, data_source: DataSourceProto) -> Self:
        configuration = json.loads(data_source.custom_options.configuration)
        if "timestamp" in configuration:
            configuration["timestamp"] = datetime.fromisoformat(configuration["timestamp"])
        return cls(
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
            lag=timedelta(microseconds=configuration.pop("lag_us")),
            **configuration,
        )


class BehaviorSequenceSource(DeltaSource):
    """A user's last actions strictly before a time, from packed rows of parallel arrays or from a plain log.

    A packed row holds some of an entity's actions (a month of them) in order of time; a row of a plain log is one
    action. The offline store takes a slice of the entity's whole log, across rows; so the length is chosen when
    features are pulled. Features are lists of one length, oldest action first.

    Args:
        packed: true where rows hold lists, false for a plain log, whose features are lists of its plain columns.
        length: actions of a sequence; the offline store's `sequence_length` takes its place for one pull.
        time_column: microseconds of each action: list<int64> when packed; of a plain log the event time, a timestamp.
        month_column: string column "YYYY-MM" of the packed row, if there is one: later months are not read.
        written_column: when each action was written, list<int64> in microseconds, for `known_by="written"`; of a plain
            log it is the created column.
        event_types: actions of other types are left out, before the length is counted.
        event_type_column: the (list) column that holds an action's type.
        order: columns of a plain log that put actions of one time in order; without any it is the order of writing.
        identity: column of a plain log that names an action: of rows with the same name the one written last counts,
            for `known_by="written"` the one written first.
    """

    def __init__(
        self,
        *,
        name: str,
        table: str | None = BEHAVIOR_SEQUENCES.name,
        path: str | None = None,
        packed: bool = True,
        length: int = 50,
        time_column: str | None = None,
        month_column: str | None = None,
        written_column: str | None = None,
        event_types: Sequence[str] = (),
        event_type_column: str = "actions",
        order: Sequence[str] = (),
        identity: str | None = None,
        created_timestamp_column: str = "",
        **source: Any,
    ) -> None:
        if length < 1:
            raise InputError(f"source {name}: the length of a sequence must be 1 or more, found {length}")
        if packed and (order or identity or created_timestamp_column):
            raise InputError(
                f"source {name}: order, identity and created_timestamp_column are for a plain log; packed rows hold "
                "their actions in order, each once"
            )
        if not packed and written_column:
            raise InputError(f"source {name}: a plain log states created_timestamp_column, not written_column")
        table = None if path is not None else table
        self.packed = packed
        self.length = length
        if packed and table == BEHAVIOR_SEQUENCES.name:
            month_column = month_column or "month"
        event_time = source.get("timestamp_field", "event_timestamp")
        self.time_column = time_column or ("times_us" if packed else event_time)
        self.month_column = month_column
        self.written_column = written_column
        self.event_types = tuple(event_types)
        self.event_type_column = event_type_column
        self.order = tuple(order)
        self.identity = identity
        super().__init__(name=name, table=table, path=path, created_timestamp_column=created_timestamp_column, **source)

    def configuration(self) -> dict[str, Any]:
        stated = {
            "packed": self.packed,
            "length": self.length,
            "time_column": self.time_column,
            "month_column": self.month_column,
            "written_column": self.written_column,
            "event_types": list(self.event_types),
            "event_type_column": self.event_type_column,
            "order": list(self.order),
            "identity": self.identity,
        }
        return {**super().configuration(), **stated}

    def columns_used(self) -> list[str]:
        types = [self.event_type_column] if self.event_types else []
        optional = [column for column in (self.month_column, self.written_column, self.identity) if column]
        return list(dict.fromkeys([*super().columns_used(), self.time_column, *types, *self.order, *optional]))


class SavedDatasetDeltaStorage(SavedDatasetStorage):
    """A Delta table at a path, as the place of a Feast saved dataset."""

    _proto_attr_name = "custom_storage"

    def __init__(self, path: str) -> None:
        self.path = path

    @staticmethod
    def from_proto(storage_proto: SavedDatasetStorageProto) -> SavedDatasetDeltaStorage:
        return SavedDatasetDeltaStorage(json.loads(storage_proto.custom_storage.configuration)["path"])

    def to_proto(self) -> SavedDatasetStorageProto:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        configuration = json.dumps({"path": self.path, "saved_dataset_storage_class": kind}).encode()
        return SavedDatasetStorageProto(custom_storage=DataSourceProto.CustomSourceOptions(configuration=configuration))

    def to_data_source(self) -> DataSource:
        return DeltaSource(name=self.path, path=self.path, created_timestamp_column="")

    @staticmethod
    def from_data_source(data_source: DataSource) -> SavedDatasetStorage:
        """The table of a source as such a place. Raises InputError for a source that states no path."""
        if not isinstance(data_source, DeltaSource) or data_source.path is None:
            raise InputError(f"source {data_source.name}: a saved dataset needs a Delta source with a path")
        return SavedDatasetDeltaStorage(data_source.path)


# Feast finds the storage of a source by the name of its class, in a table of its own without a way to enter it.
_DATA_SOURCE_TO_SAVED_DATASET_STORAGE[DeltaSource.__name__] = f"{__name__}.{SavedDatasetDeltaStorage.__name__}"
