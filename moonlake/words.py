"""Words like NAME=VALUE, as the options of commands have them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from moonlake.errors import InputError


def values_by_name(words: Sequence[str], option: str, *, names: Collection[str] | None = None) -> dict[str, str]:
    """The value of each name, in the order of the words; what follows the first "=" is the value.

    Of a name that stands there twice the last value holds, as of any option.

    Args:
        option: what the words are of, for the errors, such as "--set".
        names: those that there are; None where any name will do.

    Raises: InputError: a word without a name or a value, or a name that there is not.

    >>> values_by_name(["user_id=u1", "query_id=a=b"], "join keys")
    {'user_id': 'u1', 'query_id': 'a=b'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            written = f"; write {name}=VALUE" if name else ""
            raise InputError(f"{option} {word!r}: expected NAME=VALUE{_of(names)}{written}")
        if names is not None and name not in names:
            raise InputError(f"{option} {word!r}: there is no {name!r}; expected NAME=VALUE{_of(names)}")
        found[name] = value
    return found


def json_by_name(
    words: Sequence[str], option: str, *, names: Collection[str] | None = None, plain_words: bool = True
) -> dict[str, Any]:
    """The same with values as JSON.

    Args: plain_words: a value that is no JSON is the word itself; else it is an error.

    >>> json_by_name(["steps=3", "loss=circle", "hidden=[64, 32]"], "--set")
    {'steps': 3, 'loss': 'circle', 'hidden': [64, 32]}
    """
    found: dict[str, Any] = {}
    for name, text in values_by_name(words, option, names=names).items():
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            if not plain_words:
                raise InputError(
                    f"{option} {name}={text}: {text!r} is not JSON; lists look like [64,32] and words like '\"a\"'"
                ) from None
            found[name] = text
    return found


def numbers_by_name(words: Sequence[str]) -> dict[str, int]:
    """Whole numbers from NAME=NUMBER, and from a bare number, which stands under "".

    >>> numbers_by_name(["50", "user_behavior_sequence_v1=1000"])
    {'': 50, 'user_behavior_sequence_v1': 1000}
    """
    found: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not number.isdecimal():
            raise InputError(f"{word!r}: expected NAME=NUMBER, such as products=3")
        found[name] = int(number)
    return found


def _of(names: Collection[str] | None) -> str:
    return "" if names is None else f" with a name of {', '.join(sorted(names))}"
