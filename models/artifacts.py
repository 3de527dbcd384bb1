"""Artifacts: a folder with a trained model, and one JSON file beside it that says what it is and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from moonlake.errors import InputError, NotFound
from moonlake.hashing import hash_of_file, stable_hash

Config = TypeVar("Config")

FORMAT = 1
"""Version of the JSON file; a reader refuses any other."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """The contents of an artifact's JSON file.

    Attributes:
        kind: "encoder" or "ctr"; the file is called `<kind>.json`.
        config: the experiment's configuration, as plain values.
        tables: Delta version of each table that was read.
        trained_until: latest event that training saw; None when it saw none.
        metrics: figures of the training run.
        files: hash of every other file of the folder, by relative path.
    """

    kind: str
    config: Mapping[str, Any]
    tables: Mapping[str, int]
    trained_until: datetime | None
    metrics: Mapping[str, float]
    files: Mapping[str, str]

    def files_hash(self, *patterns: str) -> str:
        """One hash over the files of which the path matches a pattern: what makes two models the same model."""
        chosen = {name: found for name, found in self.files.items() if any(Path(name).match(p) for p in patterns)}
        return stable_hash(json.dumps(chosen, sort_keys=True))


def write_artifact(
    folder: Path,
    kind: str,
    config: object,
    *,
    tables: Mapping[str, int],
    trained_until: datetime | None,
    metrics: Mapping[str, float],
) -> Artifact:
    """Seal a folder in which the model's files lie already: hashes every file and writes `<kind>.json`.

    Args: config: a dataclass.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"the configuration of an artifact is a dataclass, not {type(config)}")
    files = {path.relative_to(folder).as_posix(): hash_of_file(path) for path in _files(folder)}
    artifact = Artifact(kind, asdict(config), dict(tables), trained_until, dict(metrics), files)
    document = {"format": FORMAT, **asdict(artifact)}
    document["trained_until"] = trained_until.isoformat() if trained_until else None
    (folder / f"{kind}.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return artifact


def read_artifact(folder: Path, kind: str) -> Artifact:
    """The artifact in a folder, after every file was held against its hash.

    Raises:
        NotFound: no artifact of that kind there.
        InputError: another format, an unknown key, or a file that is missing or was changed.
    """
    path = Path(folder) / f"{kind}.json"
    if not path.is_file():
        raise NotFound(f"no {kind} artifact at {folder}: there is no {path.name}")
    document = json.loads(path.read_text())
    if (found := document.pop("format", None)) != FORMAT:
        raise InputError(f"{path}: format {found}; this version of moonlake reads {FORMAT}: train again")
    if document["trained_until"] is not None:
        document["trained_until"] = datetime.fromisoformat(document["trained_until"])
    artifact = config_from(Artifact, document, where=str(path))
    for name, expected in artifact.files.items():
        file = Path(folder) / name
        if not file.is_file() or hash_of_file(file) != expected:
            raise InputError(f"{file} is missing or was changed after {path.name} was written: train again")
    return artifact


def config_from(kind: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """A configuration dataclass, nested ones included, from plain values.

    Raises: InputError: a key that the dataclass does not have, or one that it needs, named with `where`.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise InputError(f"{where}: unknown keys {', '.join(unknown)}; {kind.__name__} has {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    built = dict(values)
    for name, value in values.items():
        for hint in (hints[name], *get_args(hints[name])):  # the configuration itself, or one that may be None
            if isinstance(hint, type) and is_dataclass(hint) and value is not None:
                built[name] = config_from(hint, value, where=f"{where}: {name}")
    try:
        return kind(**built)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
