"""`moonlake erase` as a person types it: what is searched and found, and the exit code that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.settings import Settings

Write = Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]


@pytest.fixture
def erase(settings: Settings, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs a command on a lake with one product and one user."""
    write_rows(settings, "products", [{"product_id": "p"}])
    write_rows(settings, "users", [{"user_id": "u"}])
    monkeypatch.setenv("MOONLAKE_HOME", str(settings.home))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["erase", *arguments])

    return run


def test_a_check_exits_with_1_where_something_is_found(erase: Callable[..., Result]) -> None:
    found = erase("check", "user", "u", "somebody")
    assert found.exit_code == 1
    assert "searched lake/users: 2 files" in found.stdout
    assert found.stderr.startswith("lake/users: lake/users/")
    nothing = erase("check", "user", "p")
    assert (nothing.exit_code, nothing.stdout.splitlines()[-1]) == (0, "nothing is left")


def test_a_dry_run_says_what_would_go_and_changes_nothing(erase: Callable[..., Result]) -> None:
    for _ in range(2):
        told = erase("product", "p", "--dry-run")
        assert told.exit_code == 0
        assert told.stdout.startswith("would remove or change 1 rows of lake/products\nnamed in lake/products: ")


def test_json_says_what_was_found_and_where(erase: Callable[..., Result]) -> None:
    found = erase("check", "user", "u", "--json")
    report = json.loads(found.stdout)
    assert (found.exit_code, report["left_in"], report["models"]) == (1, ["lake/users"], [])
    (found_in,) = (one["found"] for one in report["searched"] if one["store"] == "lake/users")
    assert sorted(Path(path).suffix for path in found_in) == [".json", ".parquet"]
    planned = json.loads(erase("product", "p", "--dry-run", "--json").stdout)
    assert planned["removed"] == {"lake/products": 1}


def test_nothing_but_products_and_users_is_erased(erase: Callable[..., Result]) -> None:
    result = erase("check", "merchant", "m")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'merchant' cannot be erased" in result.stderr
