"""Myntra fashion products: a real catalogue, on which behaviour is simulated and labelled so.

**Query pictures.** A share of the real products is held out of the catalogue. A shopper who wants something takes a
snapshot (`sources.simulator.augmentation`) of a held-out product of the same article type, close in style to what the
shop has. So no catalogue picture is ever a query, there is no instance to be recognised, and the right answers are the
products that look alike. The data set holds groups of products with one picture: a held-out product whose picture is
also in the catalogue is not used, and a snapshot whose difference hash comes within `MIN_HASH_DISTANCE` of its 64 bits
to any catalogue picture is taken again.

**Behaviour.** The same simulator as the marketplace's, with the style vectors of `sources.datasets.myntra_files` as
truth. Prices, merchants and brands are not in the data set and stay null.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from moonlake.arrays import Float32s, Int64s, UInt64s
from moonlake.embeddings.images import decode, perceptual_hash
from moonlake.errors import InputError
from moonlake.files import publish_folder
from moonlake.hashing import stable_hash
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.datasets.myntra_files import MyntraRows, read_myntra, read_pictures, style_vectors
from sources.own_files.image_files import read_image_files
from sources.own_files.schema import KINDS
from sources.own_files.stage import stage_images
from sources.own_files.staging import SourceInfo, StageWriter, is_staged, new_stage, stage_path
from sources.simulator.augmentation import snapshot
from sources.simulator.behavior import act, listing_times, plan_requests, sample_shoppers, show
from sources.simulator.behavior_tables import request_ids, timestamps, write_log, write_queries, write_users
from sources.simulator.clicks import Catalogue, ClickModel
from sources.simulator.presets import BehaviorConfig, Window, microseconds

NAME = "myntra"
KIND = "real catalogue, simulated behaviour"
MYNTRA_VERSION = 1
"""Raise it when the same files and seed would be staged otherwise."""
HELD_OUT_SHARE = 0.2
"""At least this share of the products is kept back for query pictures."""
LATE_SHARE = 0.35
ATTRIBUTES = ("gender", "masterCategory", "subCategory", "baseColour", "season", "year", "usage")
SEARCH_WORDS = {"baseColour": 0.75, "gender": 0.5, "usage": 0.2, "articleType": 0.95}
NEAREST_HELD_OUT = 3
MIN_HASH_DISTANCE = 6
ATTEMPTS = 50
SNAPSHOTS_PER_WRITE = 512
TOP_SIMILARITY_RANK = 20
"""Shoppers are as choosy as makes about this many products of the catalogue attractive to a request."""
CALIBRATION_REQUESTS = 2_000


@dataclass(frozen=True, slots=True)
class _Shop:
    """The sampled catalogue and the held-out products: rows of the data set, with style and picture each."""

    products: list[dict[str, str | None]]
    held_out: list[dict[str, str | None]]
    vectors: Float32s
    held_out_vectors: Float32s
    article: Int64s
    held_out_article: Int64s
    pictures: dict[str, Image.Image]


def stage_myntra(
    data_folder: Path,
    settings: Settings,
    *,
    products: int = 3_000,
    seed: int = 7,
    progress: Step = UNWATCHED,
) -> Path:
    """The staged folder of a seeded sample of the products, made now unless it was staged from the same before.

    Raises: InputError, SchemaMismatch: as `read_myntra`; or more products asked for than the data set can give.
    """
    files = read_myntra(data_folder)
    fingerprint = _fingerprint(data_folder, files.images, products, seed)
    if is_staged(settings, NAME, fingerprint) and (settings.truth / NAME).is_dir():
        return stage_path(settings, NAME)
    shop_rng, behavior_rng, picture_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)
    )
    shop = _open_shop(files, products, shop_rng)
    window = Window()
    model, models_of_queries = _ask(shop, window, behavior_rng)
    shown = show(model, behavior_rng)
    actions = act(model, shown, behavior_rng)
    query_ids, texts, names = _phrase(shop, model, models_of_queries, behavior_rng)

    with publish_folder(settings.truth / NAME) as truth, new_stage(settings, NAME) as writer:
        writer.write("products", _products(files, model.catalogue))
        writer.refuse("products", "field_count_wrong", files.refused)
        write_users(writer, model, microseconds(window.start) - 30 * 86_400 * 1_000_000)
        write_queries(writer, model, query_ids, texts, names)
        write_log(writer, model, shown, actions, query_ids)
        stage_images(writer, read_image_files(files.images, frozenset(f"{row['id']}.jpg" for row in shop.products)))
        close = _write_snapshots(writer, shop, model, models_of_queries, names, picture_rng, progress)
        model.save(truth, request_ids(model), query_ids)
        notes = (
            f"{len(shop.products)} of {len(files.rows)} Myntra products, seed {seed}; behaviour is simulated; query"
            f" pictures are snapshots of {len(shop.held_out)} products that are not in the catalogue, {close} left out"
            " for being too close to a catalogue picture"
        )
        span = (window.start, window.end)
        writer.describe(SourceInfo(NAME, True, KIND, span, window.t1, window.t2, notes, fingerprint))
    return stage_path(settings, NAME)


def _open_shop(files: MyntraRows, count: int, rng: np.random.Generator) -> _Shop:
    """A seeded sample as the catalogue; the others with a picture that the catalogue does not show are held out."""
    by_id = {row["id"]: row for row in files.rows if row["id"]}
    ids = sorted(by_id)
    most = int((1.0 - HELD_OUT_SHARE) * len(ids))
    if not 0 < count <= most:
        raise InputError(
            f"products={count}: choose from 1 to {most}; styles.csv has {len(ids)} products, of which"
            f" {HELD_OUT_SHARE:.0%} are kept back for query pictures"
        )
    order = rng.permutation(len(ids))
    chosen = [by_id[ids[place]] for place in sorted(order[:count])]
    others = [by_id[ids[place]] for place in sorted(order[count:])]
    pictures = read_pictures(files.images, ids)
    pixels = {name: stable_hash(picture.tobytes()) for name, picture in pictures.items()}
    shown = {pixels[str(row["id"])] for row in chosen if row["id"] in pixels}
    held_out = [row for row in others if row["id"] in pixels and pixels[str(row["id"])] not in shown]
    if not held_out:
        raise InputError("the data set has no picture that is not in the catalogue, so that nobody could search by one")
    vectors, article = style_vectors([*chosen, *held_out], pictures)
    return _Shop(chosen, held_out, vectors[:count], vectors[count:], article[:count], article[count:], pictures)


def _ask(shop: _Shop, window: Window, rng: np.random.Generator) -> tuple[ClickModel, Int64s]:
    """The click model with its requests, and for each request the held-out product that the shopper has seen."""
    count = len(shop.products)
    config = BehaviorConfig(users=max(40, count * 2 // 5), sessions=max(200, count * 9 // 5))
    catalogue = Catalogue(
        [str(row["id"]) for row in shop.products],
        shop.vectors,
        shop.article,
        (config.quality_spread * rng.standard_normal(count)).astype(np.float32),
        np.zeros(count, np.float32),
        listing_times(window, LATE_SHARE, count, rng),
        np.full(count, np.iinfo(np.int64).max),
    )
    shoppers = sample_shoppers(catalogue, config, rng)
    planned = plan_requests(catalogue, shoppers, config, window.span_us, rng)
    nearest = _nearest_held_out(shop)
    seen = nearest[planned.target, rng.integers(nearest.shape[1], size=len(planned.target))]
    requests = replace(planned, wanted=shop.held_out_vectors[seen])
    place = count - min(TOP_SIMILARITY_RANK, count)
    ranked = np.partition(requests.wanted[:CALIBRATION_REQUESTS] @ shop.vectors.T, place, axis=1)
    midpoint = float(ranked[:, place].mean())
    config = replace(config, similarity_midpoint=round(midpoint, 4))
    return ClickModel(config, catalogue, shoppers, requests, window.span_us), seen


def _nearest_held_out(shop: _Shop) -> Int64s:
    """For each product the nearest held-out ones, int64 [P, up to NEAREST_HELD_OUT], of its own type if there are."""
    depth = min(NEAREST_HELD_OUT, len(shop.held_out))
    parts = []
    for start in range(0, len(shop.products), 512):
        rows = slice(start, start + 512)
        similarity = shop.vectors[rows] @ shop.held_out_vectors.T
        similarity += 2.0 * (shop.article[rows, None] == shop.held_out_article)
        parts.append(np.argpartition(-similarity, depth - 1, axis=1)[:, :depth])
    return np.concatenate(parts)


def _phrase(
    shop: _Shop, model: ClickModel, seen: Int64s, rng: np.random.Generator
) -> tuple[list[str], list[str | None], list[list[str]]]:
    """Query id, text and picture names of every request: some attributes of what was seen, a snapshot, or both."""
    kept = {name: rng.random(len(seen)) < share for name, share in SEARCH_WORDS.items()}
    ids: list[str] = []
    texts: list[str | None] = []
    names: list[list[str]] = []
    for row, modality in enumerate(model.requests.modality):
        product = shop.held_out[seen[row]]
        said = " ".join(str(product[name]) for name in SEARCH_WORDS if kept[name][row] and product[name]).lower()
        said = said or str(product["articleType"]).lower()
        texts.append(None if modality == 1 else said)
        names.append([] if modality == 0 else [f"query-{row:07d}.jpg"])
        ids.append(f"text-{stable_hash(said)[:16]}" if modality == 0 else f"picture-{row:07d}")
    return ids, texts, names


def _products(files: MyntraRows, catalogue: Catalogue) -> pa.Table:
    """Every row of the file that speaks of a sampled product, doubles too; ingestion counts them."""
    listed = dict(zip(catalogue.product_ids, catalogue.on_sale_from.tolist(), strict=True))
    rows = [row for row in files.rows if row["id"] in listed]
    times = timestamps(np.array([listed[str(row["id"])] for row in rows], np.int64))
    absent = pa.nulls(len(rows), pa.string())
    columns = {
        "product_id": [row["id"] for row in rows],
        "title": [row["productDisplayName"] for row in rows],
        "image_names": [[f"{row['id']}.jpg"] for row in rows],
        "listed_at": times,
        "event_timestamp": times,
        "spu_id": absent,
        "merchant_id": absent,
        "category": [row["articleType"] for row in rows],
        "brand": absent,
        "price_cents": pa.nulls(len(rows), pa.int64()),
        "attributes": [[(name, row[name]) for name in ATTRIBUTES if row[name]] for row in rows],
        "deleted": [False] * len(rows),
    }
    return pa.table(columns, schema=KINDS["products"].schema())


def _write_snapshots(
    writer: StageWriter,
    shop: _Shop,
    model: ClickModel,
    seen: Int64s,
    names: list[list[str]],
    rng: np.random.Generator,
    progress: Step,
) -> int:
    """Stage the query pictures; gives how many stayed too close to a catalogue picture and were left out."""
    ids = [str(row["id"]) for row in shop.products]
    known = np.array([_bits(shop.pictures[name]) for name in ids if name in shop.pictures], np.uint64)
    pictured = np.flatnonzero(model.requests.modality > 0)
    left_out = 0
    for start in range(0, len(pictured), SNAPSHOTS_PER_WRITE):
        rows = pictured[start : start + SNAPSHOTS_PER_WRITE]
        sources = [shop.pictures[str(shop.held_out[seen[row]]["id"])] for row in rows]
        files = [_fresh_snapshot(source, known, rng) for source in sources]
        taken = [(names[row][0], file) for row, file in zip(rows, files, strict=True) if file is not None]
        columns = [[name for name, _ in taken], [file for _, file in taken]]
        writer.write("images", pa.table(columns, schema=KINDS["images"].schema()))
        left_out += len(rows) - len(taken)
        progress.update(start + len(rows), len(pictured), note="query pictures")
    return left_out


def _fresh_snapshot(source: Image.Image, known: UInt64s, rng: np.random.Generator) -> bytes | None:
    """A snapshot that is no near-duplicate of a known picture; None when ATTEMPTS of them were."""
    for _ in range(ATTEMPTS):
        image_bytes = snapshot(source, rng)
        if np.bitwise_count(known ^ _bits(decode(image_bytes))).min() >= MIN_HASH_DISTANCE:
            return image_bytes
    return None


def _bits(picture: Image.Image) -> np.uint64:
    """The 64 bits of the difference hash."""
    return np.uint64(int(perceptual_hash(picture), 16))


def _fingerprint(folder: Path, images: Path, products: int, seed: int) -> str:
    digest = hashlib.blake2b(f"{MYNTRA_VERSION} {products} {seed}".encode(), digest_size=16)
    files = [folder / "styles.csv", *(sorted(images.rglob("*")) if images.is_dir() else [images])]
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
