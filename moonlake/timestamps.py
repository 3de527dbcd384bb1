"""Moments as people write them on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from moonlake.errors import InputError


def parse_moment(text: str) -> datetime:
    """The moment in UTC that an ISO 8601 text names; a text without a time zone is refused, never guessed.

    Raises: InputError: not ISO 8601, or no time zone.

    >>> parse_moment("2026-02-13T01:00:00+01:00")
    datetime.datetime(2026, 2, 13, 0, 0, tzinfo=datetime.timezone.utc)
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is not a time in ISO 8601, such as 2026-02-13T00:00:00Z") from None
    if moment.tzinfo is None:
        raise InputError(f"{text!r} has no time zone: write {text}Z or {text}+00:00 for UTC")
    return moment.astimezone(UTC)
