"""A simulated log as rows in the own-files form."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.arrays import Int64s
from moonlake.schema.tables import MODALITIES
from sources.own_files.schema import KINDS
from sources.own_files.staging import StageWriter
from sources.simulator.behavior import ATTRIBUTION, Actions, Shown
from sources.simulator.clicks import ClickModel

TIMESTAMP = pa.timestamp("us", tz="UTC")


def request_ids(model: ClickModel) -> list[str]:
    """An id for every request, in order of time."""
    return [f"r{row:08d}" for row in range(len(model.requests.user))]


def write_log(writer: StageWriter, model: ClickModel, shown: Shown, actions: Actions, query_ids: list[str]) -> None:
    """Stage impressions and behaviours; `query_ids` has the query of every request."""
    writer.write("impressions", _impressions(model, shown, query_ids))
    writer.write("behaviors", _behaviors(model, actions, query_ids))


def write_users(writer: StageWriter, model: ClickModel, known_from_us: int) -> None:
    """Stage the users, known before the window."""
    shoppers = model.shoppers
    times = timestamps(np.full(len(shoppers.user_ids), known_from_us))
    writer.write("users", pa.table([shoppers.user_ids, shoppers.segment, times], schema=KINDS["users"].schema()))


def write_queries(
    writer: StageWriter, model: ClickModel, query_ids: list[str], texts: list[str | None], names: list[list[str]]
) -> None:
    """Stage distinct queries, each at its first request; texts and image names are those of the requests."""
    first = list({query: row for row, query in reversed(list(enumerate(query_ids)))}.values())[::-1]
    columns = {
        "query_id": [query_ids[row] for row in first],
        "modality": [MODALITIES[model.requests.modality[row]] for row in first],
        "text": [texts[row] for row in first],
        "image_names": [names[row] for row in first],
        "event_timestamp": timestamps(model.requests.time_us[first]),
    }
    writer.write("queries", pa.table(columns, schema=KINDS["queries"].schema()))


def timestamps(microseconds: Int64s) -> pa.Array:
    """UTC timestamps of microseconds since 1970."""
    return pa.array(microseconds, pa.int64()).cast(TIMESTAMP)


def _named(names: list[str], rows: Int64s) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(rows))


def _impressions(model: ClickModel, shown: Shown, query_ids: list[str]) -> pa.Table:
    total, slots = shown.product.shape
    request = np.repeat(np.arange(total), slots)
    time_us = model.requests.time_us[request]
    settled = time_us + int(ATTRIBUTION.total_seconds()) * 1_000_000
    columns = {
        "impression_id": [f"i{row:09d}" for row in range(total * slots)],
        "request_id": _named(request_ids(model), request),
        "user_id": _named(model.shoppers.user_ids, model.requests.user[request]),
        "query_id": _named(query_ids, request),
        "product_id": _named(model.catalogue.product_ids, shown.product.ravel()),
        "position": np.tile(np.arange(1, slots + 1, dtype=np.int32), total),
        "propensity": shown.propensity.ravel(),
        "clicked": shown.clicked.ravel(),
        "event_timestamp": timestamps(time_us),
        "label_time": timestamps(settled),
    }
    return pa.table(columns, schema=KINDS["impressions"].schema())


def _behaviors(model: ClickModel, actions: Actions, query_ids: list[str]) -> pa.Table:
    """Searches (one a request) and actions, in order of time."""
    total = len(model.requests.user)
    request = np.concatenate([np.arange(total), actions.request])
    product = np.concatenate([np.full(total, -1), actions.product])
    time_us = np.concatenate([model.requests.time_us, actions.time_us])
    action = np.concatenate([np.full(total, "search"), actions.action])
    order = np.argsort(time_us, kind="stable")
    request, product, time_us, action = request[order], product[order], time_us[order], action[order]
    of_product = _named(model.catalogue.product_ids, np.maximum(product, 0))
    columns = {
        "behavior_id": [f"b{row:09d}" for row in range(len(order))],
        "user_id": _named(model.shoppers.user_ids, model.requests.user[request]),
        "action": pa.array(action.tolist(), pa.string()),
        "product_id": pc.if_else(pa.array(product >= 0), of_product, pa.scalar(None, pa.string())),
        "query_id": _named(query_ids, request),
        "event_timestamp": timestamps(time_us),
    }
    return pa.table(columns, schema=KINDS["behaviors"].schema())
