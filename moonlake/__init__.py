"""A feature store for multimodal product representations in e-commerce search advertising.

    import moonlake

    home = moonlake.open()
    rows = home.table("products").to_pandas()

docs/python_api.md shows the rest. Names are loaded when they are asked for: `import moonlake` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from moonlake.version import __version__

if TYPE_CHECKING:
    from moonlake.embeddings.releases import Release
    from moonlake.embeddings.snapshots import Snapshot
    from moonlake.embeddings.spaces import Space
    from moonlake.embeddings.vectors import Vectors
    from moonlake.errors import (
        ContractError,
        InputError,
        MissingDependency,
        MoonlakeError,
        NotFound,
        PointInTimeError,
        SettingsError,
        SpaceMismatch,
    )
    from moonlake.home import Home, Scored, Submission
    from moonlake.home import open_home as open
    from moonlake.lake.lake import Lake, WriteReport
    from moonlake.lake.lake_table import LakeTable
    from moonlake.settings import Settings
    from moonlake.training_sets.spec import TrainingSetSpec
    from moonlake.training_sets.training_set import TrainingSet

__all__ = [
    "ContractError",
    "Home",
    "InputError",
    "Lake",
    "LakeTable",
    "MissingDependency",
    "MoonlakeError",
    "NotFound",
    "PointInTimeError",
    "Release",
    "Scored",
    "Settings",
    "SettingsError",
    "Snapshot",
    "Space",
    "SpaceMismatch",
    "Submission",
    "TrainingSet",
    "TrainingSetSpec",
    "Vectors",
    "WriteReport",
    "__version__",
    "open",
]

_FOUND_IN = {
    "moonlake.embeddings.releases": ("Release",),
    "moonlake.embeddings.snapshots": ("Snapshot",),
    "moonlake.embeddings.spaces": ("Space",),
    "moonlake.embeddings.vectors": ("Vectors",),
    "moonlake.errors": (
        "ContractError",
        "InputError",
        "MissingDependency",
        "MoonlakeError",
        "NotFound",
        "PointInTimeError",
        "SettingsError",
        "SpaceMismatch",
    ),
    "moonlake.home": ("Home", "Scored", "Submission", "open"),
    "moonlake.lake.lake": ("Lake", "WriteReport"),
    "moonlake.lake.lake_table": ("LakeTable",),
    "moonlake.settings": ("Settings",),
    "moonlake.training_sets.spec": ("TrainingSetSpec",),
    "moonlake.training_sets.training_set": ("TrainingSet",),
}


def __getattr__(name: str) -> object:
    for module, names in _FOUND_IN.items():
        if name in names:
            found = globals()[name] = getattr(import_module(module), {"open": "open_home"}.get(name, name))
            return found
    raise AttributeError(f"module 'moonlake' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
