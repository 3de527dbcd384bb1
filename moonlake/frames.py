"""Arrow tables as frames of the libraries that users have; each is an extra of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from moonlake.extras import naming_extras

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def to_pandas(rows: pa.Table) -> pd.DataFrame:
    """The rows as a pandas frame. Raises MissingDependency, which names the extra, where pandas is not installed."""
    with naming_extras():
        import pandas  # noqa: F401 Arrow's own message does not say where to get it
    return rows.to_pandas()


def to_polars(rows: pa.Table) -> pl.DataFrame:
    """The rows as a polars frame. Raises MissingDependency, which names the extra, where polars is not installed."""
    with naming_extras():
        import polars as pl
    found = pl.from_arrow(rows)
    assert isinstance(found, pl.DataFrame)  # a Series comes of an array only
    return found
