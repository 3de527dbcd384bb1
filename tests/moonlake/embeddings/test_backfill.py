from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonlake.embeddings.backfill import ROWS_PER_CHUNK, Backfill, BackfillProgress, Plan

ROWS = pa.table({"content_id": ["a"], "vector": [[0.6, 0.8]]})


@pytest.fixture
def backfill(tmp_path: Path) -> Backfill:
    return Backfill(tmp_path, "space")


@pytest.mark.parametrize(
    ("contents", "chunks"), [(0, 1), (1, 1), (ROWS_PER_CHUNK, 1), (ROWS_PER_CHUNK + 1, 2), (100_000_000, 262_144)]
)
def test_chunks_are_as_many_as_their_size_asks_for(backfill: Backfill, contents: int, chunks: int) -> None:
    assert backfill.plan(contents).chunks == chunks


def test_a_plan_stands_until_it_is_finished(backfill: Backfill) -> None:
    assert backfill.current() is None
    plan = backfill.plan(5_000)
    assert backfill.plan(7) == plan == Backfill(backfill.folder.parent, "space").current()
    backfill.finish()
    assert backfill.current() is None
    assert not backfill.folder.exists()
    assert backfill.plan(7) != plan


def test_what_is_kept_is_done_and_so_is_all_once_the_plan_is_finished(backfill: Backfill) -> None:
    plan = backfill.plan(5_000)
    backfill.keep(plan, 3, ROWS)
    assert [backfill.is_done(plan, chunk) for chunk in (2, 3)] == [False, True]
    assert pq.read_table(backfill.kept(plan)[0]).equals(ROWS)
    backfill.finish()
    assert backfill.is_done(plan, 2)
    backfill.keep(plan, 2, ROWS)  # a worker that was still at it
    assert not backfill.folder.exists()


def test_a_worker_of_an_older_plan_adds_nothing_to_a_newer_one(backfill: Backfill) -> None:
    old = backfill.plan(5_000)
    backfill.finish()
    new = backfill.plan(5_000)
    backfill.keep(old, 2, ROWS)
    assert backfill.kept(new) == []
    assert backfill.is_done(old, 1)
    assert not backfill.is_done(new, 2)


def test_progress_counts_what_is_kept_and_how_fast_it_came(backfill: Backfill) -> None:
    plan = backfill.plan(8 * ROWS_PER_CHUNK)
    assert str(backfill.progress(plan)) == "about 0 of 4,096 contents embedded"
    backfill.keep(plan, 0, ROWS)
    assert str(backfill.progress(plan)) == "about 512 of 4,096 contents embedded"
    half = BackfillProgress(plan, done=4, last=130.0, recent=4, first=100.0)
    assert half.rate == pytest.approx(3 * 512 / 30)
    assert str(half) == "about 2,048 of 4,096 contents embedded, 51/s, 40 s left"


def test_a_pause_does_not_count_in_how_fast_it_goes(backfill: Backfill) -> None:
    plan = backfill.plan(8 * ROWS_PER_CHUNK)
    for chunk, at in enumerate((10_000, 20_000, 20_010, 20_020)):  # killed after the first
        backfill.keep(plan, chunk, ROWS)
        os.utime(backfill.kept(plan)[chunk], (at, at))
    found = backfill.progress(plan)
    assert (found.done, found.last, found.recent) == (4, 20_020, 3)
    assert found.rate == pytest.approx(512 / 10)


def _hold(home: Path, inside: Event) -> None:
    with Backfill(home, "space").exclusive():
        inside.set()
        time.sleep(60)


def test_one_worker_is_alone_until_it_dies(tmp_path: Path, backfill: Backfill) -> None:
    context = multiprocessing.get_context("spawn")
    inside = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, inside))
    other.start()
    assert inside.wait(60)
    began = time.monotonic()
    other.kill()  # -9: it cannot clean up
    with backfill.exclusive():
        assert time.monotonic() - began < 30
    other.join()


def test_a_chunk_is_named_by_the_first_bits_of_its_contents() -> None:
    plan = Plan("p", bits=3, contents=0, began=0.0)
    assert plan.chunk_sql == "shiftright(cast(conv(substring(content_id, 1, 8), 16, 10) AS bigint), 29)"
