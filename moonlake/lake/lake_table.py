"""A table of the lake at one version, for people: rows as Arrow, pandas or polars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.compute as pc

from moonlake import frames
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema, contract

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True, slots=True, repr=False)
class LakeTable:
    """A table at one Delta version, which it stays at whatever is written meanwhile."""

    lake: Lake
    name: str
    version: int

    @classmethod
    def open(cls, lake: Lake, name: str, version: int | datetime | None = None) -> Self:
        """The table at a version or a moment; by default at the latest version.

        Raises: NotFound: no such table or version, or the table has not been written yet.
        """
        return cls(lake, name, lake.open(name, version).version())

    def __len__(self) -> int:
        """The number of rows."""
        return int(self.lake.dataset(self.name, self.version).count_rows())

    def __repr__(self) -> str:
        return f"<table {self.name} at version {self.version}: {len(self):,} rows. {contract(self.name).grain}>"

    @property
    def schema(self) -> pa.Schema:
        """The columns by name and type, as the contract states them."""
        return arrow_schema(contract(self.name))

    def to_arrow(self, columns: Sequence[str] | None = None, *, where: pc.Expression | None = None) -> pa.Table:
        """The rows, or some columns of those that meet a condition such as `pyarrow.compute.field("x") > 1`.

        Raises: NotFound: a column that the table does not have; the message lists those that it has.
        """
        return self.lake.read(self.name, columns, where=where, version=self.version)

    def to_pandas(self, columns: Sequence[str] | None = None, *, where: pc.Expression | None = None) -> pd.DataFrame:
        """The same as a pandas frame (extra `pandas`)."""
        return frames.to_pandas(self.to_arrow(columns, where=where))

    def to_polars(self, columns: Sequence[str] | None = None, *, where: pc.Expression | None = None) -> pl.DataFrame:
        """The same as a polars frame (extra `polars`)."""
        return frames.to_polars(self.to_arrow(columns, where=where))
