from __future__ import annotations

import pytest

from moonlake.spark import jars


@pytest.mark.spark
def test_coordinates_are_those_of_deltas_own_session_builder() -> None:
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    builder = SparkSession.Builder()
    configure_spark_with_delta_pip(builder)
    assert builder._options["spark.jars.packages"] == jars.coordinates()


def test_the_cached_jar_is_where_sparks_resolver_lays_it_down() -> None:
    jar = jars.cached_jar()
    assert jar.name == "io.delta_" + "-".join(jars.coordinates().split(":")[1:]) + ".jar"
    assert jar.parent.parts[-2:] == (".ivy2.5.2", "jars")


def test_spark_home_holds_spark_submit() -> None:
    assert (jars.spark_home() / "bin" / "spark-submit").exists()
