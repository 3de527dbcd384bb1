"""The lake without a JVM: read any table, append to the small unclustered ones.

Spark writes the rest (`moonlake.spark.writes`). Both sides derive their schema from the contracts in
`moonlake.schema.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from moonlake.errors import BatchRejected, NotFound, SchemaMismatch
from moonlake.lake.rejects import reject_rows
from moonlake.schema.arrow import ARROW_TYPES, arrow_schema, contract
from moonlake.schema.contract import Table
from moonlake.schema.row_rules import broken_rules
from moonlake.schema.tables import REJECTS
from moonlake.settings import Settings

PROPERTIES = {"delta.enableChangeDataFeed": "true", "delta.checkpointInterval": "10"}
"""Of tables that are written without Spark."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """Counts of one write: rows_in = written + rejected + duplicates + unchanged, and rejected = sum(by_rule).

    Attributes:
        duplicates: rows that stood twice in the batch.
        unchanged: rows that the lake held already.
        version: version of the table after the write; unchanged when nothing was written.
        by_rule: the rejected rows by the rule that they broke first.
    """

    table: str
    rows_in: int
    written: int
    rejected: int
    duplicates: int
    unchanged: int
    version: int
    by_rule: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows_in != self.written + self.rejected + self.duplicates + self.unchanged:
            raise AssertionError(f"{self}: rows went missing")
        if self.rejected != sum(self.by_rule.values()):
            raise AssertionError(f"{self}: not every rejected row has a rule")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Lake:
    """All Delta tables under one root, read by delta-rs."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.lake

    def path(self, name: str) -> str:
        """The path of the table. Raises NotFound for a name that no contract has."""
        return f"{self.root}/{contract(name).name}"

    def exists(self, name: str) -> bool:
        """True once the table has had its first commit."""
        return bool(DeltaTable.is_deltatable(self.path(name)))

    def version(self, name: str) -> int:
        """The latest Delta version of the table; -1 if it was never written."""
        return self.open(name).version() if self.exists(name) else -1

    def open(self, name: str, version: int | datetime | None = None) -> DeltaTable:
        """The delta-rs table, at a version or a time if asked. Raises NotFound, naming table and version."""
        path = self.path(name)
        try:
            table = DeltaTable(path, version=version if isinstance(version, int) else None)
            if isinstance(version, datetime):
                table.load_as_version(version)
            return table
        except TableNotFoundError:
            raise NotFound(f"table {name} has not been written yet at {path}") from None
        except DeltaError as error:
            raise NotFound(f"table {name} at {path} has no version {version}: {error}") from None

    def dataset(self, name: str, version: int | datetime | None = None) -> ds.Dataset:
        """The table as a lazy Arrow dataset: projections and filters are pushed into its Parquet files."""
        table = self.open(name, version)
        if "://" in self.root:
            found = table.to_pyarrow_dataset()
        else:
            # An explicit filesystem: the default one can abort the interpreter at exit (delta-rs 2184).
            local = pyarrow.fs.SubTreeFileSystem(self.path(name), pyarrow.fs.LocalFileSystem())
            found = table.to_pyarrow_dataset(filesystem=local)
        # A file from before a column came into the contract holds null there. A filter on that column leaves such a
        # file out, even one for null (delta-rs derives a range of nulls from its statistics): filter what was read.
        added = [column.name for column in contract(name).missing_from(found.schema.names)]
        if not added:
            return found
        return found.replace_schema(pa.schema([*found.schema, *arrow_schema(contract(name), added)]))

    def read(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        where: pc.Expression | None = None,
        version: int | datetime | None = None,
    ) -> pa.Table:
        """Rows of a table with the types of its contract; an empty table if it was never written.

        Raises: NotFound: no such table, version or column.
        """
        table = contract(name)
        if unknown := set(columns or ()) - set(table.names):
            raise NotFound(f"table {name} has no columns {sorted(unknown)}; it has {', '.join(table.names)}")
        schema = arrow_schema(table, columns)
        if version is None and not self.exists(name):
            return schema.empty_table()
        rows = self.dataset(name, version).to_table(columns=schema.names, filter=where)
        return rows.cast(schema)

    def nothing_for(self, name: str) -> WriteReport:
        """The report of a write without rows."""
        return WriteReport(name, 0, 0, 0, 0, 0, self.version(name))

    def append(self, name: str, rows: pa.Table, *, written_at: datetime, writer: str | None = None) -> WriteReport:
        """Append what is new to an unclustered table; `created_at` is stamped, rows already there are left out.

        All or nothing: these are the lake's own books (spaces, releases, models), not data of a merchant.

        Args: writer: the module that writes; a guarded table asks for it.

        Raises:
            ContractError: the table is guarded, and this is not its writer.
            SchemaMismatch: a column is missing, unknown or of another type.
            BatchRejected: a row breaks a rule of the contract, which is named.
            ValueError: the table is clustered, so that only Spark can write it.
        """
        table = contract(name)
        table.require_writer(writer)
        if table.cluster_by or table.rules:
            raise ValueError(f"table {name} is clustered or has rules over several columns: write it with Spark")
        rows = self._conform(table, rows, written_at)
        broken = broken_rules(table, rows)
        refused = [rule for rule in broken if rule is not None]
        if refused:
            raise BatchRejected(f"table {name}: {len(refused)} of {len(rows)} rows break rules, first {refused[0]}")
        same_key = pc.field(table.key[0]).isin(rows[table.key[0]].combine_chunks())
        fresh = _left_out(rows, self.read(name, table.facts, where=same_key), table.facts)
        if len(fresh):
            write_deltalake(
                self.path(name),
                fresh,
                mode="append",
                schema_mode="merge" if self._lacks_columns(table) else None,
                configuration=PROPERTIES,
                description=table.grain,
            )
        return WriteReport(name, len(rows), len(fresh), 0, 0, len(rows) - len(fresh), self.version(name))

    def keep_rejects(
        self, name: str, refused: Iterable[tuple[str, Mapping[str, Any]]], *, source: str, written_at: datetime
    ) -> None:
        """Write refused records to `rejects`, each once however often it is submitted.

        Args:
            name: table that the records were meant for.
            refused: of each record the rule that it broke, and the record.
        """
        rows = reject_rows(contract(name), refused, source=source)
        if len(rows):
            self.append(REJECTS.name, rows, written_at=written_at)

    def _lacks_columns(self, table: Table) -> bool:
        """Whether the table was written before a column came into its contract."""
        if not self.exists(table.name):
            return False
        return bool(table.missing_from([field.name for field in self.open(table.name).schema().fields]))

    def _conform(self, table: Table, rows: pa.Table, written_at: datetime) -> pa.Table:
        schema = arrow_schema(table)
        if missing := set(table.facts) - set(rows.column_names):
            raise SchemaMismatch(f"table {table.name}: columns {sorted(missing)} are missing")
        if unknown := set(rows.column_names) - set(table.names):
            raise SchemaMismatch(f"table {table.name}: columns {sorted(unknown)} are not in the contract")
        stamped = rows.select(table.facts).append_column(
            "created_at", pa.array([written_at] * len(rows), ARROW_TYPES["timestamp"])
        )
        try:
            return pa.table([stamped[name].cast(schema.field(name).type) for name in table.names], schema=schema)
        except pa.ArrowInvalid as error:
            raise SchemaMismatch(f"table {table.name}: {error}") from None


def _left_out(rows: pa.Table, present: pa.Table, facts: Sequence[str]) -> pa.Table:
    """The rows whose facts are not yet present."""
    known = {tuple(row.values()) for row in present.to_pylist()}
    keep = [tuple(row.values()) not in known for row in rows.select(facts).to_pylist()]
    return rows.filter(pa.array(keep, pa.bool_()))
