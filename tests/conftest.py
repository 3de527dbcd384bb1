"""Fixtures that every package's tests share: one Spark session for the run, a fresh home for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import settings as hypothesis_settings

from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.contract import ColumnType
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

hypothesis_settings.register_profile("long", max_examples=25 * hypothesis_settings().max_examples)
"""`make test-long`; tests that state their number of examples state it as a multiple of the profile's."""

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one Spark session of the run."""
    from moonlake.spark.session import spark_session

    home = tmp_path_factory.mktemp("spark")
    session = spark_session(
        Settings(home=home, spark_driver_memory="2g", spark_master="local[2]", spark_shuffle_partitions=2), "tests"
    )
    yield session
    session.stop()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a fresh home."""
    return Settings(home=tmp_path / "home", spark_shuffle_partitions=2)


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """The lake of `settings`, empty."""
    return Lake(settings)


@pytest.fixture
def written_at() -> datetime:
    """The time that the tests' writes are stamped with."""
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public extracts; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real public extracts are not on this machine")
    return SHARED_DATA


NEUTRAL: dict[ColumnType, Any] = {
    "string": "x",
    "bool": False,
    "int32": 1,
    "int64": 0,
    "float32": 0.0,
    "float64": 0.0,
    "timestamp": TIMELESS,
    "binary": b"x",
    "list<string>": [],
    "list<int64>": [],
    "list<float32>": [],
    "map<string,string>": {},
}


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]:
    """A function that appends rows to a lake table without Spark (unclustered).

    Columns that a row does not state are null, or a neutral value where the contract does not allow null.
    """

    def write(settings: Settings, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = contract(table).columns
        unstated = {column.name: None if column.nullable else NEUTRAL[column.type] for column in columns}
        filled = pa.Table.from_pylist([{**unstated, **row} for row in rows], schema=arrow_schema(contract(table)))
        write_deltalake(f"{settings.lake}/{table}", filled, mode="append")

    return write
