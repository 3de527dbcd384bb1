"""`moonlake check consistency` on a small lake, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.check_consistency import parse_duration
from moonlake.errors import InputError
from moonlake.feast_delta.store import apply
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]
SHOWN = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def moonlake(settings: Settings, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs a command on a lake with one product and one user, both served and asked for once."""
    write_rows(settings, "products", [{"product_id": "p", "price_cents": 900, "event_timestamp": SHOWN}])
    write_rows(settings, "users", [{"user_id": "u", "segment": "loyal", "event_timestamp": SHOWN}])
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))
    apply(settings)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    assert run("feature", "materialize", "--end", "2026-01-06T00:00:00Z").exit_code == 0
    assert run("feature", "online", "user_id=u", "product_id=p", "--log").exit_code == 0
    return run


def test_a_logged_request_is_replayed(moonlake: Callable[..., Result], settings: Settings, write_rows: Write) -> None:
    served = moonlake("check", "consistency")
    assert served.exit_code == 0, served.stderr
    lines = served.stdout.splitlines()
    assert lines[0] == "ctr_ranking_v1: 1 logged rows, as of served, 100.00% match"
    assert lines[1].split() == ["feature", "match", "neither", "mismatch", "missing", "extra", "unknown"]
    late = {"product_id": "p", "price_cents": 7, "event_timestamp": SHOWN + timedelta(hours=1)}
    write_rows(settings, "products", [late])
    found = moonlake("check", "consistency", "--as-of", "request", "--fail-under", "0.99")
    assert found.exit_code == 1
    row = next(line for line in found.stdout.splitlines() if line.startswith("product_profile_v1__price_cents "))
    assert row.split()[1:] == ["0", "0", "1", "0", "0", "0"]
    assert "online 900, offline 7" in found.stdout
    assert found.stderr.endswith("of the values match, less than 99.00%\n")
    report = json.loads(moonlake("check", "consistency", "--as-of", "request", "--json").stdout)
    prices = next(each for each in report["features"] if each["feature"] == "product_profile_v1__price_cents")
    assert (prices["mismatch"], prices["examples"][0]["online"]) == (1, 900)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--as-of", "now"], "--as-of is request or served, found 'now'"),
        (["--lag", "soon"], "'soon': expected a number and a unit"),
        (["--service", "ctr_v9"], "no feature service ctr_v9"),
        (["--service", "similar_products_v1"], "there is no Delta table at"),
        (["--until", "2020-01-01T00:00:00"], "has no time zone"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    moonlake: Callable[..., Result], options: list[str], message: str
) -> None:
    result = moonlake("check", "consistency", *options)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_durations_have_a_unit() -> None:
    assert [parse_duration(text) / timedelta(minutes=1) for text in ("90s", "2m", "0.5h", "1d")] == [1.5, 2, 30, 1440]
    with pytest.raises(InputError):
        parse_duration("15")
