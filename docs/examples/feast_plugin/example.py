"""Make two small Delta tables, pull features as of label rows, serve them, and serve a price that arrives late."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore
from shop_features import DATA, prices, product, recent_actions, user

NOW = datetime.now(UTC).replace(microsecond=0)
FEATURES = ["prices:price_cents", "recent_actions:clicked_product", "recent_actions:action"]


def ago(**time: float) -> datetime:
    return NOW - timedelta(**time)


def price_rows(*rows: tuple[str, int, str, datetime]) -> pa.Table:
    names = ["product_id", "price_cents", "currency", "event_timestamp", "created_at"]
    return pa.Table.from_pylist([dict(zip(names, [*row, datetime.now(UTC)], strict=True)) for row in rows])


def write_tables() -> None:
    listed = price_rows(
        ("cup", 900, "EUR", ago(days=3)),
        ("cup", 5555, "USD", ago(days=2)),  # where: not EUR
        ("cup", 1100, "EUR", ago(days=1)),
        ("pot", 4000, "EUR", ago(days=40)),  # ttl: too old today
    )
    # The change feed tells `materialize-incremental` what came late; without one it serves the whole table each time.
    feed = {"delta.enableChangeDataFeed": "true"}
    write_deltalake(str(DATA / "prices"), listed, mode="overwrite", configuration=feed)
    shown = [("cup", "click", 50), ("pot", "view", 40), ("pot", "click", 30), ("cup", "cart", 20), ("cup", "click", 2)]
    actions = [
        {"user_id": "ann", "product": name, "action": action, "event_timestamp": ago(hours=hours)}
        for name, action, hours in shown
    ]
    write_deltalake(str(DATA / "actions"), pa.Table.from_pylist(actions), mode="overwrite", configuration=feed)


def label_rows() -> pa.Table:
    rows = [
        ("ann", "cup", ago(days=2)),  # 900: the dollar price does not count
        ("ann", "cup", ago(days=1) + timedelta(minutes=30)),  # still 900: of 1100 serving did not know yet
        ("ann", "cup", NOW),  # 1100, and the last three actions
        ("bob", "pot", NOW),  # null: past its ttl; and an empty sequence
        ("bob", None, NOW),  # a null key gives null, never another key's value
    ]
    return pa.table([*map(pa.array, zip(*rows, strict=True))], names=["user_id", "product_id", "event_timestamp"])


def show(what: str, rows: list[dict[str, object]]) -> None:
    print(what)
    for row in rows:
        print(" ", row["price_cents"], row["clicked_product"], row["action"])


def main() -> None:
    write_tables()
    store = FeatureStore(".")
    store.apply([product, user, prices, recent_actions])  # or on the command line: feast apply

    labels = label_rows()
    result = store.get_historical_features(labels, FEATURES).to_arrow()
    show("As of the label rows, in their order:", result.to_pylist())

    write_deltalake(str(DATA / "labels"), labels, mode="overwrite")
    for same in [
        labels.to_pandas(),
        DeltaTable(str(DATA / "labels")),
        f"SELECT * FROM delta.`{DATA / 'labels'}`",
    ]:
        pulled = store.get_historical_features(same, FEATURES).to_arrow().select(result.column_names[3:])
        assert pulled.to_pylist() == result.select(result.column_names[3:]).to_pylist()

    keys = [{"user_id": "ann", "product_id": "cup"}]
    store.materialize_incremental(NOW)  # or: feast materialize-incremental <end>
    show("Online:", [dict(store.get_online_features(FEATURES, keys).to_df().iloc[0])])

    late = price_rows(("cup", 1200, "EUR", ago(hours=12)))  # before NOW, up to which was served already
    write_deltalake(str(DATA / "prices"), late, mode="append")
    store.materialize_incremental(NOW + timedelta(seconds=1))
    show("Online, after a price that arrived late:", [dict(store.get_online_features(FEATURES, keys).to_df().iloc[0])])


if __name__ == "__main__":  # Feast imports every file of a feature repository
    main()
