from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from moonlake.embeddings import releases, spaces
from moonlake.lake.lake import Lake
from moonlake.settings import Settings

DAY = datetime(2026, 3, 1, tzinfo=UTC)
DEFINITION = spaces.SpaceDefinition("w", "t", "none", "text", ("title",), "mean", "l2", "float16", 2)


@pytest.fixture(autouse=True)
def two_spaces(lake: Lake, release_waived: Callable[..., releases.Release]) -> None:
    """A complete space on which similar products run, and one that is being filled."""
    other = replace(DEFINITION, weights="other", pooling="last")
    spaces.register(
        lake,
        DEFINITION,
        name="old",
        artifact="encoders/old",
        trained_until=DAY,
        metrics={"hit_10": 0.25},
        status="candidate",
        coverage=1.0,
        written_at=DAY,
    )
    spaces.register(
        lake,
        other,
        name="new",
        artifact="encoders/new",
        trained_until=None,
        metrics={"hit_10": 0.5},
        coverage=0.4,
        written_at=DAY + timedelta(hours=1),
    )
    release_waived(lake, "similar_products", DEFINITION.space_id, written_at=DAY + timedelta(hours=2))


def ask(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["space", *arguments], env=settings.environment())


def test_the_list_says_how_each_stands_and_what_runs_on_it(settings: Settings) -> None:
    _, old, new = ask(settings, "list").stdout.splitlines()
    assert old.split() == [
        "old", DEFINITION.space_id[:12], "live", "2", "100.00%", "2026-03-01", "00:00", "similar_products"]  # fmt: skip
    assert new.split()[2:] == ["building", "2", "40.00%", "on", "nothing"]
    listed = json.loads(ask(settings, "list", "--json").stdout)
    assert [(one["name"], one["runs"]) for one in listed] == [("old", ["similar_products"]), ("new", [])]


def test_a_space_is_shown_with_what_makes_it_and_its_life(settings: Settings) -> None:
    shown = ask(settings, "show", "old").stdout
    for line in ("  pooling: mean", "  hit_10: 0.25", "runs: similar_products", "ctr_models: none"):
        assert line in shown.splitlines()
    found = json.loads(ask(settings, "show", DEFINITION.space_id[:8], "--json").stdout)
    assert [at["status"] for at in found["life"]] == ["candidate", "live"]
    assert found["definition"]["content_fields"] == ["title"]


def test_a_difference_names_the_parts_that_differ_and_no_other(settings: Settings) -> None:
    said = ask(settings, "diff", "old", "new").stdout.splitlines()
    assert said[said.index("definition: pooling") + 1 :][:2] == ["  mean", "  last"]
    assert said[said.index("metrics: hit_10") + 1 :][:2] == ["  0.25", "  0.5"]
    assert not any("dimension" in line for line in said)
    assert ask(settings, "diff", "old", "old").stdout == "old and old are one space\n"


def test_what_something_runs_on_is_not_retired(settings: Settings, lake: Lake) -> None:
    refused = ask(settings, "retire", "old")
    assert refused.exit_code == 1
    assert "similar_products runs on it" in refused.stderr
    assert "retired" in ask(settings, "retire", "new").stdout
    assert releases.find(lake, "new").status == "retired"
    unknown = ask(settings, "show", "nwe")
    assert "no embedding space 'nwe'; there are old" in unknown.stderr
