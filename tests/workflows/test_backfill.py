"""The state of a backfill; tests/spark_jobs/test_embed_contents.py runs one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from cli.app import app
from moonlake.embeddings import spaces
from moonlake.embeddings.backfill import Backfill
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows import backfill

DAY = datetime(2026, 3, 1, tzinfo=UTC)
DEFINITION = spaces.SpaceDefinition("w", "t", "none", "text", ("title",), "mean", "l2", "float16", 2)


@pytest.fixture
def space(lake: Lake) -> spaces.Space:
    """A space that is to be filled."""
    return spaces.register(
        lake, DEFINITION, name="next", artifact="a", trained_until=None, metrics={}, written_at=DAY
    )  # fmt: skip


def test_without_a_plan_nothing_is_under_way(settings: Settings, space: spaces.Space) -> None:
    found = backfill.status(settings, "next", now=DAY)
    assert (found.space.space_id, found.progress, found.stalled) == (space.space_id, None, False)


def test_a_backfill_to_which_nothing_is_added_is_stalled_after_five_minutes(
    settings: Settings, space: spaces.Space
) -> None:
    plan = Backfill(settings.backfills, space.space_id).plan(5)
    began = datetime.fromtimestamp(plan.began, UTC)
    for minutes, stalled in ((0, False), (4.9, False), (5.1, True)):
        found = backfill.status(settings, "next", now=began + timedelta(minutes=minutes))
        assert found.stalled == stalled
    told = CliRunner().invoke(app, ["backfill", "status", "next", "--json"], env=settings.environment())
    report = json.loads(told.stdout)
    assert (report["under_way"], report["contents"], report["embedded"]) == (True, 5, 0)
    assert report["space"]["name"] == "next"
