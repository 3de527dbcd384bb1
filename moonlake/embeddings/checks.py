"""Checks of an embedding space: their rows in `gate_results`, and when they allow a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.embeddings.gates import OF_CLICK_MODEL, OF_SPACE, Gate, not_applicable
from moonlake.embeddings.spaces import Space
from moonlake.errors import GateFailed, InputError, NotFound
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema
from moonlake.schema.tables import GATE_RESULTS

WAIVED = "waived"
"""The name of the row that lets a failed check pass, with the reason."""


@dataclass(frozen=True, slots=True)
class PassedCheck:
    """A check that allows the release of its space for its use, with its model.

    `Check.require_passed` and `Check.waived` make it. It holds no power of its own: a release reads the rows of
    `check_id` in `gate_results`.
    """

    check_id: str
    space_id: str
    use: str | None
    model_id: str | None


@dataclass(frozen=True, slots=True)
class Check:
    """All gates of one space at one moment.

    Attributes:
        use, model_id: what it is to be released for, and with; None where it was only looked at.
        embeddings_version: Delta version of `embeddings` before anything was measured.
    """

    space: Space
    use: str | None
    model_id: str | None
    at: datetime
    embeddings_version: int
    gates: tuple[Gate, ...] = ()

    @classmethod
    def begin(cls, lake: Lake, space: Space, *, use: str | None, model_id: str | None = None, at: datetime) -> Check:
        """A check without gates, of the vectors that the lake holds now."""
        return cls(space, use, model_id, at, lake.version("embeddings"))

    @property
    def check_id(self) -> str:
        """Hash of everything but the gates."""
        return stable_hash(f"{self.space.space_id} {self.use} {self.model_id} {self.at.isoformat()}")

    @property
    def failed(self) -> list[Gate]:
        """The gates that stop a release."""
        return [gate for gate in self.gates if gate.passed is False]

    def as_json(self) -> dict[str, Any]:
        """The check as plain values: whether nothing failed, and every gate."""
        return {
            "check_id": self.check_id,
            "space_id": self.space.space_id,
            "space": self.space.name,
            "at": self.at.isoformat(),
            "embeddings_version": self.embeddings_version,
            "passed": not self.failed,
            "gates": [asdict(gate) | {"passed": gate.passed} for gate in self.gates],
        }

    def require_passed(self) -> PassedCheck:
        """The proof of a passed check, for a release. Raises GateFailed, which names the gates that failed."""
        if failed := self.failed:
            lines = "".join(f"\n  {gate}" for gate in failed)
            where = f"see table gate_results, check_id {self.check_id}"
            raise GateFailed(f"embedding space {self.space} did not pass {len(failed)} gates:{lines}\n{where}")
        return self._passed()

    def waived(self, lake: Lake, *, reason: str, written_at: datetime) -> PassedCheck:
        """The proof that a release asks for, whatever the gates came to; the reason gets its own row in `gate_results`.

        Raises: InputError: no reason.
        """
        if not reason.strip():
            raise InputError(f"check of embedding space {self.space}: a waiver needs a reason, found none")
        _enter(lake, self, [not_applicable(WAIVED, reason)], written_at)
        return self._passed()

    def _passed(self) -> PassedCheck:
        return PassedCheck(self.check_id, self.space.space_id, self.use, self.model_id)


def record(lake: Lake, check: Check, *, written_at: datetime) -> None:
    """Enter the gates of a check in `gate_results`."""
    _enter(lake, check, check.gates, written_at)


def require_allowed(
    lake: Lake, check: PassedCheck, *, use: str, space: Space, model_id: str | None, served: bool
) -> None:
    """Raise GateFailed unless the rows of a check in `gate_results` allow this release with the vectors of now.

    Args: served: the use runs on this space already, so that vectors added to it since are served anyway.
    """
    rows = lake.read("gate_results", where=pc.field("check_id") == check.check_id).to_pylist()
    name = f"check {check.check_id[:12]}"
    again = "run moonlake release promote, which checks and releases"
    if not rows:
        raise GateFailed(f"{name} has no rows in gate_results, so {space} is not released for {use}: {again}")
    wanted = {"space_id": space.space_id, "use": use, "model_id": model_id}
    for found in [*rows, {key: getattr(check, key) for key in wanted}]:
        if different := [key for key, value in wanted.items() if found[key] != value]:
            key = different[0]
            raise GateFailed(
                f"{name} is of another {key}: expected {wanted[key]}, found {found[key]}; a release needs a check of "
                f"its own space, use and model: {again}"
            )
    if not any(row["gate"] == WAIVED for row in rows):
        _require_every_gate(rows, name, OF_SPACE if model_id is None else (*OF_SPACE, *OF_CLICK_MODEL))
    checked = {row["embeddings_version"] for row in rows}
    if changes := _changes_since(lake, space, checked, additions=not served):
        versions = ", ".join(sorted(map(str, checked)))
        raise GateFailed(
            f"{name} looked at version {versions} of the table embeddings, which is at version "
            f"{lake.version('embeddings')} now, and {changes}: while nothing writes vectors of this space (a backfill, "
            f"the intake stream, a compaction), {again}"
        )


def _changes_since(lake: Lake, space: Space, checked: set[int | None], *, additions: bool) -> str:
    """Words for what became of a space's vectors since a version of `embeddings`; none where they are as they were.

    A file counts unless its statistics say that it holds no row of the space.

    Args: additions: whether a file that was added counts.
    """
    now = lake.version("embeddings")
    if checked == {now}:
        return ""
    [version] = checked if len(checked) == 1 else [None]
    if version is None or version < 0:
        return "what changed since cannot be read"
    try:
        then, latest = _files(lake, space, version), _files(lake, space, now)
    except NotFound:
        return "what changed since cannot be read"
    if gone := len(then - latest):
        return f"{gone} files with vectors of {space.name} were rewritten or removed since"
    if (added := len(latest - then)) and additions:
        return f"{added} files with vectors of {space.name} were added since"
    return ""


def _files(lake: Lake, space: Space, version: int) -> set[str]:
    """The files of a version of `embeddings` that may hold vectors of a space."""
    files = pa.table(lake.open("embeddings", version).get_add_actions(flatten=True)).to_pylist()
    wanted = space.space_id
    return {
        file["path"]
        for file in files
        if (file.get("min.space_id") or wanted) <= wanted <= (file.get("max.space_id") or wanted)
    }


def _require_every_gate(rows: Sequence[Mapping[str, Any]], name: str, wanted: Sequence[str]) -> None:
    """Raise GateFailed unless each of these gates has a row, and none failed."""
    if failed := sorted(row["gate"] for row in rows if row["passed"] is False):
        raise GateFailed(f"{name} did not pass {', '.join(failed)}, and its failure was not waived")
    if missing := [gate for gate in wanted if gate not in {row["gate"] for row in rows}]:
        raise GateFailed(f"{name} left out {', '.join(missing)}: a release asks for every gate")


def _enter(lake: Lake, check: Check, gates: Sequence[Gate], written_at: datetime) -> None:
    rows = [
        {
            "check_id": check.check_id,
            "space_id": check.space.space_id,
            "use": check.use,
            "model_id": check.model_id,
            "gate": gate.name,
            "passed": gate.passed,
            "value": gate.value,
            "minimum": gate.minimum,
            "maximum": gate.maximum,
            "detail": gate.detail,
            "embeddings_version": check.embeddings_version,
            "event_timestamp": check.at,
        }
        for gate in gates
    ]
    table = pa.Table.from_pylist(rows, arrow_schema(GATE_RESULTS, GATE_RESULTS.facts))
    lake.append("gate_results", table, written_at=written_at, writer=__name__)
