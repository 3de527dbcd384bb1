"""The table contracts: what every row of the lake means, and the only place where a schema is written.

All times are UTC with microseconds. `event_timestamp` is when the fact became true, `created_at` when we wrote it.
Ids are strings: catalogues disagree about what an id is, and a typed string never loses a leading zero.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from moonlake.schema.contract import Column, RowRule, Table

TIMELESS = datetime(1970, 1, 1, tzinfo=UTC)
"""The event time of a fact that is true for ever: a vector is a function of its content and its space alone."""

ACTIONS = ("search", "click", "cart", "purchase", "favorite")
MODALITIES = ("text", "image", "product")
PAIR_TYPES = tuple(f"{query}_query_to_{item}" for query in MODALITIES for item in ("image", "text", "product"))
ARRIVAL_OUTCOMES = ("servable", "unchanged", "without_vector", "refused")
CTR_RANKING, SIMILAR_PRODUCTS = "ctr_ranking", "similar_products"
USES = {CTR_RANKING: "ctr_ranking_v1", SIMILAR_PRODUCTS: "similar_products_v1"}
"""The uses that a space is released for, and the feature service that each of them reads."""
SPACE_STATUSES = ("building", "candidate", "live", "retired")

PROMPT_ATTRIBUTES = ("material",)
"""Attributes that enter the prompt behind the title, in this order. Part of the definition of every space."""

MAX_TITLE_CHARACTERS = 1_000
MAX_IMAGES_PER_PRODUCT = 16
MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_SIDE_PIXELS = 20_000
TEXT = "[^\x00-\x08\x0b\x0c\x0e-\x1f]*"
"""What a text may be: no control characters but tab and line ends, as in XML. They stand in the pattern as they are,
for Spark, Arrow and Python share no escape."""


def _id(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, "string", meaning, nullable=nullable, min_length=1, max_length=256)


def _hash(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, "string", meaning, nullable=nullable, pattern="[0-9a-f]{32}")


def _text(name: str, meaning: str, *, nullable: bool = True, max_length: int = MAX_TITLE_CHARACTERS) -> Column:
    return Column(name, "string", meaning, nullable=nullable, max_length=max_length)


def _read_text(name: str, meaning: str) -> Column:
    """A text that encoders read."""
    return Column(name, "string", meaning, nullable=True, max_length=MAX_TITLE_CHARACTERS, pattern=TEXT)


def _count(name: str, meaning: str) -> Column:
    return Column(name, "int64", meaning, minimum=0)


def _share(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, "float64", meaning, nullable=nullable, minimum=0.0, maximum=1.0)


def _similarity(name: str, meaning: str) -> Column:
    return Column(name, "float32", meaning, nullable=True, minimum=-1.001, maximum=1.001)


def _json(name: str, meaning: str) -> Column:
    return Column(name, "string", meaning, max_length=16_000_000)


EVENT_TIMESTAMP = Column(
    "event_timestamp", "timestamp", "when the fact became true", never_feature="it is the time of the row itself"
)
CREATED_AT = Column(
    "created_at",
    "timestamp",
    "when this row was written",
    never_feature="it is about the write",
    in_training_rows=False,
)
SOURCE = replace(
    _id("source", "where the row came from: a simulator preset, a public data set, a user's folder"),
    never_feature="it is about where the row came from",
    in_training_rows=False,
)
CONTENT_ID = _hash("content_id", "hash of exactly what the encoder reads of this product or query")
SPACE_ID = _hash("space_id", "embedding space that the vector or score belongs to")

PRODUCT_EVENTS = Table(
    name="product_events",
    grain="One row per record that an outside writer submits to add, change or delete a product; raw.",
    key=("event_id",),
    writer="any",
    writing="append",
    columns=(
        _id("event_id", "the writer's own id of this record"),
        _id("product_id", "product that the record speaks of"),
        Column("kind", "string", "what the record asks for", values=("upsert", "delete")),
        _json("payload", "the product as JSON (docs/new_products.md); anything for a delete"),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

PRODUCT_ARRIVALS = Table(
    name="product_arrivals",
    grain="One row per record of product_events that was taken in: what became of it, and when.",
    key=("event_id",),
    writer="stream_products",
    writing="insert",
    columns=(
        _id("event_id", "the writer's own id of the record"),
        _hash("record_hash", "hash of everything that the record says: another record of the same id is refused"),
        _id("product_id", "product that the record speaks of"),
        _hash("content_id", "content of the product then; null when the record was refused", nullable=True),
        Column("outcome", "string", "what became of the record", values=ARRIVAL_OUTCOMES),
        Column("handed_in_at", "timestamp", "when the record was written to product_events"),
        Column("event_timestamp", "timestamp", "when the outcome stood: a servable product could be read online"),
        CREATED_AT,
    ),
)

PRODUCTS = Table(
    name="products",
    grain="One row per product and change of it.",
    key=("product_id",),
    writer="ingest_catalogue",
    writing="append",
    cluster_by=("product_id",),
    columns=(
        _id("product_id", "one sellable product (SKU group) of one merchant"),
        _id("spu_id", "standard product unit: the same thing sold by several merchants", nullable=True),
        _id("merchant_id", "who sells it", nullable=True),
        _text("category", "leaf category of the catalogue", max_length=256),
        _text("brand", "brand as the catalogue writes it", max_length=256),
        _read_text("title", "title as the merchant wrote it; may be incomplete, null when there was none"),
        Column("attributes", "map<string,string>", "further attributes by name", max_length=100),
        Column("price_cents", "int64", "price", nullable=True, unit="cents", minimum=0),
        Column(
            "image_ids",
            "list<string>",
            "images in the merchant's order",
            shape="[0..16]",
            max_length=MAX_IMAGES_PER_PRODUCT,
        ),
        Column("listed_at", "timestamp", "when the product was first on sale"),
        Column("deleted", "bool", "true from this change on when the product was taken off sale"),
        CONTENT_ID,
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
    rules=(
        RowRule(
            "has_content",
            "title IS NOT NULL OR cardinality(image_ids) > 0 OR category IS NOT NULL OR brand IS NOT NULL"
            " OR price_cents IS NOT NULL",
            "something is known of the product; without title and images no encoder reads it",
        ),
        *(
            RowRule(
                f"{name}_unusable",
                f"char_length(attributes['{name}']) <= {MAX_TITLE_CHARACTERS}"
                f" AND attributes['{name}'] RLIKE '^{TEXT}$'",
                "encoders read it behind the title, so that it is held to the same bounds",
            )
            for name in PROMPT_ATTRIBUTES
        ),
        RowRule("listed_before_change", "listed_at <= event_timestamp", "a product changes after it is listed"),
    ),
)

PRODUCT_IMAGES = Table(
    name="product_images",
    grain="One row per distinct image file, of a product or of an image query.",
    key=("image_id",),
    writer="ingest_catalogue",
    writing="insert",
    event_time=None,
    cluster_by=("image_id",),
    columns=(
        _hash("image_id", "hash of the file's bytes"),
        Column("image_bytes", "binary", "the file as it came", min_length=1, max_length=MAX_IMAGE_BYTES),
        Column(
            "format", "string", "file format found by decoding, never by name", values=("JPEG", "PNG", "WEBP", "GIF")
        ),
        *(
            Column(side, "int32", "after EXIF rotation", unit="pixels", minimum=1, maximum=MAX_IMAGE_SIDE_PIXELS)
            for side in ("width", "height")
        ),
        Column("perceptual_hash", "string", "64-bit difference hash of the picture", pattern="[0-9a-f]{16}"),
        SOURCE,
        CREATED_AT,
    ),
)

USERS = Table(
    name="users",
    grain="One row per user and change of the profile.",
    key=("user_id",),
    writer="ingest_behaviors",
    writing="append",
    columns=(
        _id("user_id", "one shopper"),
        _text("segment", "profile segment, as the source names it", max_length=256),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

MERCHANTS = Table(
    name="merchants",
    grain="One row per merchant and change of tier.",
    key=("merchant_id",),
    writer="ingest_catalogue",
    writing="append",
    columns=(
        _id("merchant_id", "one seller"),
        Column("tier", "int32", "1 is the largest merchants, 3 the smallest", minimum=1, maximum=9),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

QUERIES = Table(
    name="queries",
    grain="One row per distinct query: a text, an image, or a product (text and image).",
    key=("query_id",),
    writer="ingest_catalogue",
    writing="merge",
    cluster_by=("query_id",),
    columns=(
        _id("query_id", "one distinct query"),
        Column("modality", "string", "what the user searched with", values=MODALITIES),
        _read_text("text", "text of the query, null when there was none"),
        Column(
            "image_ids",
            "list<string>",
            "pictures of the query; a picture a shopper took, not a catalogue image",
            max_length=MAX_IMAGES_PER_PRODUCT,
        ),
        CONTENT_ID,
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
    rules=(
        RowRule("text_query_has_text", "modality = 'image' OR text IS NOT NULL", "a text query has a text"),
        RowRule("image_query_has_image", "modality = 'text' OR cardinality(image_ids) > 0", "an image query has one"),
    ),
)

IMPRESSIONS = Table(
    name="impressions",
    grain="One row per product shown.",
    key=("impression_id",),
    writer="ingest_behaviors",
    writing="append",
    cluster_by=("event_timestamp",),
    columns=(
        replace(_id("impression_id", "one product shown in one answer"), never_feature="it names one impression"),
        replace(_id("request_id", "one answer to one query"), never_feature="it names one answer"),
        _id("user_id", "who saw it"),
        _id("query_id", "what was searched", nullable=True),
        _id("product_id", "what was shown"),
        Column(
            "position",
            "int32",
            "place in the answer, from 1",
            minimum=1,
            never_feature="the place in the answer is not known before ranking",
            in_training_rows=False,
        ),
        replace(
            _share("propensity", "probability that the logging policy showed it there", nullable=True),
            never_feature="it follows from the place in the answer",
            in_training_rows=False,
        ),
        Column("clicked", "bool", "the label", never_feature="it is the label"),
        Column(
            "label_time",
            "timestamp",
            "when the label was settled: the end of its attribution window",
            never_feature="it follows the impression",
            in_training_rows=False,
        ),
        _hash("content_id", "content of the product as of the impression; null if unknown then", nullable=True),
        _hash("query_content_id", "content of the query", nullable=True),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
    rules=(RowRule("label_after_impression", "label_time >= event_timestamp", "a label follows its impression"),),
)

BEHAVIORS = Table(
    name="behaviors",
    grain="One row per user action: search, click, cart, purchase, favorite.",
    key=("behavior_id",),
    writer="ingest_behaviors",
    writing="append",
    cluster_by=("event_timestamp",),
    columns=(
        _id("behavior_id", "one action"),
        _id("user_id", "who acted"),
        Column("action", "string", "what was done", values=ACTIONS),
        _id("product_id", "on which product; null for a search", nullable=True),
        _id("query_id", "after which query", nullable=True),
        _hash("content_id", "content of the product as of the action; null if unknown then", nullable=True),
        _hash("query_content_id", "content of the query", nullable=True),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
    rules=(
        RowRule("search_has_query", "action != 'search' OR query_id IS NOT NULL", "a search has a query"),
        RowRule("action_has_product", "action = 'search' OR product_id IS NOT NULL", "other actions have a product"),
    ),
)

JUDGMENTS = Table(
    name="judgments",
    grain="One row per query and product whose relevance was judged, and change of the judgment.",
    key=("query_id", "product_id"),
    writer="ingest_behaviors",
    writing="append",
    columns=(
        _id("query_id", "what was searched"),
        _id("product_id", "what was judged against it"),
        Column("grade", "int32", "how relevant the product is: 0 is not at all, more is better", minimum=0, maximum=10),
        _text("label", "the grade in the source's own words, such as E, S, C, I", max_length=64),
        _hash("query_content_id", "content of the query; null if unknown", nullable=True),
        SOURCE,
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

BEHAVIOR_SEQUENCES = Table(
    name="behavior_sequences",
    grain="One row per user and month: the user's actions of that month in order of time, as parallel arrays.",
    key=("user_id", "month"),
    writer="pack_behavior_sequences",
    writing="merge",
    cluster_by=("user_id",),
    columns=(
        _id("user_id", "who acted"),
        Column("month", "string", "UTC month of the actions", pattern="[0-9]{4}-[0-9]{2}"),
        Column(
            "times_us", "list<int64>", "event time of each action, ascending", unit="us since 1970 UTC", shape="[L]"
        ),
        Column("actions", "list<string>", "what was done", shape="[L]"),
        Column("product_ids", "list<string>", "on which product; null for a search", shape="[L]"),
        Column("content_ids", "list<string>", "content of that product as of the action", shape="[L]"),
        Column("query_content_ids", "list<string>", "content of the query before it", shape="[L]"),
        Column(
            "written_us",
            "list<int64>",
            "when each action was written to the behaviour log; null in rows packed without",
            nullable=True,
            unit="us since 1970 UTC",
            shape="[L]",
        ),
        Column("event_timestamp", "timestamp", "time of the last action in the row"),
        CREATED_AT,
    ),
    rules=(
        RowRule(
            "arrays_are_parallel",
            "cardinality(times_us) = cardinality(actions) AND cardinality(times_us) = cardinality(product_ids)"
            " AND cardinality(times_us) = cardinality(content_ids)"
            " AND cardinality(times_us) = cardinality(query_content_ids)"
            " AND (written_us IS NULL OR cardinality(times_us) = cardinality(written_us))",
            "every array of a row has the same length",
        ),
    ),
)


def _window_counts(who: str) -> tuple[Column, ...]:
    return (
        _count("impressions_7d", f"impressions of the {who} whose label was settled in the window"),
        _count("clicks_7d", "how many of these were clicked"),
        _count("purchases_7d", f"purchases of the {who} in the window"),
        _share("ctr_7d", "clicks_7d / impressions_7d; null without impressions", nullable=True),
        Column("event_timestamp", "timestamp", "end of the window, exclusive: the window is [end - 7 days, end)"),
        CREATED_AT,
    )


PRODUCT_STATS = Table(
    name="product_stats",
    grain="One row per product and day on which its 7-day window has something in it.",
    key=("product_id",),
    writer="compute_stats",
    writing="append",
    cluster_by=("product_id",),
    columns=(_id("product_id", "one product"), *_window_counts("product")),
)

USER_STATS = Table(
    name="user_stats",
    grain="One row per user and day on which their 7-day window has something in it.",
    key=("user_id",),
    writer="compute_stats",
    writing="append",
    cluster_by=("user_id",),
    columns=(_id("user_id", "one user"), *_window_counts("user")),
)

CONTRASTIVE_PAIRS = Table(
    name="contrastive_pairs",
    grain="One row per training pair of the encoder: a query and a product that a user chose after it.",
    key=("pair_id",),
    writer="build_contrastive_pairs",
    writing="replace_window",
    columns=(
        _hash("pair_id", "hash of behaviour, stage and pair type"),
        _hash("anchor_content_id", "content of the query"),
        _hash("positive_content_id", "content of the product as of the action"),
        _id("positive_product_id", "product chosen"),
        Column(
            "positive_spu_id",
            "string",
            "its product unit, SPUs and near-duplicates merged (product_units.py): a twin is never a negative",
            nullable=True,
            min_length=1,
            max_length=272,
        ),
        Column(
            "hard_negative_content_ids",
            "list<string>",
            "same-category products near the query that nobody chose after it, nearest first; none in stage 1",
            max_length=64,
        ),
        _text("category", "category of the positive", max_length=256),
        Column("action", "string", "what the user did", values=("click", "cart", "purchase")),
        Column("stage", "int32", "training stage that reads it", minimum=1, maximum=2),
        Column("pair_type", "string", "query modality and what of the product is shown", values=PAIR_TYPES),
        Column("event_timestamp", "timestamp", "time of the action: what `trained_until` is made of"),
        CREATED_AT,
    ),
)

EMBEDDINGS = Table(
    name="embeddings",
    grain="One row per content and embedding space; insert only.",
    key=("content_id", "space_id"),
    writer="embed_contents",
    writing="insert",
    cluster_by=("space_id", "content_id"),
    columns=(
        CONTENT_ID,
        SPACE_ID,
        Column(
            "vector",
            "list<float32>",
            "unit vector, rounded once to the storage type of the space",
            shape="[D]",
            min_length=2,
            max_length=8_192,
        ),
        Column("event_timestamp", "timestamp", "always TIMELESS: a vector is true for ever (docs/decisions/0002)"),
        CREATED_AT,
    ),
)

EMBEDDING_SPACES = Table(
    name="embedding_spaces",
    grain="One row per embedding space and change of its status or further name.",
    key=("space_id",),
    writer="moonlake.embeddings.spaces",
    writing="append",
    columns=(
        SPACE_ID,
        _id("name", "short name for people; a space is found by each name that a row of it holds"),
        Column("status", "string", "where the space is in its life", values=SPACE_STATUSES),
        Column("dimension", "int32", "length of a vector", minimum=2, maximum=8_192),
        Column("storage_type", "string", "type that vectors are rounded to", values=("float16", "float32")),
        _text("artifact", "folder of the encoder artifact", nullable=False),
        _json("definition", "everything that makes two vectors comparable, as JSON; space_id is its hash"),
        Column("trained_until", "timestamp", "latest event in the lineage of the encoder", nullable=True),
        _share("coverage", "share of the catalogue's contents that have a vector"),
        _json("metrics", "intermediate metrics of the encoder, as JSON"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

RELEASES = Table(
    name="releases",
    grain="One row per use and switch: what the use runs on from then.",
    key=("use",),
    writer="moonlake.embeddings.releases",
    writing="append",
    guarded=True,
    columns=(
        Column("use", "string", "what it serves", values=tuple(USES)),
        SPACE_ID,
        _hash("model_id", "CTR model that reads this space; null for a use without one", nullable=True),
        _text("feature_service", "Feast feature service", nullable=True, max_length=256),
        _text("snapshot", "folder of the representation snapshot", nullable=True),
        _hash("check_id", "check in gate_results that allowed it; null in a release made before 0.2.0", nullable=True),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)


def _similarities(name: str, plural: str, what: str) -> tuple[Column, ...]:
    return (
        _similarity(f"{name}_similarity_max", f"largest cosine of target and an earlier {what}"),
        _similarity(f"{name}_similarity_mean", f"mean cosine of target and each earlier {what}"),
        Column(
            f"{name}_similarity_histogram",
            "list<float32>",
            f"share of earlier {plural} by cosine, in equal bins over [-1, 1] (SimTier)",
            shape="[bins]",
            max_length=128,
        ),
        _count(f"{plural}_used", f"earlier {plural} that have a vector"),
        _count(f"{plural}_missing", f"earlier {plural} that have none"),
    )


CUBE_FEATURES = Table(
    name="cube_features",
    grain="One row per impression and embedding space: content similarities of target, query and behaviours.",
    key=("impression_id", "space_id"),
    writer="build_cube_features",
    writing="replace_window",
    cluster_by=("event_timestamp",),
    columns=(
        _id("impression_id", "one product shown"),
        SPACE_ID,
        _similarity("target_query_similarity", "cosine of target and query; null if either has no vector"),
        *_similarities("behavior", "behaviors", "action on a product"),
        *_similarities("search", "searches", "search"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

TRAINING_SETS = Table(
    name="training_sets",
    grain="One row per assembled training set.",
    key=("training_set_id",),
    writer="build_training_set",
    writing="append",
    columns=(
        _hash("training_set_id", "hash of the manifest"),
        _id("name", "short name for people"),
        _text("folder", "where rows and manifest lie", nullable=False),
        _count("rows", "label rows"),
        _json("manifest", "specification and everything that reproduces it, as JSON"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

MODEL_VERSIONS = Table(
    name="model_versions",
    grain="One row per trained CTR model.",
    key=("model_id",),
    writer="models.ctr.train",
    writing="append",
    columns=(
        _hash("model_id", "hash of the artifact"),
        _id("name", "short name for people"),
        _hash("space_id", "embedding space that it reads; null for an ID-only model", nullable=True),
        _hash("training_set_id", "what it was trained on"),
        _text("artifact", "folder of the model artifact", nullable=False),
        _json("metrics", "metrics on the test window, as JSON"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

STUDY_RESULTS = Table(
    name="study_results",
    grain="One row per measured figure.",
    key=("study", "run_id", "subject", "metric", "segment"),
    writer="studies",
    writing="append",
    columns=(
        _id("study", "which study"),
        _id("run_id", "one run of it"),
        _id("subject", "what was measured: a model, a space, a step"),
        _id("metric", "name of the figure"),
        _id("segment", "part of the traffic; 'all' for the whole"),
        Column("value", "float64", "the figure"),
        Column("low", "float64", "lower end of the 95% interval", nullable=True),
        Column("high", "float64", "upper end of the 95% interval", nullable=True),
        Column("simulated", "bool", "true when behaviour was simulated"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

GATE_RESULTS = Table(
    name="gate_results",
    grain="One row per gate of one check of an embedding space; a gate `waived` says why a failed check was let pass.",
    key=("check_id", "gate"),
    writer="moonlake.embeddings.checks",
    writing="append",
    guarded=True,
    columns=(
        _hash("check_id", "one check: hash of the space, what it was checked for and when"),
        SPACE_ID,
        _text("use", "what the space was to be released for; null where it was only looked at", nullable=True),
        _hash("model_id", "CTR model that was to be released with it", nullable=True),
        _id("gate", "name of the gate"),
        Column("passed", "bool", "false stops a release; null where the gate does not apply", nullable=True),
        Column("value", "float64", "what was measured; null where nothing could be", nullable=True),
        Column("minimum", "float64", "smallest value that passes", nullable=True),
        Column("maximum", "float64", "largest value that passes", nullable=True),
        _text("detail", "the figure in words, or why there is none", nullable=False, max_length=10_000),
        Column(
            "embeddings_version",
            "int64",
            "Delta version of the table embeddings that was checked; null in a check made before 0.2.0",
            nullable=True,
            minimum=-1,
        ),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

REJECTS = Table(
    name="rejects",
    grain="One row per record refused.",
    key=("reject_id",),
    writer="any",
    writing="insert",
    event_time=None,
    columns=(
        _hash("reject_id", "hash of table, rule, value and source: the same record is kept once"),
        _id("table", "table that the record was meant for"),
        _id("rule", "first rule that it broke"),
        _json("value", "the record as JSON, long values cut"),
        SOURCE,
        CREATED_AT,
    ),
)

ERASURES = Table(
    name="erasures",
    grain="One row per product or user that was erased; it says so without the id.",
    key=("subject", "subject_hash"),
    writer="erase_subjects",
    writing="append",
    columns=(
        Column("subject", "string", "what was erased", values=("product", "user")),
        _hash("subject_hash", "hash of the id: whoever knows the id finds the row, nobody reads the id from it"),
        _json("removed", "what was removed with the run that it was part of, by store, as JSON"),
        _count("files_searched", "files that were read after it"),
        _count("places_found", "files in which the id still stood then"),
        EVENT_TIMESTAMP,
        CREATED_AT,
    ),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        PRODUCT_EVENTS,
        PRODUCT_ARRIVALS,
        PRODUCTS,
        PRODUCT_IMAGES,
        USERS,
        MERCHANTS,
        QUERIES,
        IMPRESSIONS,
        BEHAVIORS,
        JUDGMENTS,
        BEHAVIOR_SEQUENCES,
        PRODUCT_STATS,
        USER_STATS,
        CONTRASTIVE_PAIRS,
        EMBEDDINGS,
        EMBEDDING_SPACES,
        RELEASES,
        CUBE_FEATURES,
        TRAINING_SETS,
        MODEL_VERSIONS,
        STUDY_RESULTS,
        GATE_RESULTS,
        REJECTS,
        ERASURES,
    )
}
