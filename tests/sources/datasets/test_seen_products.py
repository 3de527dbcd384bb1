from __future__ import annotations

import numpy as np
import pyarrow as pa

from sources.datasets.seen_products import SeenProducts, codes_of, mixed


def slow_twin(ids: list[int], times: list[int], states: list[int], cuts: list[int]) -> tuple[list[bool], list[int]]:
    """Row by row: a state begins where a product says something else; `since` is the earliest time up to its batch."""
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    begins, since = [], []
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        for row in range(begin, end):
            begins.append(last.get(ids[row]) != states[row])
            last[ids[row]] = states[row]
            first[ids[row]] = min(first.get(ids[row], times[row]), times[row])
        since += [first[ids[row]] for row in range(begin, end)]
    return begins, since


def test_states_and_first_sights_agree_with_a_row_by_row_twin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(0, 60))
        ids, times, states = rng.integers(1, 12, count), rng.integers(0, 1_000, count), rng.integers(1, 3, count)
        cuts = sorted(rng.integers(0, count + 1, 3).tolist())
        seen = SeenProducts()
        parts = [
            seen.take(ids[begin:end], times[begin:end], states[begin:end].astype(np.uint64))
            for begin, end in zip([0, *cuts], [*cuts, count], strict=True)
        ]
        expected = slow_twin(ids.tolist(), times.tolist(), states.tolist(), cuts)
        assert np.concatenate([begins for begins, _ in parts]).tolist() == expected[0]
        assert np.concatenate([since for _, since in parts]).tolist() == expected[1]
        earliest = {key: min(times[ids == key].tolist()) for key in sorted(set(ids.tolist()))}
        assert dict(zip(seen.ids.tolist(), seen.first_us.tolist(), strict=True)) == earliest


def test_codes_tell_values_apart_and_are_the_same_in_every_batch() -> None:
    column = pa.chunked_array([["a", None, "b", "a"]])
    codes = codes_of(column)
    assert codes[0] == codes[3] == codes_of(pa.chunked_array([["c", "a"]]))[1]
    assert len(set(codes.tolist())) == 3
    assert codes[1] == 0
    assert len(set(mixed(np.arange(1_000)[:, None], np.arange(100)).ravel().tolist())) == 100_000
