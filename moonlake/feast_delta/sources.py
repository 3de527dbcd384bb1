"""Feast data sources over Delta tables.

A source names a table of the lake (its root is resolved when it is read, so that one registry serves every home) or
an explicit path. Feast serialises a custom source as its class path and a JSON configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Self

from feast import RepoConfig, ValueType
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDatasetStorage as SavedDatasetStorageProto
from feast.saved_dataset import SavedDatasetStorage

from moonlake.errors import InputError, NotFound
from moonlake.feast_delta.fields import column_type, value_type
from moonlake.feast_delta.snapshots import open_path
from moonlake.lake import contract
from moonlake.tables import BEHAVIOR_SEQUENCES


class DeltaSource(DataSource):
    """A Delta table as a feature source.

    Args:
        table: name of a lake table; or give `path`, the path or URI of any Delta table.
        version: the Delta version to read; None reads the latest, or what the offline store's `versions` say.
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
        self.table = table
        self.path = path
        self.version = version
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
        lag_us = self.lag // timedelta(microseconds=1)
        return {"table": self.table, "path": self.path, "version": self.version, "lag_us": lag_us}

    def validate(self, config: RepoConfig) -> None:
        """Raises NotFound when a column that this source names does not exist, or there is no table at its path."""
        present = [name for name, _ in self.get_table_column_names_and_types(config)]
        named = [self.timestamp_field, self.created_timestamp_column, *self.field_mapping]
        if missing := [name for name in named if name and name not in present]:
            raise NotFound(f"source {self.name}: {self.subject} has no columns {missing}; it has {', '.join(present)}")

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Column names and types: from the contract of a lake table, from the Delta schema at a path."""
        if self.table is not None:
            return [(column.name, column.type) for column in contract(self.table)]
        schema = open_path(str(self.path), self.version).dataset.schema
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
    """A user's last actions strictly before a time, from packed rows of parallel arrays.

    A packed row holds some of an entity's actions (a month of them) in order of time. The offline store unpacks the
    rows into one log and takes a slice of it, across rows; so the length is chosen when features are pulled.

    Args:
        length: actions of a sequence; the offline store's `sequence_length` takes its place for one pull.
        time_column: list<int64> column with the microseconds of each action.
        month_column: string column "YYYY-MM" of the packed row, if there is one: later months are not read.
    """

    def __init__(
        self,
        *,
        name: str,
        table: str | None = BEHAVIOR_SEQUENCES.name,
        path: str | None = None,
        length: int = 50,
        time_column: str = "times_us",
        month_column: str | None = "month",
        created_timestamp_column: str = "",
        **source: Any,
    ) -> None:
        if length < 1:
            raise InputError(f"source {name}: the length of a sequence must be 1 or more, found {length}")
        self.length = length
        self.time_column = time_column
        self.month_column = month_column
        table = None if path is not None else table
        super().__init__(name=name, table=table, path=path, created_timestamp_column=created_timestamp_column, **source)

    def configuration(self) -> dict[str, Any]:
        sequence = {"length": self.length, "time_column": self.time_column, "month_column": self.month_column}
        return {**super().configuration(), **sequence}


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
