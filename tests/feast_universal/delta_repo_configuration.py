"""The stores for Feast's universal tests: Delta tables with our engine, and our SQLite and Redis online stores.

Feast imports this module by FULL_REPO_CONFIGS_MODULE. Its `tests` package is on the path when `run.py` starts pytest.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import redis
from deltalake import write_deltalake
from feast.data_source import DataSource
from feast.feature_logging import LoggingDestination
from feast.saved_dataset import SavedDatasetStorage
from tests.universal.feature_repos import integration_test_repo_config, repo_configuration
from tests.universal.feature_repos.universal.data_source_creator import DataSourceCreator
from tests.universal.feature_repos.universal.data_sources import file
from tests.universal.feature_repos.universal.online_store_creator import OnlineStoreCreator
from tests.utils.cli_repo_creator import CliRunner

from moonlake.feast_delta.feature_writes import DeltaLoggingDestination
from moonlake.feast_delta.offline_store import DeltaOfflineStoreConfig
from moonlake.feast_delta.sources import DeltaSource, SavedDatasetDeltaStorage

BATCH_ENGINES = {"delta": {"type": "moonlake.feast_delta.materialization.DeltaChangeEngine"}, "feast": "local"}
CHANGE_FEED = {"delta.enableChangeDataFeed": "true"}


class DeltaDataSourceCreator(DataSourceCreator):
    """Sources, saved datasets and logs as Delta tables below one temporary folder."""

    def __init__(self, project_name: str, *_: Any, **__: Any) -> None:
        super().__init__(project_name)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{project_name}_"))
        self.places = 0

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str | None = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> DataSource:
        path = self._new_place(destination_name)
        write_deltalake(path, delta_table(df), configuration=CHANGE_FEED)
        mapping = field_mapping or {"ts_1": "ts"}
        source = DeltaSource(
            name=path,
            path=path,
            timestamp_field=timestamp_field or "ts",
            created_timestamp_column=created_timestamp_column or "",
            field_mapping={column: name for column, name in mapping.items() if field_mapping or column in df},
        )
        named: Any = source
        named.table_ref = source.get_table_query_string()  # what Feast's tests name in SQL
        return source

    def create_offline_store_config(self) -> DeltaOfflineStoreConfig:
        engine: Any = os.environ["UNIVERSAL_ENGINE"]
        return DeltaOfflineStoreConfig(engine=engine)

    def create_saved_dataset_destination(self) -> SavedDatasetStorage:
        storage = SavedDatasetDeltaStorage(self._new_place("saved"))
        named: Any = storage
        named.file_options = SimpleNamespace(uri=storage.path)  # by which a test deletes what was saved
        return storage

    def create_logged_features_destination(self) -> LoggingDestination:
        return DeltaLoggingDestination(self._new_place("logged"))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _new_place(self, kind: str) -> str:
        self.places += 1
        return str(self.folder / f"{kind}_{self.places}")


class DeltaSqliteOnlineStoreCreator(OnlineStoreCreator):
    """Our SQLite store. Feast's tests expect rows of 2022 to be served whatever their ttl: ages are not the clock's."""

    def create_online_store(self) -> dict[str, Any]:
        self.folder = tempfile.mkdtemp()
        kind = "moonlake.feast_delta.online_sqlite.DeltaSqliteOnlineStore"
        return {"type": kind, "path": f"{self.folder}/online.db", "now": "served"}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


class DeltaRedisOnlineStoreCreator(OnlineStoreCreator):
    """Our Redis store, on a server of its own."""

    def create_online_store(self) -> dict[str, Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        _wait_for_redis(port)
        kind = "moonlake.feast_delta.online_redis.DeltaRedisOnlineStore"
        return {"type": kind, "connection_string": f"127.0.0.1:{port}", "now": "served"}

    def teardown(self) -> None:
        self.server.terminate()
        self.server.wait()


def delta_table(frame: pd.DataFrame) -> pa.Table:
    """The frame as a Delta table keeps it: all times are moments, where naive ones of pandas are Feast's UTC."""
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    moments = [field.with_type(_moments(field.type)) for field in rows.schema]
    return rows.cast(pa.schema(moments)).replace_schema_metadata(None)


def _moments(of: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(of):
        return pa.timestamp("us", tz="UTC")
    return pa.list_(_moments(of.value_type)) if pa.types.is_list(of) else of


def _local_repo(
    runner: CliRunner, local_repo: Callable[..., Any], example_repo_py: str, offline_store: str, **options: Any
) -> AbstractContextManager[Any]:
    """The repository that a test of the command line runs in, with our store where the test says `file`."""
    ours = "moonlake.feast_delta.offline_store.DeltaOfflineStore"
    return local_repo(runner, example_repo_py, ours if offline_store == "file" else offline_store, **options)


def _wait_for_redis(port: int) -> None:
    client = redis.Redis("127.0.0.1", port)
    for _ in range(100):
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"redis-server did not answer on port {port} within 5 seconds")


@dataclass(eq=False, repr=False)
class DeltaTestRepoConfig(integration_test_repo_config.IntegrationTestRepoConfig):
    """Feast's configuration of a test, with the batch engine that this run is for."""

    batch_engine: Any = field(default_factory=lambda: BATCH_ENGINES[os.environ["UNIVERSAL_BATCH_ENGINE"]])


AVAILABLE_OFFLINE_STORES = [("local", DeltaDataSourceCreator)]
AVAILABLE_ONLINE_STORES = {
    "redis": ("redis", DeltaRedisOnlineStoreCreator),
    "sqlite": ("sqlite", DeltaSqliteOnlineStoreCreator),
}

# Feast's conftest and some tests name the file creator; they look it up after Feast has imported this module.
repo_configuration.OFFLINE_STORE_TO_PROVIDER_CONFIG["file"] = ("local", DeltaDataSourceCreator)
integration_test_repo_config.IntegrationTestRepoConfig = DeltaTestRepoConfig
file.FileDataSourceCreator = DeltaDataSourceCreator
CliRunner.local_repo = partialmethod(_local_repo, CliRunner.local_repo)
