"""Feature services: what one use reads, by name."""

from feast import FeatureService
from moonlake_views import (
    content_embedding_v1,
    product_profile_v1,
    product_stats_v1,
    user_behavior_sequence_v1,
    user_profile_v1,
    user_stats_v1,
)

from moonlake.schema.tables import CTR_RANKING, SIMILAR_PRODUCTS, USES

ctr_ranking_v1 = FeatureService(
    name=USES[CTR_RANKING],
    features=[
        product_profile_v1[["category", "brand", "merchant_id", "price_cents"]],
        product_stats_v1,
        user_stats_v1,
        user_profile_v1,
        user_behavior_sequence_v1,
    ],
    description="Features of one impression for CTR ranking; vectors are gathered from a snapshot by content id.",
)
similar_products_v1 = FeatureService(
    name=USES[SIMILAR_PRODUCTS],
    features=[content_embedding_v1],
    description="Vectors by content id and embedding space.",
)
