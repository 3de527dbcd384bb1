"""The features of one request from Feast's online store, in the layout of a training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from feast import FeatureStore, FeatureView

from moonlake.errors import InputError
from moonlake.feast_delta.store import online_column, service_views

USER, PRODUCT = "user_id", "product_id"


class OnlineFeatures:
    """Reads a feature service: what the user's views hold once, what the products' views hold for each product."""

    def __init__(self, store: FeatureStore, service: str, log: Callable[[pa.Table], None] | None = None) -> None:
        """Args: log: called with the rows of each request that were read; a `RequestLog`, or whatever keeps them.

        Raises: NotFound: no such service.   InputError: a view of it has join keys that a request does not have.
        """
        self.store = store
        self.log = log
        views = service_views(store, service)
        for view in views:
            if view.join_keys not in ([USER], [PRODUCT]):
                raise InputError(
                    f"feature service {service}: view {view.name} is read by {view.join_keys}; a ranking request has "
                    f"{USER} or {PRODUCT}"
                )
        self.user_views = [view for view in views if view.join_keys == [USER]]
        self.product_views = [view for view in views if view.join_keys == [PRODUCT]]

    def read(self, user_id: str, product_ids: Sequence[str]) -> pa.Table:
        """One row for each product, in their order: ids and features; null where the online store has none."""
        of_products = self._read(self.product_views, PRODUCT, product_ids)
        of_user = self._read(self.user_views, USER, [user_id])
        repeated = of_user.take(pa.array([0] * len(product_ids), pa.int64()))
        rows = pa.table({**_columns(repeated), **_columns(of_products)})
        if self.log is not None:
            self.log(rows)
        return rows

    def _read(self, views: Sequence[FeatureView], key: str, values: Sequence[str]) -> pa.Table:
        features = {feature.name: (view, feature) for view in views for feature in view.projection.features}
        found: dict[str, list[Any]] = {name: [] for name in features}
        if features and values:  # Feast can neither read no features nor read for no one
            alias = {view.name: view.projection.name_to_use() for view in views}  # type: ignore[no-untyped-call]
            names = [f"{alias[view.name]}:{name}" for name, (view, _) in features.items()]
            found = self.store.get_online_features(names, {key: list(values)}).to_dict()
        columns = {name: online_column(view, feature, found[name]) for name, (view, feature) in features.items()}
        return pa.table({key: pa.array(values, pa.string()), **columns})


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))
