"""Feature views; their fields are derived from the table contracts. A breaking change takes the next number."""

from datetime import timedelta

from feast import FeatureView
from moonlake_entities import content, product, space, user
from moonlake_sources import (
    COUNTS,
    SEQUENCES,
    content_embedding_source,
    product_profile_source,
    product_stats_source,
    user_behavior_sequence_source,
    user_profile_source,
    user_stats_source,
)

from moonlake.feast_delta.fields import feast_fields
from moonlake.schema.tables import BEHAVIOR_SEQUENCES, EMBEDDINGS, PRODUCT_STATS, PRODUCTS, USER_STATS, USERS

STATS_TTL = timedelta(days=1)
"""Statistics have a row for each day on which something happened in the 7 days before: no row means nothing did."""

product_profile_v1 = FeatureView(
    name="product_profile_v1",
    entities=[product],
    source=product_profile_source,
    schema=feast_fields(
        PRODUCTS,
        ["product_id", "category", "brand", "merchant_id", "price_cents", "content_id"],
        product_profile_source.field_mapping,
    ),
    description="The product as it was listed.",
)
product_stats_v1 = FeatureView(
    name="product_stats_v1",
    entities=[product],
    source=product_stats_source,
    schema=feast_fields(PRODUCT_STATS, ["product_id", *COUNTS], product_stats_source.field_mapping),
    ttl=STATS_TTL,
    description="Counts and rates of the product in the last 7 whole days; null when it had none.",
)
user_profile_v1 = FeatureView(
    name="user_profile_v1",
    entities=[user],
    source=user_profile_source,
    schema=feast_fields(USERS, ["user_id", "segment"]),
    description="The user's profile.",
)
user_stats_v1 = FeatureView(
    name="user_stats_v1",
    entities=[user],
    source=user_stats_source,
    schema=feast_fields(USER_STATS, ["user_id", *COUNTS], user_stats_source.field_mapping),
    ttl=STATS_TTL,
    description="Counts and rates of the user in the last 7 whole days; null when there were none.",
)
user_behavior_sequence_v1 = FeatureView(
    name="user_behavior_sequence_v1",
    entities=[user],
    source=user_behavior_sequence_source,
    schema=feast_fields(BEHAVIOR_SEQUENCES, ["user_id", *SEQUENCES], user_behavior_sequence_source.field_mapping),
    description="The user's last actions strictly before the label, oldest first, as parallel arrays.",
)
content_embedding_v1 = FeatureView(
    name="content_embedding_v1",
    entities=[content, space],
    source=content_embedding_source,
    schema=feast_fields(EMBEDDINGS, ["content_id", "space_id", "vector"]),
    description="The vector of a content in an embedding space: true for ever, so its event time is 1970.",
)
