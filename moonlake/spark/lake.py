"""The lake seen by a Spark job: a session, and the settings that say where the tables are."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from moonlake.lake.lake import Lake
from moonlake.schema.arrow import contract
from moonlake.settings import Settings
from moonlake.spark.session import spark_schema


@dataclass(frozen=True, slots=True)
class SparkLake:
    """The lake of the settings within a Spark session. `moonlake.spark.writes` writes to it."""

    session: SparkSession
    settings: Settings

    @property
    def lake(self) -> Lake:
        """The same lake without the JVM."""
        return Lake(self.settings)

    def frame(self, name: str, version: int | None = None) -> DataFrame:
        """The rows of a table, at a version if asked; an empty frame of its contract where it was never written."""
        lake = self.lake
        if version is None and not lake.exists(name):
            return self.session.createDataFrame([], spark_schema(contract(name)))
        reader = self.session.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(lake.path(name))
