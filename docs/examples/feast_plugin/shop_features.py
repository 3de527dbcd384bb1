"""The features of a small shop, over two Delta tables that lie beside this file."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Array, Int64, String

from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource

DATA = Path(__file__).resolve().parent / "data"

product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.STRING)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

prices = FeatureView(
    name="prices",
    entities=[product],
    ttl=timedelta(days=30),  # an older price counts as unknown
    schema=[Field(name="product_id", dtype=String), Field(name="price_cents", dtype=Int64)],
    source=DeltaSource(
        name="prices",
        path=str(DATA / "prices"),  # a folder, or a URI that delta-rs reads
        where=[("currency", "==", "EUR")],  # files and row groups without such rows are not read
        lag=timedelta(hours=1),  # serving learns of a price an hour after it is set
        version=None,  # a Delta version to stay at; None is the latest
    ),
)

recent_actions = FeatureView(
    name="recent_actions",
    entities=[user],
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="clicked_product", dtype=Array(String)),
        Field(name="action", dtype=Array(String)),
    ],
    source=BehaviorSequenceSource(
        name="recent_actions",
        path=str(DATA / "actions"),
        packed=False,  # a plain log: one row an action
        length=3,  # the last three strictly before the label, oldest first; the offline store can overrule it
        event_types=["click", "cart"],
        event_type_column="action",
        field_mapping={"product": "clicked_product"},
    ),
)
