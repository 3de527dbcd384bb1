"""Consistency of online and offline: logged requests, replayed offline and compared with what was served.

Two comparisons are fair, and they answer two questions:

- `request`: the value that a training row of that key and moment holds, that is offline as of the time of the request
  (less `lag`), from what had been written by then (`known_by="written"`) where the source can tell. What differs is
  skew between training and serving: the delay of materialisation, rows that came late, and faults.
- `served`: offline at the Delta version, and up to the event time, to which the online store had been brought, as the
  log says; a ttl is measured as the online store measures it. Delay and late rows are taken out: a view that no one
  pushes to differs by faults of materialisation or serving alone.

The idea is Chronon's consistency job.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast import FeatureStore, FeatureView
from feast.feature_logging import LOG_TIMESTAMP_FIELD, REQUEST_ID_FIELD

from moonlake.arrays import Bools, Float64s, Int64s
from moonlake.errors import InputError
from moonlake.feast_delta.joins.plan import alias_of, delta_source
from moonlake.feast_delta.offline_store import DeltaOfflineStore
from moonlake.feast_delta.serving_logs.request_log import served_columns
from moonlake.feast_delta.sources import BehaviorSequenceSource
from moonlake.feast_delta.store import service_views
from moonlake.lake.column_diff import unequal
from moonlake.lake.versions import open_path

AsOf: TypeAlias = Literal["request", "served"]

RELATIVE_TOLERANCE = 1e-6
ROWS_PER_REPLAY = 20_000
ELEMENTS_COMPARED = 200
"""Edit distance of longer sequences is that of their last elements."""
EXAMPLES = 3

_LABEL_TIME = "event_timestamp"


@dataclass(slots=True)
class Distances:
    """Mean and worst of many distances, of which none is kept."""

    count: int = 0
    total: float = 0.0
    least: float = np.inf
    greatest: float = -np.inf

    def add(self, values: Float64s) -> None:
        """Take in more of them."""
        self.count += len(values)
        self.total += float(values.sum())
        self.least = min(self.least, float(values.min(initial=np.inf)))
        self.greatest = max(self.greatest, float(values.max(initial=-np.inf)))

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count


@dataclass(slots=True)
class FeatureConsistency:
    """Counts of one feature's replay.

    A null and an empty list are no value. A timestamp is compared by the second, which is what Feast serves.

    Attributes:
        match: rows where both have the same value, or neither has one; floats within RELATIVE_TOLERANCE.
        neither: of the matches, those where neither has one.
        mismatch: rows where both have one, and they differ.
        missing: rows where offline has a value and online has none.
        extra: rows where online has a value and offline has none.
        unknown: rows that cannot be replayed, as the log does not say what had been served.
        cosines: of vectors, where both have one of equal length.
        edit_distances: of sequences, where both have one: the share of elements to edit.
        examples: a few rows that do not match.
    """

    feature: str
    match: int = 0
    neither: int = 0
    mismatch: int = 0
    missing: int = 0
    extra: int = 0
    unknown: int = 0
    cosines: Distances = field(default_factory=Distances)
    edit_distances: Distances = field(default_factory=Distances)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that were compared."""
        return self.match + self.mismatch + self.missing + self.extra

    def as_dict(self) -> dict[str, Any]:
        """The counts, and mean and worst of the distances where there are any."""
        counts = ("feature", "match", "neither", "mismatch", "missing", "extra", "unknown")
        found: dict[str, Any] = {name: getattr(self, name) for name in counts}
        if self.cosines.count:
            found |= {"cosine_mean": self.cosines.mean, "cosine_least": self.cosines.least}
        if self.edit_distances.count:
            edits = self.edit_distances
            found |= {"edit_distance_mean": edits.mean, "edit_distance_greatest": edits.greatest}
        return found | {"examples": self.examples}

    def add(self, online: pa.ChunkedArray, offline: pa.ChunkedArray, context: pa.Table) -> None:
        """Count the rows of a block.

        Args: context: request, time and keys of each row, for examples.
        """
        online, offline = online.combine_chunks(), offline.combine_chunks().cast(online.type)
        if pa.types.is_timestamp(online.type):
            online, offline = (pc.floor_temporal(each, unit="second") for each in (online, offline))
        has_online, has_offline = _has_value(online), _has_value(offline)
        both = has_online & has_offline
        differ = np.zeros(len(online), bool)
        one, other = online.filter(pa.array(both)), offline.filter(pa.array(both))
        differ[both] = unequal(one, other, RELATIVE_TOLERANCE)
        wrong = {"mismatch": differ, "missing": has_offline & ~has_online, "extra": has_online & ~has_offline}
        for kind, rows in wrong.items():
            setattr(self, kind, getattr(self, kind) + int(rows.sum()))
            for row in np.flatnonzero(rows)[: EXAMPLES - len(self.examples)].tolist():
                values = {"online": online[row].as_py(), "offline": offline[row].as_py()}
                self.examples.append({"kind": kind, **context.slice(row, 1).to_pylist()[0], **values})
        self.neither += int((~has_online & ~has_offline).sum())
        self.match += int(len(online) - sum(int(rows.sum()) for rows in wrong.values()))
        if _is_list(online.type) and pa.types.is_floating(online.type.value_type):
            self.cosines.add(_cosines(one, other))
        elif _is_list(online.type):
            self.edit_distances.add(_edit_distances(one, other, differ[both]))


@dataclass(frozen=True, slots=True)
class Consistency:
    """The result of a replay: one entry for each feature of the service."""

    service: str
    as_of: AsOf
    rows: int
    features: list[FeatureConsistency]

    @property
    def share(self) -> float:
        """Share of the compared values that match; 0 when none could be compared."""
        compared = sum(feature.rows for feature in self.features)
        return sum(feature.match for feature in self.features) / max(compared, 1)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values but for moments."""
        features = [feature.as_dict() for feature in self.features]
        stated = {"service": self.service, "as_of": self.as_of, "rows": self.rows, "share": self.share}
        return {**stated, "features": features}


def replay(
    store: FeatureStore,
    service: str,
    log: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    sample: int | None = None,
    lag: timedelta = timedelta(0),
    as_of: AsOf | None = None,
) -> Consistency:
    """The logged requests of a service held against what is offline.

    Args:
        log: path of the Delta table that requests were logged to.
        since, until: requests logged in [since, until).
        sample: at most that many rows, chosen at random and always the same of the same log.
        lag: for `request`: how long online may be behind.
        as_of: default: `request`; `served` where the online store measures ages not by the clock (its `now`), as
            then the time of a request is not that of the lake.

    Raises:
        NotFound: no such service, or nothing was ever logged.
        InputError: the log has no request in that time, or lacks a feature of the service.
    """
    views = service_views(store, service)
    now = getattr(store.config.online_store, "now", "clock")
    comparison: AsOf = as_of or ("request" if now == "clock" else "served")
    dataset = open_path(log).dataset
    names = _logged_columns(views, dataset.schema.names, comparison, log)
    tallies = {name: FeatureConsistency(name) for view in views for name in _names(view).values()}
    rows = 0
    for block in _blocks(dataset, names, _between(since, until), sample):
        rows += len(block)
        for view in views:
            _replay_view(store, view, block, comparison, lag, now, tallies)
    if not rows:
        raise InputError(f"the request log at {log} holds no request of {service} in [{since}, {until})")
    return Consistency(service, comparison, rows, list(tallies.values()))


def _replay_view(
    store: FeatureStore,
    view: FeatureView,
    block: pa.Table,
    comparison: AsOf,
    lag: timedelta,
    now: object,
    tallies: dict[str, FeatureConsistency],
) -> None:
    names = _names(view)
    keys = _keys(view)
    if comparison == "request":
        times = pc.subtract(block[LOG_TIMESTAMP_FIELD], pa.scalar(lag, pa.duration("us")))
        parts = [(block, _pull(store, view, _labels(block, keys, times)))]
    else:
        parts = list(_served_parts(store, view, block, keys, now))
        unknown = len(block) - sum(len(part) for part, _ in parts)
        for name in names.values():
            tallies[name].unknown += unknown
    for part, offline in parts:
        context = part.select([REQUEST_ID_FIELD, LOG_TIMESTAMP_FIELD, *keys])
        for name in names.values():
            tallies[name].add(part[name], offline[name], context)


def _served_parts(
    store: FeatureStore, view: FeatureView, block: pa.Table, keys: Sequence[str], now: object
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The rows of the log and what is offline, for each state in which the view was served; rows of none left out."""
    version_column, until_column = served_columns(view)
    states = block.select([version_column, until_column]).group_by([version_column, until_column]).aggregate([])
    for state in states.to_pylist():
        version, until = state[version_column], state[until_column]
        if version is None or until is None:
            continue
        same = pc.and_(pc.equal(block[version_column], version), pc.equal(block[until_column], until))
        part = block.filter(same)
        # The lag of a source stands for the delay of serving, which here is real.
        times = pa.repeat(pa.scalar(until + delta_source(view).lag, pa.timestamp("us", tz="UTC")), len(part))
        yield part, _pull_at(store, view, _labels(part, keys, times), version, _measured(part, until, now))


def _pull(store: FeatureStore, view: FeatureView, labels: pa.Table) -> pa.Table:
    """The features of a view as of each label, from what had been written by then where its source can tell."""
    source = delta_source(view)
    tells: str | None = source.created_timestamp_column
    if isinstance(source, BehaviorSequenceSource) and source.packed:
        tells = source.written_column
    return _historical(store, view, list(_names(view)), labels, written=bool(tells))


def _pull_at(
    store: FeatureStore, view: FeatureView, labels: pa.Table, version: int, measured: pa.ChunkedArray
) -> pa.Table:
    """The features of a view at a Delta version; null where older than its ttl at the moment `measured`."""
    pinned, source = copy.copy(view), copy.copy(delta_source(view))
    source.version, source.timestamp = version, None
    pinned.batch_source = source
    names = list(_names(view))
    if not view.ttl or isinstance(source, BehaviorSequenceSource):
        return _historical(store, pinned, names, labels)
    pinned.ttl = timedelta(0)
    found = _historical(store, pinned, [*names, source.timestamp_field], labels)
    event = found[f"{alias_of(view)}__{source.timestamp_field}"]
    valid = pc.greater_equal(event, pc.subtract(measured, pa.scalar(view.ttl, pa.duration("us"))))
    masked = [pc.if_else(valid, column, pa.scalar(None, column.type)) for column in found.columns]
    return pa.table(masked, names=found.column_names)


def _historical(
    store: FeatureStore, view: FeatureView, names: Sequence[str], labels: pa.Table, *, written: bool = False
) -> pa.Table:
    job = DeltaOfflineStore.get_historical_features(
        config=store.config,
        feature_views=[view],
        feature_refs=[f"{alias_of(view)}:{name}" for name in names],
        entity_df=labels,
        registry=store.registry,
        project=store.project,
        full_feature_names=True,
        filter_by_created_timestamp=written,
    )
    return job.to_arrow()


def _measured(part: pa.Table, until: datetime, now: object) -> pa.ChunkedArray:
    """The moment at which the online store measured the age of each row."""
    if now == "clock":
        return part[LOG_TIMESTAMP_FIELD]
    moment = now if isinstance(now, datetime) else until
    return pa.chunked_array([pa.repeat(pa.scalar(moment, pa.timestamp("us", tz="UTC")), len(part))])


def _labels(block: pa.Table, keys: Sequence[str], times: pa.ChunkedArray | pa.Array) -> pa.Table:
    return block.select(list(keys)).append_column(_LABEL_TIME, times)


def _names(view: FeatureView) -> dict[str, str]:
    """Feature -> column of the log."""
    return {feature.name: f"{alias_of(view)}__{feature.name}" for feature in view.projection.features}


def _keys(view: FeatureView) -> list[str]:
    return [view.projection.join_key_map.get(name, name) for name in view.join_keys]


def _logged_columns(views: Sequence[FeatureView], logged: Sequence[str], comparison: AsOf, log: str) -> list[str]:
    wanted = [LOG_TIMESTAMP_FIELD, REQUEST_ID_FIELD]
    for view in views:
        wanted += [*_keys(view), *_names(view).values()]
        wanted += served_columns(view) if comparison == "served" else ()
    if missing := [name for name in wanted if name not in logged]:
        served = "; replay it as of the time of requests" if comparison == "served" else ""
        raise InputError(f"the request log at {log} has no columns {missing}; it has {', '.join(logged)}{served}")
    return list(dict.fromkeys(wanted))


def _between(since: datetime | None, until: datetime | None) -> ds.Expression:
    where, moment = ds.scalar(True), pa.timestamp("us", tz="UTC")
    if since is not None:
        where = where & (ds.field(LOG_TIMESTAMP_FIELD) >= pa.scalar(since.astimezone(UTC), moment))
    if until is not None:
        where = where & (ds.field(LOG_TIMESTAMP_FIELD) < pa.scalar(until.astimezone(UTC), moment))
    return where


def _blocks(dataset: ds.Dataset, names: list[str], where: ds.Expression, sample: int | None) -> Iterator[pa.Table]:
    """The logged rows, or those of the sample, in blocks."""
    total = dataset.count_rows(filter=where)
    chosen: Int64s | None = None
    if sample is not None and sample < total:
        chosen = np.sort(np.random.default_rng(0).choice(total, sample, replace=False))
    first = 0
    held: list[pa.RecordBatch] = []
    for batch in dataset.to_batches(columns=names, filter=where):
        if chosen is not None:
            inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(batch))]
            first += len(batch)
            batch = batch.take(pa.array(inside - (first - len(batch))))
        held.append(batch)
        if sum(map(len, held)) >= ROWS_PER_REPLAY:
            yield pa.Table.from_batches(held).combine_chunks()
            held = []
    if sum(map(len, held)):
        yield pa.Table.from_batches(held).combine_chunks()


def _has_value(values: pa.Array) -> Bools:
    there = values.is_valid()
    if _is_list(values.type):
        there = pc.fill_null(pc.greater(pc.list_value_length(values), 0), False)
    found: Bools = there.to_numpy(zero_copy_only=False).astype(bool)
    return found


def _is_list(of: pa.DataType) -> bool:
    return bool(pa.types.is_list(of) or pa.types.is_large_list(of))


def _cosines(one: pa.Array, other: pa.Array) -> Float64s:
    """Cosine of each pair of vectors of equal length; 1 for two zero vectors, 0 for one."""
    same = pc.equal(pc.list_value_length(one), pc.list_value_length(other))
    one, other = one.filter(same), other.filter(same)
    if not len(one):
        return np.zeros(0)
    starts = np.concatenate([[0], np.cumsum(pc.list_value_length(one).to_numpy())])[:-1].astype(np.int64)
    left, right = (pc.list_flatten(each).cast(pa.float64()).fill_null(0.0).to_numpy() for each in (one, other))
    product, left_square, right_square = (
        np.add.reduceat(values, starts) for values in (left * right, left * left, right * right)
    )
    norm = np.sqrt(left_square * right_square)
    both_zero = (left_square == 0) & (right_square == 0)
    return np.where(both_zero, 1.0, product / np.where(norm == 0, 1.0, norm))


def _edit_distances(one: pa.Array, other: pa.Array, differ: Bools) -> Float64s:
    """Levenshtein distance of each pair as a share of the longer one; 0 of pairs that do not differ."""
    distances = np.zeros(len(one))
    for row in np.flatnonzero(differ).tolist():
        left, right = (each[row].as_py()[-ELEMENTS_COMPARED:] for each in (one, other))
        distances[row] = edit_distance(left, right) / max(len(left), len(right))
    return distances


def edit_distance(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The least number of elements to insert, delete or replace that makes one sequence the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    numbers: dict[Any, int] = {}
    a, b = (np.array([numbers.setdefault(each, len(numbers)) for each in side], np.int64) for side in (left, right))
    places = np.arange(len(b) + 1)
    previous = places
    for row, element in enumerate(a.tolist(), start=1):
        replaced = previous[:-1] + (b != element)
        current = np.concatenate([[row], np.minimum(previous[1:] + 1, replaced)])
        previous = np.minimum.accumulate(current - places) + places  # insertions, left to right
    return int(previous[-1])
