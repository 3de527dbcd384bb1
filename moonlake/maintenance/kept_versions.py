"""Versions of the lake's tables that are kept, and why; the vacuum that keeps them; the end of a table's history.

Delta's own vacuum keeps the latest version and those of the last days. Ours keeps besides every version that a training
set or a released snapshot names, and what the change feed needs from a version on. delta-rs can keep versions too, but
cannot vacuum clustered tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moonlake.embeddings.releases import running
from moonlake.embeddings.snapshots import MANIFEST
from moonlake.lake.lake import Lake
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.training_sets.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Live:
    """Something that names versions of tables, so that they are kept.

    Attributes:
        name: what it is, for people.
        versions: Delta version by the name of the table; tables that are not of the lake are left out.
    """

    name: str
    versions: dict[str, int]


def live_training_sets(settings: Settings) -> Iterator[tuple[Path, Manifest]]:
    """Folder and manifest of every training set of the home."""
    for path in sorted(settings.training_sets.glob("*/manifest.json")):
        yield path.parent, Manifest.from_json(path.read_text())


def live_manifests(settings: Settings) -> list[Live]:
    """The training sets that are there, and the snapshots of the releases that uses run on."""
    lake = Lake(settings)
    found = [
        Live(f"training set {folder.name}", _of_lake(settings, manifest.table_versions))
        for folder, manifest in live_training_sets(settings)
    ]
    for use, release in running(lake).items():
        path = Path(release.snapshot or "") / MANIFEST
        if release.snapshot and path.is_file():
            found.append(Live(f"snapshot of {use}", dict(json.loads(path.read_text())["versions"])))
    return found


def _of_lake(settings: Settings, versions: dict[str, int]) -> dict[str, int]:
    """The versions of tables of the lake, by name, also where they were named by their path."""
    paths = {Lake(settings).path(name): name for name in TABLES}
    named = {paths.get(subject, subject): version for subject, version in versions.items()}
    return {name: version for name, version in named.items() if name in TABLES and version >= 0}
