"""The kernel against a brute-force oracle: for each label row, look at every feature row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlake.errors import PointInTimeError
from moonlake.point_in_time import (
    NO_ROW,
    KnownBy,
    as_of_rows,
    as_of_slices,
    encode_keys,
    latest_rows,
    microseconds,
    written_slices,
)

Key = tuple[str | None, int | None]


@dataclass(frozen=True)
class Case:
    """Labels (key, time), feature rows (key, time, created) and the options of a view."""

    labels: list[tuple[Key, int]]
    features: list[tuple[Key, int, int]]
    ttl: int = 0
    lag: int = 0
    known_by: KnownBy = "event"


def oracle_rows(case: Case) -> list[int]:
    """Each rule of DESIGN.md section 4 as a plain condition."""
    chosen = []
    for key, label_time in case.labels:
        time = label_time - case.lag
        eligible = [
            (event, created, row)
            for row, (feature_key, event, created) in enumerate(case.features)
            if None not in key
            and feature_key == key
            and event <= time
            and (case.known_by == "event" or created <= time)
        ]
        event, _, row = max(eligible, default=(0, 0, NO_ROW))
        expired = row != NO_ROW and case.ttl > 0 and time - event > case.ttl
        chosen.append(NO_ROW if expired else row)
    return chosen


def oracle_slices(case: Case, length: int, *, written: bool = False) -> list[list[int]]:
    sequences = []
    for key, label_time in case.labels:
        time = label_time - case.lag
        before = [
            (event, row)
            for row, (feature_key, event, created) in enumerate(case.features)
            if None not in key and feature_key == key and event < time and (created <= time or not written)
        ]
        sequences.append([row for _, row in sorted(before)][-length:] if length else [])
    return sequences


def key_table(keys: Sequence[Key]) -> pa.Table:
    return pa.table({"a": pa.array([a for a, _ in keys], pa.string()), "b": pa.array([b for _, b in keys], pa.int64())})


def kernel_rows(case: Case) -> list[int]:
    labels, features = codes(case)
    return as_of_rows(
        labels,
        times(time for _, time in case.labels),
        features,
        times(event for _, event, _ in case.features),
        times(created for _, _, created in case.features),
        ttl_us=case.ttl,
        lag_us=case.lag,
        known_by=case.known_by,
    ).tolist()


def codes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return encode_keys(key_table([key for key, _ in case.labels]), key_table([key for key, _, _ in case.features]))


def times(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int64)


ORACLE_CASES = 20 * settings().max_examples
"""2,000 cases of rows and as many of slices; 50,000 by `make test-long`."""

# Few keys and few moments, so that ties, duplicates and exact edges come up all the time.
parts_a = st.sampled_from(["1", "12", "", None])
parts_b = st.sampled_from([1, 3, 23, None])
moments = st.integers(-3, 12)
cases = st.builds(
    Case,
    labels=st.lists(st.tuples(st.tuples(parts_a, parts_b), moments), max_size=12),
    features=st.lists(st.tuples(st.tuples(parts_a, parts_b), moments, moments), max_size=25),
    ttl=st.integers(0, 4),
    lag=st.integers(0, 3),
    known_by=st.sampled_from(["event", "written"]),
)


@settings(max_examples=ORACLE_CASES, deadline=None)
@given(cases)
def test_rows_agree_with_the_oracle(case: Case) -> None:
    assert kernel_rows(case) == oracle_rows(case)


@settings(max_examples=ORACLE_CASES // 2, deadline=None)
@given(cases, st.integers(0, 5))
def test_slices_agree_with_the_oracle(case: Case, length: int) -> None:
    labels, log = codes(case)
    label_times = times(time for _, time in case.labels)
    log_times = times(event for _, event, _ in case.features)
    slices = as_of_slices(labels, label_times, log, log_times, length=length, lag_us=case.lag)
    pointed = [slices.order[start:stop].tolist() for start, stop in zip(slices.start, slices.stop, strict=True)]
    assert pointed == oracle_slices(case, length)
    assert slices.rows().tolist() == [row for sequence in pointed for row in sequence]
    assert np.diff(slices.offsets()).tolist() == [len(sequence) for sequence in pointed]


@settings(max_examples=ORACLE_CASES // 2, deadline=None)
@given(cases, st.integers(0, 5))
def test_slices_of_what_had_been_written_agree_with_the_oracle(case: Case, length: int) -> None:
    labels, log = codes(case)
    label_times = times(time for _, time in case.labels)
    written = times(created for _, _, created in case.features)
    now = as_of_slices(
        labels, label_times, log, times(event for _, event, _ in case.features), length=length, lag_us=case.lag
    )
    slices = written_slices(now, written, label_times - case.lag, length)
    pointed = [slices.order[start:stop].tolist() for start, stop in zip(slices.start, slices.stop, strict=True)]
    assert pointed == oracle_slices(case, length, written=True)


@settings(max_examples=ORACLE_CASES // 10, deadline=None)
@given(cases)
def test_the_latest_row_of_a_key_is_the_as_of_row_at_the_end_of_time(case: Case) -> None:
    _, features = codes(case)
    events = times(event for _, event, _ in case.features)
    created = times(written for _, _, written in case.features)
    distinct = np.unique(features[features >= 0])
    at_the_end = as_of_rows(distinct, np.full(len(distinct), 10**15), features, events, created)
    assert latest_rows(features, events, created).tolist() == at_the_end.tolist()


def one_key(labels: list[int], features: list[tuple[int, int]], **options: Any) -> list[int]:
    key: Key = ("k", 1)
    return kernel_rows(Case([(key, time) for time in labels], [(key, *row) for row in features], **options))


def test_a_feature_is_known_from_its_own_event_time_on() -> None:
    assert one_key([9, 10, 11], [(10, 0)]) == [NO_ROW, 0, 0]


def test_a_feature_exactly_as_old_as_ttl_is_valid_and_one_microsecond_later_it_is_not() -> None:
    assert one_key([15, 16], [(10, 0)], ttl=5) == [0, NO_ROW]


def test_an_expired_row_does_not_uncover_an_older_one() -> None:
    assert one_key([20], [(2, 0), (10, 0)], ttl=5) == [NO_ROW]


def test_a_tie_goes_to_the_later_created_at_and_then_to_the_later_position() -> None:
    assert one_key([10], [(5, 2), (5, 3), (5, 1)]) == [1]
    assert one_key([10], [(5, 2), (5, 2), (5, 2)]) == [2]


def test_a_lag_is_taken_off_the_label_time() -> None:
    assert one_key([12, 13], [(10, 0)], lag=3) == [NO_ROW, 0]


def test_a_restated_row_counts_by_what_had_been_written() -> None:
    key: Key = ("k", 1)
    case = Case([(key, 10), (key, 20)], [(key, 5, 6), (key, 5, 15)], known_by="written")
    assert kernel_rows(case) == [0, 1]


def test_every_label_row_has_one_output_row_whatever_the_features_hold() -> None:
    duplicates = [(5, 0)] * 50
    assert len(one_key([1, 5, 5, 9], duplicates)) == 4
    assert kernel_rows(Case([(("k", 1), 3)] * 3, [])) == [NO_ROW] * 3
    assert kernel_rows(Case([], [(("k", 1), 3, 0)])) == []


def test_composite_keys_are_tuples_and_not_joined_text() -> None:
    case = Case([(("1", 23), 5), (("12", 3), 5)], [(("12", 3), 1, 0)])
    assert kernel_rows(case) == [NO_ROW, 0]


def test_keys_of_many_columns_keep_apart_where_their_product_leaves_64_bits() -> None:
    rng = np.random.default_rng(7)
    columns = {name: pa.array(rng.integers(0, 3_000, 3_000)) for name in "abcdefg"}  # 3000 ** 7 > 2 ** 80
    features = pa.table(columns)
    shuffled = rng.permutation(3_000)
    labels, codes_of_features = encode_keys(features.take(pa.array(shuffled)), features)
    tuples = list(zip(*(columns[name].to_pylist() for name in "abcdefg"), strict=True))
    number = dict(zip(tuples, codes_of_features.tolist(), strict=True))
    assert len(set(number.values())) == len(set(tuples))
    assert labels.tolist() == [number[tuples[row]] for row in shuffled]


def test_text_and_integers_of_other_widths_are_the_same_key() -> None:
    labels = pa.table({"a": pa.array(["x"], pa.large_string()), "b": pa.array([7], pa.int32())})
    features = pa.table({"a": pa.array(["x"]).dictionary_encode(), "b": pa.array([7], pa.int64())})
    left, right = encode_keys(labels, features)
    assert left.tolist() == right.tolist() == [0]


def test_keys_of_different_types_are_refused() -> None:
    with pytest.raises(PointInTimeError, match="key user_id: label rows hold int64, feature rows string"):
        encode_keys(pa.table({"user_id": [1]}), pa.table({"user_id": ["1"]}))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_microseconds_are_the_same_for_every_unit_and_zone(unit: str) -> None:
    zones = ("UTC", "Asia/Tokyo", "America/New_York")
    columns = [pa.chunked_array([pa.array([1_700_000_000], pa.timestamp("s", zone))]) for zone in zones]
    found = {int(microseconds(column.cast(pa.timestamp(unit, column.type.tz)), "t")[0]) for column in columns}
    assert found == {1_700_000_000_000_000}


def test_nanoseconds_are_rounded_down_also_before_1970() -> None:
    assert microseconds(pa.array([-1, 1_999], pa.timestamp("ns", "UTC")), "t").tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0], pa.timestamp("us")), "without a time zone"),
        (pa.array([0, None], pa.timestamp("us", "UTC")), "1 of 2 times are null"),
        (pa.array([0]), "expected timestamps, found int64"),
    ],
)
def test_times_that_cannot_be_compared_are_refused(column: pa.Array, message: str) -> None:
    with pytest.raises(PointInTimeError, match=message):
        microseconds(column, "t")


def test_a_sequence_of_negative_length_is_refused() -> None:
    nothing = times([])
    with pytest.raises(ValueError, match="expected 0 or more, found -1"):
        as_of_slices(nothing, nothing, nothing, nothing, length=-1)
