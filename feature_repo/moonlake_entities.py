"""Entities that features are keyed by. Join keys are strings, as every id of the lake."""

from feast import Entity, ValueType

product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.STRING, description="One product.")
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="One shopper.")
content = Entity(
    name="content",
    join_keys=["content_id"],
    value_type=ValueType.STRING,
    description="Hash of exactly what the encoder reads of a product or query.",
)
space = Entity(
    name="space",
    join_keys=["space_id"],
    value_type=ValueType.STRING,
    description="Embedding space: vectors of two spaces never meet.",
)
