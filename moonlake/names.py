"""Names that users give to sources, training sets, encoders and click models: each becomes the name of a folder."""

from __future__ import annotations

import re

from moonlake.errors import InputError

LONGEST = 64
"""Characters: an id of 64 hex digits is a name too."""

PATTERN = rf"^\w[\w.\-]{{0,{LONGEST - 1}}}$"
"""A plain folder name, as a regular expression that Python, JSON schemas and browsers read alike for ASCII."""


def require_name(kind: str, name: str) -> str:
    """The name itself. Raise InputError unless it is a plain folder name.

    >>> require_name("training set", "january-2026")
    'january-2026'
    >>> require_name("training set", "../january")
    Traceback (most recent call last):
    moonlake.errors.InputError: training set name '../january': expected letters, digits, '_', '-' and '.', ...
    """
    if not is_name(name):
        shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
        raise InputError(
            f"{kind} name {shown!r}: expected letters, digits, '_', '-' and '.', "
            f"first a letter, a digit or '_', at most {LONGEST} characters"
        )
    return name


def is_name(text: str) -> bool:
    """True for a plain folder name.

    >>> is_name("january-2026"), is_name("/data/january")
    (True, False)
    """
    return re.fullmatch(PATTERN, text) is not None and not text.endswith("\n")
