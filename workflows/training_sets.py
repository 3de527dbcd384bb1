"""A training set verified against what it was made of, and built again from a manifest."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from moonlake.errors import MoonlakeError
from moonlake.settings import Settings
from moonlake.training_sets import build
from moonlake.training_sets import verify as verification
from moonlake.training_sets.build import BuildReport
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.training_set import TrainingSet


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of verifying a training set.

    Attributes:
        problems: one line for each thing that is wrong.
        notes: differences of a rebuild that do its rows no harm.
        reproducible_until: from then on a table may lose what the set was made of; None where no table can tell.
    """

    folder: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    reproducible_until: datetime | None


def verify(settings: Settings, name: str, *, rebuild: bool = False) -> Verified:
    """The training set of that name held against its manifest, tables and space, and against a rebuild if asked for."""
    folder = settings.training_set(name)
    found = verification.verify(settings, folder)
    problems, notes = found.problems, tuple[str, ...]()
    if rebuild and not problems:
        again = folder.with_name(f".{name}.rebuilt")
        try:
            notes = build.replay(settings, TrainingSet.open(folder).manifest, again, written_at=None).warnings
        except MoonlakeError as error:
            problems = (str(error),)
        finally:
            shutil.rmtree(again, ignore_errors=True)
    return Verified(folder, problems, notes, found.reproducible_until)


def rebuild(settings: Settings, name: str, manifest: str, *, written_at: datetime) -> BuildReport:
    """A training set of that name, byte for byte as a manifest says.

    Args: manifest: a `manifest.json`, or the name of a training set.
    """
    folder = settings.training_set(name)
    if os.path.isfile(manifest):  # false too for what can be no path
        stated = Manifest.from_json(Path(manifest).read_text(encoding="utf-8"))
    else:
        stated = TrainingSet.open(settings.training_set(manifest)).manifest
    return build.replay(settings, stated, folder, written_at=written_at)
