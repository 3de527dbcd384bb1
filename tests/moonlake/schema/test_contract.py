import pytest

from moonlake.schema.contract import Column
from moonlake.schema.tables import TABLES


def test_a_column_that_training_rows_do_not_have_says_why() -> None:
    with pytest.raises(ValueError, match="column place: training rows do not have it"):
        Column("place", "int32", "place in the answer", in_training_rows=False)
    assert Column("place", "int32", "place", never_feature="not known before ranking", in_training_rows=False)


def test_a_column_of_one_name_is_a_feature_in_every_table_or_in_none() -> None:
    """A label row may come from any table, and what it may hold is known by the names of columns."""
    never = {column.name for table in TABLES.values() for column in table if not column.in_training_rows}
    enter = {column.name for table in TABLES.values() for column in table if column.in_training_rows}
    assert {"position", "propensity", "label_time", "created_at", "source"} == never
    assert not never & enter
