"""The log of online requests: what was served for which keys and when, in Feast's layout of logged features.

A row for each row of features that was served: join keys, then for each feature `<view>__<feature>` with its
`__timestamp` and `__status`, then `__log_timestamp`, `__log_date` and `__request_id`. Beside that, for each view,
`__<view>__served_version` and `__<view>__served_until`: the Delta version and the event time up to which the online
store had been brought, null where the store does not know. Feast's own logged features have neither and are read too.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from feast import FeatureStore, FeatureView
from feast.feature_logging import LOG_DATE_FIELD, LOG_TIMESTAMP_FIELD, REQUEST_ID_FIELD, FeatureServiceLoggingSource
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from moonlake.feast_delta.feature_writes import UTC_MICROSECONDS, DeltaLoggingDestination
from moonlake.feast_delta.joins.plan import alias_of
from moonlake.feast_delta.online.rules import ServedOnlineStore, moment_of
from moonlake.feast_delta.store import service_views
from moonlake.settings import Settings

ROWS_PER_COMMIT = 1_000


def log_of_service(settings: Settings, store: FeatureStore, service: str) -> DeltaLoggingDestination:
    """The path of a service's request log: its own logging destination, or the home's request log."""
    stated = store.get_feature_service(service).logging_config
    if stated is not None and isinstance(stated.destination, DeltaLoggingDestination):
        return stated.destination
    return DeltaLoggingDestination(str(settings.feast.absolute() / "request_log" / service))


def served_columns(view: FeatureView) -> tuple[str, str]:
    """The columns that say how far the online store had been brought for a view: Delta version and event time."""
    return f"__{alias_of(view)}__served_version", f"__{alias_of(view)}__served_until"


@dataclass(frozen=True, slots=True)
class _Request:
    """One request as it was served; laid out when it is written, off the way of the request."""

    rows: pa.Table
    at: datetime
    request_id: str
    served: Mapping[str, Any]


class RequestLog:
    """Takes rows of online features as they are served, and appends them in commits of many rows.

    Rows are lost when the process ends without `close`; use it as a context. It may be called from many threads.

    Args:
        sample_rate: share of the requests that is logged.
        clock: the time of a request.
    """

    def __init__(
        self,
        store: FeatureStore,
        service: str,
        destination: DeltaLoggingDestination,
        *,
        sample_rate: float = 1.0,
        rows_per_commit: int = ROWS_PER_COMMIT,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.destination = destination
        self._store = store
        self._views = service_views(store, service)
        source = FeatureServiceLoggingSource(store.get_feature_service(service), store.project)
        self._schema = _with_served(source.get_schema(store.registry), self._views)
        self._sample_rate = sample_rate
        self._rows_per_commit = rows_per_commit
        self._clock = clock
        self._held: list[_Request] = []
        self._rows = 0
        self._lock = threading.Lock()

    def __call__(self, rows: pa.Table, request_id: str | None = None) -> None:
        """Log the rows of one request: join keys and features by name, as a training set has them."""
        if random.random() >= self._sample_rate:
            return
        at = self._clock()
        served = [each for view in self._views for each in self._served(view).items()]
        with self._lock:
            self._held.append(_Request(rows, at, request_id or uuid.uuid4().hex, dict(served)))
            self._rows += len(rows)
            full = self._rows >= self._rows_per_commit
        if full:
            self.flush()

    def flush(self) -> None:
        """Append what is held in one commit."""
        with self._lock:
            held, self._held, self._rows = self._held, [], 0
        if held:
            self.destination.append(pa.concat_tables([self._logged(request) for request in held]), self._schema)

    def close(self) -> None:
        """Append what is still held."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _logged(self, request: _Request) -> pa.Table:
        rows = request.rows
        stated: dict[str, Any] = {
            LOG_TIMESTAMP_FIELD: request.at,
            LOG_DATE_FIELD: request.at.astimezone(UTC).date(),
            REQUEST_ID_FIELD: request.request_id,
            **request.served,
        }
        columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        statuses = pa.array([FieldStatus.NULL_VALUE, FieldStatus.PRESENT], pa.int32())
        for view in self._views:
            for feature in view.projection.features:
                name = f"{alias_of(view)}__{feature.name}"
                columns[name] = rows[feature.name]
                columns[f"{name}__status"] = statuses.take(rows[feature.name].is_valid().cast(pa.int8()))
                stated[f"{name}__timestamp"] = None  # Feast's answer has it, training rows do not
        for field in self._schema:
            if field.name in stated:
                columns[field.name] = pa.repeat(pa.scalar(stated[field.name], field.type), len(rows))
            elif field.name not in columns:
                columns[field.name] = rows[field.name]
        return pa.table([columns[field.name].cast(field.type) for field in self._schema], schema=self._schema)

    def _served(self, view: FeatureView) -> Mapping[str, Any]:
        """The version and moment up to which the view was served, read right after the values were."""
        version, until = served_columns(view)
        online = self._store._get_provider().online_store
        if not isinstance(online, ServedOnlineStore):
            return {version: None, until: None}
        served = online.served(self._store.config, view)
        if served.version is None:
            return {version: None, until: None}
        return {version: served.version, until: moment_of(served.end_us)}


def _with_served(schema: pa.Schema, views: list[FeatureView]) -> pa.Schema:
    fields = [pa.field(field.name, _plain(field.type)) for field in schema]
    for view in views:
        version, until = served_columns(view)
        fields += [pa.field(version, pa.int64()), pa.field(until, UTC_MICROSECONDS)]
    return pa.schema(fields)


def _plain(of: pa.DataType) -> pa.DataType:
    """Feast's log has naive seconds, which Delta keeps apart from moments: in the log all times are moments."""
    return UTC_MICROSECONDS if pa.types.is_timestamp(of) else of
