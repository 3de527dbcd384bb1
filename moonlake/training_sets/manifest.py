"""The manifest of a training set: everything that reproduces it, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from moonlake.hashing import stable_hash
from moonlake.training_sets.spec import TrainingSetSpec

SPEC_KEY = "declaration"
"""Key of the specification in `manifest.json`: files of 0.1 stay readable, and their hashes stay the same."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that reproduces a training set, and what came of it.

    Attributes:
        training_set_id: hash of all the rest.
        table_versions: Delta version read, by table name; -1 for a table that had not been written.
        definitions: the feature views as they were defined, and `definitions_hash` of them.
        code_version: version of moonlake that built it.
        libraries: versions of what decides how rows become bytes.
        label_key: columns that name a row.
        label_hash: hash of the label rows, in order.
        columns: Arrow type by the name of each stored column.
        files: hash of each file below `rows`, by its name.
    """

    spec: TrainingSetSpec
    table_versions: dict[str, int]
    definitions: list[dict[str, Any]]
    definitions_hash: str
    code_version: str
    libraries: dict[str, str] = field(default_factory=dict)
    label_key: tuple[str, ...] = ("impression_id",)
    label_hash: str = ""
    rows: int = 0
    columns: dict[str, str] | None = None
    files: dict[str, str] | None = None

    @property
    def training_set_id(self) -> str:
        """Hash of everything in the manifest."""
        return stable_hash(json.dumps(self._document(), sort_keys=True))

    @property
    def start(self) -> datetime:
        """First moment of the label window."""
        return self.spec.start

    @property
    def end(self) -> datetime:
        """Moment behind the label window."""
        return self.spec.end

    @property
    def space_id(self) -> str | None:
        """The embedding space of the specification; None where that is left open."""
        return self.spec.space_id

    def same_inputs(self, other: Manifest) -> bool:
        """True when both were made of the same inputs, so that they hold the same rows."""
        return self._inputs() == other._inputs()

    def as_json(self) -> str:
        """The manifest as it stands in `manifest.json`: sorted, so that equal manifests are equal bytes."""
        document = {"training_set_id": self.training_set_id, **self._document()}
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The manifest that `as_json` wrote."""
        document = json.loads(text)
        document.pop("training_set_id")
        spec = document.pop(SPEC_KEY)
        for name in ("start", "end", "settled_by"):
            spec[name] = datetime.fromisoformat(spec[name])
        for name in ("label_key", "label_columns"):
            spec[name] = tuple(spec.get(name, ()))
        document["label_key"] = tuple(document.get("label_key", ("impression_id",)))
        return cls(spec=TrainingSetSpec(**spec), **document)

    def _inputs(self) -> dict[str, Any]:
        document = self._document()
        names = (SPEC_KEY, "table_versions", "definitions_hash", "code_version", "libraries")
        return {name: document[name] for name in names}

    def _document(self) -> dict[str, Any]:
        document = asdict(self)
        spec = document.pop("spec") | {"settled_by": self.spec.settled}
        moments = {name: spec[name].astimezone(UTC).isoformat() for name in ("start", "end", "settled_by")}
        return document | {SPEC_KEY: spec | moments}


def describe(manifest: Manifest) -> dict[str, Any]:
    """A training set's facts for people, by name."""
    spec = manifest.spec
    return {
        "training_set_id": manifest.training_set_id,
        "rows": manifest.rows,
        "window": f"[{spec.start.isoformat()}, {spec.end.isoformat()})",
        "labels": f"{spec.label_table}, settled by {spec.settled.isoformat()}",
        "feature service": spec.feature_service,
        "sequence length": ", ".join(f"{view} {length}".strip() for view, length in spec.lengths.items()),
        "sequences": spec.sequences,
        "known by": spec.known_by,
        "space": spec.space_id or "open",
        "table versions": manifest.table_versions,
        "columns": ", ".join(manifest.columns or {}),
    }
