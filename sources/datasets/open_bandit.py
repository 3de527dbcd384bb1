"""ZOZO's Open Bandit data: real impressions of three campaigns under two policies, with clicks and exact propensities.

A file a policy and campaign, and beside it the campaign's items (`sources/datasets/open_bandit_items.py`). Who saw an
item is known by four hashed features only: a user here is everybody who shares them.
docs/open_bandit.md is the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Step
from moonlake.schema.arrow import ARROW_TYPES
from moonlake.settings import Settings
from sources.datasets.log_files import TextBatch, find_file, is_whole_number, read_csv, refuse_broken
from sources.datasets.open_bandit_items import is_hash, is_number, stage_items
from sources.own_files.conform import conform, fill
from sources.own_files.schema import KINDS
from sources.own_files.stage import fingerprint_of
from sources.own_files.staging import SourceInfo, StageWriter, is_staged, new_stage, stage_path
from sources.own_files.tabular import Batch
from sources.own_files.values import convert

NAME = "open_bandit"
OPEN_BANDIT_VERSION = 1
"""Part of the fingerprint: raise it when the same files would be staged otherwise."""
CAMPAIGNS = ("all", "men", "women")
POLICIES = ("random", "bts")
USER_FEATURES = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")
SEGMENT = "user_feature_0"
COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score", *USER_FEATURES)
IGNORED = ("user-item_affinity_*",)
POSITIONS = ("1", "2", "3")
START, END = datetime(2019, 11, 24, tzinfo=UTC), datetime(2019, 12, 1, tzinfo=UTC)
"""The window [START, END) that was published."""
T2_SHARE = 0.7
"""Where t2 lies in the window: the data set's own library (obp) tests on the last 30% too."""
TIMESTAMP = ARROW_TYPES["timestamp"]


@dataclass(frozen=True, slots=True)
class BanditLog:
    """The log of one policy in one campaign, and the file of the campaign's items beside it."""

    policy: str
    campaign: str
    path: Path
    items: Path


def stage_open_bandit(folder: Path, settings: Settings, *, progress: Step = UNWATCHED) -> Path:
    """The staged folder of all logs in `folder`, made now unless these very files were staged before.

    Raises:
        InputError: there is no log, one is there twice or without its items, a file cannot be read to its end, the
            policies list different items for a campaign, a list has no good item, or there is no good impression.
        SchemaMismatch: a column is missing.
        BatchRejected: more than half of the impressions or items are refused.
    """
    logs = find_logs(folder)
    paths = [path for log in logs for path in (log.path, log.items)]
    names = ", ".join(str(log.path.relative_to(folder)) for log in logs)
    fingerprint = fingerprint_of(paths, f"{OPEN_BANDIT_VERSION} {NAME} {names}")
    if is_staged(settings, NAME, fingerprint):
        return stage_path(settings, NAME)
    with new_stage(settings, NAME) as writer:
        for campaign in CAMPAIGNS:
            stage_items(writer, campaign, [log.items for log in logs if log.campaign == campaign])
        users: set[str] = set()
        for log in logs:
            for batch in read_csv(log.path, COLUMNS, header=True):
                _stage_batch(writer, log, batch, users)
                progress.update(writer.staged["impressions"], note="impressions")
        writer.check_share("products", ", ".join(str(log.items) for log in logs))
        writer.check_share("impressions", ", ".join(str(log.path) for log in logs))
        writer.describe(_info(writer, folder, names, fingerprint))
    return stage_path(settings, NAME)


def find_logs(folder: Path) -> list[BanditLog]:
    """The logs in a folder, campaign by campaign: as published, `random/men/men.csv`, or flat, `random_men.csv`.

    Raises: InputError: as `stage_open_bandit`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the one that holds random/men/men.csv or random_men.csv")
    logs = []
    for campaign, policy in product(CAMPAIGNS, POLICIES):
        items_of = {
            f"{policy}/{campaign}/{campaign}.csv": "item_context.csv",
            f"{policy}_{campaign}.csv": f"{policy}_{campaign}_item_context.csv",
        }
        names = {name + end: items for name, items in items_of.items() for end in ("", ".gz")}
        if any((folder / name).is_file() for name in names):
            path = find_file(folder, list(names))
            items = names[path.relative_to(folder).as_posix()]
            logs.append(BanditLog(policy, campaign, path, find_file(path.parent, (items, items + ".gz"))))
    if not logs:
        raise InputError(
            f"{folder} holds no log; expected random/men/men.csv or random_men.csv, plain or .gz, or others of the"
            f" policies {', '.join(POLICIES)} and the campaigns {', '.join(CAMPAIGNS)}"
        )
    return logs


def _stage_batch(writer: StageWriter, log: BanditLog, batch: TextBatch, users: set[str]) -> None:
    """Stage the good impressions of a batch and users who are not among `users` yet; refuse the other records."""
    cells = batch.cells
    times = written_times(cells["timestamp"])
    shares = propensities(cells["propensity_score"])
    broken = {
        **{f"{name}_unreadable": pc.invert(is_hash(cells[name])) for name in USER_FEATURES},
        "item_id_unreadable": pc.invert(is_whole_number(cells["item_id"])),
        "position_unknown": pc.invert(pc.is_in(cells["position"], pa.array(POSITIONS))),
        "click_unreadable": pc.invert(pc.is_in(cells["click"], pa.array(("0", "1")))),
        "propensity_score_unreadable": pc.is_null(shares),
        # An item that was shown had some probability of being shown.
        "propensity_score_outside_range": pc.or_(pc.less_equal(shares, 0.0), pc.greater(shares, 1.0)),
        "event_timestamp_unreadable": pc.is_null(times),
        "event_timestamp_outside_window": pc.or_(pc.less(times, START), pc.greater_equal(times, END)),
    }
    good = refuse_broken(writer, "impressions", batch, broken)
    kept = cells.filter(good)
    writer.write("impressions", _impressions(log, kept, times.filter(good), shares.filter(good)))
    fresh = [user for user in pc.unique(user_ids(kept)).to_pylist() if user not in users]
    users.update(fresh)
    writer.write("users", _users(fresh))


def written_times(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """UTC times of cells such as "2019-11-24 00:01:03.979311+00:00", the fraction left out where it is zero.

    Null for anything else.
    """
    form = r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?[+-][0-9]{2}:[0-9]{2}$"
    texts = pc.if_else(pc.match_substring_regex(cells, form), cells, None)
    try:
        return texts.cast(TIMESTAMP)
    except pa.ArrowInvalid:  # a 30th of February: the cells say which record
        return pa.chunked_array([convert(texts.to_pylist(), "timestamp")[0]])


def propensities(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64 [N], null for what is no number."""
    return pc.if_else(is_number(cells), cells, None).cast(pa.float64())


def user_ids(cells: pa.Table) -> pa.ChunkedArray:
    """string [N]: the user features in one word."""
    return pc.binary_join_element_wise(*(cells[name] for name in USER_FEATURES), "-")


def _impressions(log: BanditLog, cells: pa.Table, times: pa.ChunkedArray, shares: pa.ChunkedArray) -> pa.Table:
    moments = times.cast(pa.int64()).cast(pa.string())
    shown = (cells["item_id"], cells["position"])
    ids = pc.binary_join_element_wise(log.policy, log.campaign, moments, *shown, "-")
    columns = {
        "impression_id": ids,
        "request_id": ids,
        "user_id": user_ids(cells),
        "query_id": pa.nulls(len(cells), pa.string()),
        "product_id": pc.binary_join_element_wise(log.campaign, cells["item_id"], "-"),
        "position": cells["position"].cast(pa.int32()),
        "propensity": shares,
        "clicked": pc.equal(cells["click"], "1"),
        "event_timestamp": times,
        "label_time": times,
    }
    return pa.table(columns, schema=KINDS["impressions"].schema())


def _users(ids: Sequence[str]) -> pa.Table:
    place = USER_FEATURES.index(SEGMENT)
    stated: dict[str, pa.Array | Sequence[object]] = {
        "user_id": ids,
        "segment": [user.split("-")[place] for user in ids],
    }
    rows, _ = conform(KINDS["users"], Batch(stated, len(ids)))
    return fill(KINDS["users"], rows)


def _info(writer: StageWriter, folder: Path, names: str, fingerprint: str) -> SourceInfo:
    window = writer.span("impressions")
    if window is None:
        raise InputError(f"{folder}: there is no impression in {names}")
    start, end = window
    return SourceInfo(
        NAME,
        simulated=False,
        kind="real impressions",
        window=window,
        t1=start,
        t2=start + T2_SHARE * (end - start),
        notes=f"{names}; a user is everybody with the same four hashed features, and not one person. No encoder learns"
        " here (no titles, no images), so that t1 is the first impression.",
        fingerprint=fingerprint,
        ignored={"impressions": list(IGNORED)},
    )
