"""Sources of features: tables of the lake by name. Field mappings make feature names unique in a service."""

from moonlake.feast_delta.sources import BehaviorSequenceSource, DeltaSource

COUNTS = ("impressions_7d", "clicks_7d", "purchases_7d", "ctr_7d")
SEQUENCES = ("product_ids", "content_ids", "query_content_ids", "actions", "times_us")

product_profile_source = DeltaSource(
    name="product_profile_source", table="products", field_mapping={"content_id": "product_content_id"}
)
product_stats_source = DeltaSource(
    name="product_stats_source", table="product_stats", field_mapping={name: f"product_{name}" for name in COUNTS}
)
user_profile_source = DeltaSource(name="user_profile_source", table="users")
user_stats_source = DeltaSource(
    name="user_stats_source", table="user_stats", field_mapping={name: f"user_{name}" for name in COUNTS}
)
content_embedding_source = DeltaSource(name="content_embedding_source", table="embeddings")
user_behavior_sequence_source = BehaviorSequenceSource(
    name="user_behavior_sequence_source",
    written_column="written_us",
    field_mapping={name: f"behavior_{name}" for name in SEQUENCES},
)
