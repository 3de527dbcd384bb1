"""Writes from Feast into Delta tables: rows of a feature view, and logs of served features; no JVM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import (
    LOG_DATE_FIELD,
    LOG_TIMESTAMP_FIELD,
    LoggingConfig,
    LoggingDestination,
    LoggingSource,
)
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.FeatureService_pb2 import LoggingConfig as LoggingConfigProto

from moonlake.errors import ContractError, InputError, SchemaMismatch
from moonlake.feast_delta.home import home_of
from moonlake.feast_delta.joins.plan import delta_source
from moonlake.feast_delta.sources import DeltaSource
from moonlake.lake.lake import Lake
from moonlake.lake.versions import open_path
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.contract import Table

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")


class DeltaLoggingDestination(LoggingDestination):
    """A Delta table at a path or URI, as the place where Feast keeps the features that a service has served.

    Args: partition_by: columns that the table is partitioned by when it is first written.
    """

    _proto_kind = "moonlake_delta"

    def __init__(self, path: str, partition_by: Iterable[str] = (LOG_DATE_FIELD,)) -> None:
        self.path = path
        self.partition_by = tuple(partition_by)

    @classmethod
    def from_proto(cls, config_proto: LoggingConfigProto) -> Self:
        config = config_proto.custom_destination.config
        return cls(config["path"], [name for name in config["partition_by"].split(",") if name])

    def to_proto(self) -> LoggingConfigProto:
        config = {"path": self.path, "partition_by": ",".join(self.partition_by)}
        custom = LoggingConfigProto.CustomDestination(kind=self._proto_kind, config=config)
        return LoggingConfigProto(custom_destination=custom)

    def to_data_source(self) -> DataSource:
        return DeltaSource(
            name=self.path, path=self.path, timestamp_field=LOG_TIMESTAMP_FIELD, created_timestamp_column=""
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeltaLoggingDestination) and (self.path, self.partition_by) == (
            other.path,
            other.partition_by,
        )

    def __hash__(self) -> int:
        return hash((self.path, self.partition_by))

    def append(self, logs: pa.Table | Path, schema: pa.Schema) -> None:
        """Append logs, an Arrow table or a folder of Parquet files (which is streamed), in one commit.

        Args: schema: the columns that logs have; their own further columns are left out.
        Raises: SchemaMismatch: a column is missing or of another type.
        """
        schema = pa.schema([pa.field(field.name, _stored(field.type)) for field in schema])
        found = ds.dataset(logs) if isinstance(logs, pa.Table) else ds.dataset(logs, format="parquet")
        subject = f"log of served features at {self.path}"
        check_columns(subject, found.schema.names, required=schema.names)
        batches = (
            conform(pa.Table.from_batches([batch]), schema, subject).combine_chunks().to_batches()
            for batch in found.to_batches(columns=schema.names)
        )
        reader = pa.RecordBatchReader.from_batches(schema, (batch for parts in batches for batch in parts))
        # A feature that the service gained since is a new column; rows that were logged before have no value of it.
        write_deltalake(
            self.path, reader, mode="append", partition_by=list(self.partition_by) or None, schema_mode="merge"
        )


def write_logs(
    data: pa.Table | Path, source: LoggingSource, logging_config: LoggingConfig, registry: BaseRegistry
) -> None:
    """Append the logs of a feature service to its Delta destination. Raises InputError for another destination."""
    destination = logging_config.destination
    if not isinstance(destination, DeltaLoggingDestination):
        raise InputError(
            f"the moonlake offline store logs to a DeltaLoggingDestination, found {type(destination).__name__}"
        )
    destination.append(data, source.get_schema(registry))


def append_features(
    config: RepoConfig, view: FeatureView, rows: pa.Table, progress: Callable[[int], Any] | None = None
) -> None:
    """Append rows to the Delta table behind a view, in one commit.

    Columns may have the names of the table or of the features. The created column is stamped where it is missing or
    null. Naive times are UTC, as Feast takes them everywhere.

    Raises:
        SchemaMismatch: a column is missing, unknown or of another type.
        ContractError: the table is clustered or has rules over several columns, so that only Spark can write it.
        NotFound: there is no table at the path of the source.
    """
    source = delta_source(view)
    renamed = {feature: column for column, feature in source.field_mapping.items()}
    rows = rows.select([name for name in rows.column_names if not name.startswith("__index_level_")])
    rows = rows.rename_columns([renamed.get(name, name) for name in rows.column_names])
    now = datetime.now(UTC)
    if source.table is not None:
        _append_to_lake(config, contract(source.table), rows, now)
    else:
        _append_to_path(str(source.path), rows, source.created_timestamp_column, now)
    if progress:
        progress(len(rows))


def check_columns(subject: str, found: Iterable[str], *, required: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Nothing, when all required columns are there and no others than `allowed`, if stated. Raises SchemaMismatch."""
    found, required = list(found), list(required)
    if missing := [name for name in required if name not in found]:
        raise SchemaMismatch(f"{subject}: columns {missing} are missing; found {', '.join(found)}")
    known = {*required, *allowed}
    if allowed and (unknown := [name for name in found if name not in known]):
        raise SchemaMismatch(f"{subject}: columns {unknown} are unknown; it has {', '.join(sorted(known))}")


def conform(rows: pa.Table, schema: pa.Schema, subject: str) -> pa.Table:
    """The rows with the columns and types of a schema. Raises SchemaMismatch, naming the column and both types."""
    return pa.table([_cast(rows[field.name], field, subject) for field in schema], schema=schema)


def _append_to_lake(config: RepoConfig, table: Table, rows: pa.Table, now: datetime) -> None:
    if table.cluster_by or table.rules:
        why = f"is clustered by {', '.join(table.cluster_by)}" if table.cluster_by else "has rules over several columns"
        raise ContractError(
            f"table {table.name} {why}, so that only Spark writes it: hand the rows to its writer {table.writer}, or"
            " to moonlake.spark.writes.append"
        )
    subject = f"table {table.name}"
    check_columns(subject, rows.column_names, required=table.facts, allowed=table.names)
    home = home_of(config.repo_path)
    lake = Lake(home.model_copy(update={"lake_uri": config.offline_store.lake or home.lake_uri}))
    lake.append(table.name, conform(rows, arrow_schema(table, table.facts), subject), written_at=now)


def _append_to_path(path: str, rows: pa.Table, created: str, now: datetime) -> None:
    schema = open_path(path).dataset.schema
    if "clustering" in (DeltaTable(path).protocol().writer_features or ()):
        raise ContractError(f"the Delta table at {path} is clustered, so that only Spark writes it: append with Spark")
    required = [name for name in schema.names if name != created]
    check_columns(f"the Delta table at {path}", rows.column_names, required=required, allowed=schema.names)
    if created:
        stamp = pa.scalar(now, UTC_MICROSECONDS)
        known = (
            _cast(rows[created], pa.field(created, UTC_MICROSECONDS), path) if created in rows.column_names else None
        )
        stamped = pa.repeat(stamp, len(rows)) if known is None else pc.fill_null(known, stamp)
        rows = rows.drop_columns([created] if known is not None else []).append_column(created, stamped)
    write_deltalake(path, conform(rows, schema, f"the Delta table at {path}"), mode="append")


def _cast(column: pa.ChunkedArray, field: pa.Field, subject: str) -> pa.ChunkedArray:
    kind = _kind(column.type)
    if kind != _kind(field.type) and not kind.endswith("nothing"):
        raise SchemaMismatch(f"{subject}: column {field.name}: expected {field.type}, found {column.type}")
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise SchemaMismatch(f"{subject}: column {field.name}: {column.type} to {field.type}: {error}") from None
    except pa.ArrowNotImplementedError:
        raise SchemaMismatch(f"{subject}: column {field.name}: no {column.type} can be {field.type}") from None


def _kind(of: pa.DataType) -> str:
    """The kind of an Arrow type, without its width: a cast within one kind loses nothing or fails."""
    types = pa.types
    if types.is_dictionary(of):
        return _kind(of.value_type)
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return f"list of {_kind(of.value_type)}"
    kinds = {
        "string": types.is_string(of) or types.is_large_string(of) or types.is_string_view(of),
        "binary": types.is_binary(of) or types.is_large_binary(of) or types.is_binary_view(of),
        "number": types.is_integer(of) or types.is_floating(of),
        "time": types.is_timestamp(of),
        "nothing": types.is_null(of),
    }
    return next((kind for kind, fits in kinds.items() if fits), str(of))


def _stored(of: pa.DataType) -> pa.DataType:
    """The type that Delta keeps: times in microseconds UTC, where Feast's schema of a log has naive seconds."""
    if pa.types.is_timestamp(of):
        return UTC_MICROSECONDS
    return pa.list_(_stored(of.value_type)) if pa.types.is_list(of) else of
