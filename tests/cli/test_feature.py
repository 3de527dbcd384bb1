"""`moonlake feature` on a small lake, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
SHOWN = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def moonlake(settings: Settings, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs a command on a lake with one product, one user and one settled impression."""
    write_rows(settings, "products", [{"product_id": "p", "price_cents": 900, "event_timestamp": SHOWN}])
    write_rows(settings, "users", [{"user_id": "u", "segment": "loyal", "event_timestamp": SHOWN}])
    shown = {"impression_id": "i", "user_id": "u", "product_id": "p", "event_timestamp": SHOWN}
    write_rows(settings, "impressions", [{**shown, "clicked": True, "label_time": SHOWN + timedelta(hours=1)}])
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return run


def test_definitions_are_applied_materialised_and_read_online(moonlake: Callable[..., Result]) -> None:
    applied = moonlake("feature", "apply")
    assert applied.exit_code == 0, applied.output
    assert "similar_products_v1: content_embedding_v1" in applied.stdout
    views = ["product_profile_v1", "user_profile_v1"]
    materialised = moonlake("feature", "materialize", *views, "--end", "2026-01-06T00:00:00Z")
    assert materialised.stdout == "".join(
        f"{view}: 1 of 1 keys written up to 2026-01-06T00:00:00+00:00, from version 0 (first run)\n" for view in views
    )
    again = moonlake("feature", "materialize", *views, "--end", "2026-01-06T00:00:00Z")
    assert "product_profile_v1: 0 of 0 keys written" in again.stdout
    assert "(changed keys)" in again.stdout
    online = json.loads(moonlake("feature", "online", "user_id=u", "product_id=p").stdout)
    assert (online["segment"], online["price_cents"], online["user_clicks_7d"]) == ("loyal", 900, None)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["feature", "online", "user_id=u"], "is read by the join keys ['product_id', 'user_id'], found ['user_id']"),
        (["feature", "online", "user_id", "product_id=p"], "write user_id=VALUE"),
        (["feature", "materialize", "stats"], "no feature views ['stats']"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    moonlake: Callable[..., Result], command: list[str], message: str
) -> None:
    moonlake("feature", "apply")
    result = moonlake(*command)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
