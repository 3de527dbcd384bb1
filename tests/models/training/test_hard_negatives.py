"""Hard negatives against a loop over everything, and the two indexes against each other."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.hard_negatives import MiningConfig, hard_negatives, new_index, rows_of_units
from moonlake.arrays import Float32s
from moonlake.errors import InputError


def unit(rng: np.random.Generator, count: int, dimension: int = 8) -> Float32s:
    rows = rng.normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_mined_rows_are_those_that_a_loop_over_the_pool_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool, queries, positives = unit(rng, 400), unit(rng, 600), unit(rng, 600)
    positives[:300] = queries[:300] + 0.5 * positives[:300]
    positives /= np.linalg.norm(positives, axis=1, keepdims=True)
    forbidden = [rng.choice(400, rng.integers(0, 30), replace=False) for _ in range(600)]
    config = MiningConfig(count=5, query_margin=0.1, positive_cap=0.6, depth=120)
    found = hard_negatives(queries, positives, pool, forbidden, config)
    for pair, rows in enumerate(found):
        scores = pool @ queries[pair]
        own = float(queries[pair] @ positives[pair])
        slow = [
            row
            for row in np.argsort(-scores)[:120]
            if row not in set(forbidden[pair])
            and scores[row] <= own - 0.1 * abs(own)
            and pool[row] @ positives[pair] <= 0.6
        ]
        assert rows.tolist() == slow[:5]
    assert {len(rows) for rows in found} >= {0, 5}


def test_an_inverted_file_finds_most_of_what_the_exact_search_finds() -> None:
    rng = np.random.default_rng(0)
    pool, queries = unit(rng, 3_000), unit(rng, 50)
    exact, inverted = (new_index(pool, MiningConfig(exact_up_to=limit)) for limit in (3_000, 100))
    assert type(exact) is not type(inverted)
    wanted, found = (index.search(queries, 10)[1] for index in (exact, inverted))
    assert np.mean([len({*one} & {*other}) for one, other in zip(wanted, found, strict=True)]) > 7


def test_an_empty_pool_gives_every_pair_nothing() -> None:
    rng = np.random.default_rng(0)
    queries = unit(rng, 3)
    found = hard_negatives(queries, queries, np.empty((0, 0), np.float32), [np.empty(0, np.int64)] * 3, MiningConfig())
    assert [rows.tolist() for rows in found] == [[], [], []]


def test_rows_are_found_by_every_unit_that_has_them() -> None:
    rows = rows_of_units([["a"], ["b", "a"], []])
    assert {unit: found.tolist() for unit, found in rows.items()} == {"a": [0, 1], "b": [1]}


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="count <= depth"):
        MiningConfig(count=16, depth=8)
    with pytest.raises(InputError, match="margin"):
        MiningConfig(query_margin=1.5)
