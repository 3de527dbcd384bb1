"""The application beside the library: commands, models, sources and jobs, which only a checkout has.

The library imports none of them, with this file as the one exception (tests/test_layers.py): the `moonlake` command
and the parts of `moonlake.open()` that need a model reach them by name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from moonlake.errors import MissingDependency
from moonlake.extras import naming_extras


def room(module: str, checkout: Path, *, asked_for: str) -> ModuleType:
    """The module of a checkout, such as cli.app, for what a user asked for.

    Raises: MissingDependency: there is no checkout, or an extra that the module needs is not installed.
    """
    if not (checkout / "cli" / "app.py").is_file():
        raise MissingDependency(
            f"{asked_for} runs from a checkout of moonlake, and {checkout} is none: set MOONLAKE_CHECKOUT to one"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    with naming_extras():
        return import_module(module)
