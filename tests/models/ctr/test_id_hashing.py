"""Hashes of ids: those of the standard, the same everywhere, spread as by chance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from models.ctr.id_hashing import fnv1a, hashed_rows, mixed

WORD = 2**64 - 1


def slow_row(text: str, rows: int) -> int:
    """The same in plain integers, byte by byte."""
    found = 0xCBF29CE484222325
    for octet in text.encode():
        found = ((found ^ octet) * 0x100000001B3) & WORD
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        found = ((found ^ (found >> 33)) * factor) & WORD
    return (found ^ (found >> 33)) % rows


def test_it_is_fnv1a_as_published() -> None:
    """Vectors of draft-eastlake-fnv."""
    published = {"": 0xCBF29CE484222325, "a": 0xAF63DC4C8601EC8C, "foobar": 0x85944171F73967E8}
    assert fnv1a(pa.array(list(published))).tolist() == list(published.values())


def test_rows_are_those_of_a_slow_twin() -> None:
    rng = np.random.default_rng(0)
    ids = ["", "0", "é", "a" * 70, *(f"user-{n}" * int(rng.integers(1, 4)) for n in range(500))]
    assert hashed_rows(pa.array(ids), 997).tolist() == [slow_row(one, 997) for one in ids]


def test_rows_do_not_depend_on_process_order_chunks_or_width() -> None:
    code = "import pyarrow as pa; from models.ctr.id_hashing import *; print(hashed_rows(pa.array(['u1','u2']), 10**6))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(hashed_rows(pa.array(["u1", "u2"]), 10**6))
    one = hashed_rows(pa.array(["x", "u1", None, "u2", "u1"])[1:], 10**6).tolist()
    several = pa.chunked_array([pa.array(["u1", None], pa.large_string()), pa.array(["u2", "u1"], pa.large_string())])
    assert one == hashed_rows(several, 10**6).tolist()
    assert one[0] == one[3] != one[2]
    assert one[1] == -1


def test_no_id_no_row() -> None:
    assert hashed_rows(pa.array([], pa.string()), 7).tolist() == []
    assert hashed_rows(pa.array([None, None], pa.string()), 7).tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["user-{:08d}", "{}", "{:024x}", "p{}-red"])
@pytest.mark.parametrize("rows", [2**17, 100_000, 1_000_003])
def test_as_many_ids_share_a_row_as_chance_would_have_it(name: str, rows: int) -> None:
    count = 50_000
    row_of = hashed_rows(pa.array([name.format(n) for n in range(count)]), rows)
    shared = np.mean(np.bincount(row_of, minlength=rows)[row_of] > 1)
    expected = 1 - (1 - 1 / rows) ** (count - 1)
    assert abs(shared - expected) < 0.01


def test_mixing_loses_nothing() -> None:
    assert len(np.unique(mixed(np.arange(100_000, dtype=np.uint64)))) == 100_000
